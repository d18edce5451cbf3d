//! Load that the common tools don't make.
//!
//! * `steady open ADDRESS CONNECTIONS SECONDS RATE`: requests at fixed times, however long answers take; each latency is
//!   measured from the time that its request was due, so a server that stalls is not spared the requests that it delays.
//! * `steady closed ADDRESS CONNECTIONS SECONDS VARIANTS`: each connection asks anew as soon as it is answered, and it begins
//!   when all are connected and a line was read from standard input. With `SECONDS` 0 each variant is asked for once.
//!
//! The request is what `STEADY_REQUEST` says; in it `{n}` is the number of the variant, `{ip}` an address of its own. Each
//! answer must be a 200 with a body; where `STEADY_REFUSED` is set, a 429 counts as refused. `closed` goes over TLS 1.3 where
//! `STEADY_ROOTS` names the certificate to trust. Prints `ready`, then one line of JSON.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_types,
    reason = "a load generator tells its figures, and its clock is the machine's"
)]

use std::borrow::Cow;
use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, address, connections, seconds, last] = arguments.as_slice() else {
        return Err("usage: steady open|closed ADDRESS CONNECTIONS SECONDS RATE|VARIANTS".into());
    };
    let request = Request(std::env::var("STEADY_REQUEST")?);
    let (address, connections) = (address.parse()?, connections.parse()?);
    let (length, last) = (Duration::from_secs(seconds.parse()?), last.parse()?);
    match mode.as_str() {
        "open" => open(address, connections, length, last, &request),
        "closed" => closed(address, connections, length, last, &request),
        _ => Err("open or closed".into()),
    }
}

struct Request(String);

impl Request {
    fn variant(&self, number: u64) -> Cow<'_, [u8]> {
        if !self.0.contains('{') {
            return Cow::Borrowed(self.0.as_bytes());
        }
        let address = format!("10.{}.{}.{}", (number >> 16) & 255, (number >> 8) & 255, number & 255);
        Cow::Owned(self.0.replace("{n}", &format!("{number:04}")).replace("{ip}", &address).into_bytes())
    }
}

/// What came of all requests.
#[derive(Default)]
struct Count {
    answers: u64,
    bytes: u64,
    /// Answers of 429, where they may be.
    refused: Option<u64>,
}

/// How much of an answer is there. A body is counted and not kept: ten thousand connections' would push out of the caches
/// what the server has in them, and its callers are on other machines.
#[derive(Default)]
struct Answer {
    head: Vec<u8>,
    left: usize,
}

impl Answer {
    /// Takes what was read; whether the answer is whole now, and then begins anew.
    fn push(&mut self, read: &[u8], count: &mut Count) -> Outcome<bool> {
        if read.is_empty() {
            return Err("the connection was closed".into());
        }
        count.bytes += read.len() as u64;
        let (whole, there) = if self.left > 0 {
            (self.left, read.len())
        } else {
            let bytes = if self.head.is_empty() { read } else { &[&self.head, read].concat() };
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
                self.head.extend_from_slice(read);
                return Ok(false);
            };
            (end + 4 + length(&bytes[..end], &mut count.refused)?, bytes.len())
        };
        self.head.clear();
        self.left = whole.checked_sub(there).ok_or("more than one answer")?;
        count.answers += u64::from(self.left == 0);
        Ok(self.left == 0)
    }

    /// Reads until it is whole, or until there is nothing yet where that is not waited for.
    fn read(&mut self, stream: &mut Stream, buffer: &mut [u8], count: &mut Count) -> Outcome<bool> {
        loop {
            match stream.read(buffer) {
                Ok(read) if self.push(&buffer[..read], count)? => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Bytes of the body that follows this head.
fn length(head: &[u8], refused: &mut Option<u64>) -> Outcome<usize> {
    let head = str::from_utf8(head)?;
    match refused {
        Some(refused) if head.starts_with("HTTP/1.1 429 ") => *refused += 1,
        _ if head.starts_with("HTTP/1.1 200 ") => {}
        _ => return Err(format!("not a 200: {head}").into()),
    }
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let (_, length) =
        fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length")).ok_or("no length")?;
    Ok(length.trim().parse()?)
}

/// A connection to the server.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// One that has been used once where it is to be.
    fn connect(number: usize, address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Outcome<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // One address has too few ports, and may have too few connections.
        let source = SocketAddr::from(([127, 0, 0, 1 + (number / 2000) as u8], 0));
        socket.bind(&source.into())?;
        // Gone when it is closed: thousands of ports that wait for what is late have the kernel look long for a free one.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&address.into())?;
        socket.set_tcp_nodelay(true)?;
        let plain = TcpStream::from(socket);
        let Some(config) = tls else {
            return Ok(Self::Plain(plain));
        };
        let connection = ClientConnection::new(config.clone(), ServerName::try_from("localhost")?)?;
        let mut stream = StreamOwned::new(connection, plain);
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(Self::Tls(Box::new(stream)))
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    /// Sends a request, which always fits.
    fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(request),
            Self::Tls(stream) => {
                stream.write_all(request)?;
                stream.flush()
            }
        }
    }
}

/// What trusts this certificate.
fn trusting(path: String) -> Outcome<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path)?)?;
    let config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

struct Busy {
    connection: usize,
    due: Duration,
}

fn open(
    address: SocketAddr,
    connections: usize,
    length: Duration,
    rate: u64,
    request: &Request,
) -> Outcome<()> {
    let (request, mut count) = (request.variant(0), Count::default());
    let (mut streams, mut buffer) = (Vec::new(), vec![0; 65536]);
    for number in 0..connections {
        let (mut stream, mut answer) = (Stream::connect(number, address, None)?, Answer::default());
        // Each has been used once before it counts.
        stream.ask(&request)?;
        answer.read(&mut stream, &mut buffer, &mut count)?;
        stream.socket().set_nonblocking(true)?;
        streams.push((stream, answer));
    }
    println!("ready");
    let total = rate * length.as_secs();
    let due = |number: u64| Duration::from_nanos(number * 1_000_000_000 / rate);
    let mut idle: Vec<usize> = (0..connections).collect();
    let (mut busy, mut latencies): (Vec<Busy>, Vec<Duration>) = (Vec::new(), Vec::new());
    let (mut next, mut looked, mut away) = (0, Duration::ZERO, Duration::ZERO);
    let start = Instant::now();
    while (latencies.len() as u64) < total {
        let now = start.elapsed();
        // Somebody else had the core meanwhile.
        if now - looked > Duration::from_millis(1) {
            away += now - looked;
        }
        looked = now;
        if now > length + Duration::from_secs(10) {
            return Err("the server is too slow for this rate".into());
        }
        while next < total
            && due(next) <= now
            && let Some(connection) = idle.pop()
        {
            streams[connection].0.ask(&request)?;
            busy.push(Busy { connection, due: due(next) });
            next += 1;
        }
        let mut at = 0;
        while at < busy.len() {
            let Busy { connection, due } = busy[at];
            let (stream, answer) = &mut streams[connection];
            if answer.read(stream, &mut buffer, &mut count)? {
                latencies.push(start.elapsed() - due);
                idle.push(connection);
                busy.swap_remove(at);
                continue;
            }
            at += 1;
        }
        std::hint::spin_loop();
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!(
        "{{\"requests\":{total},\"p50\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"away\":{:.4}}}",
        at(0.5),
        at(0.99),
        at(0.999),
        away.as_secs_f64() / start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// One thread and little memory for each connection: its core is not to be full before the server's, which would then pay
/// for falling asleep and waking.
fn closed(
    address: SocketAddr,
    connections: usize,
    length: Duration,
    variants: u64,
    request: &Request,
) -> Outcome<()> {
    let tls = std::env::var("STEADY_ROOTS").ok().map(trusting).transpose()?;
    let refused = std::env::var_os("STEADY_REFUSED").map(|_| 0);
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    let (mut streams, mut buffer) = (Vec::new(), vec![0; 65536]);
    for number in 0..connections {
        let (mut stream, mut answer) = (Stream::connect(number, address, tls.as_ref())?, Answer::default());
        if length > Duration::ZERO {
            stream.ask(&request.variant(number as u64 % variants))?;
            answer.read(&mut stream, &mut buffer, &mut Count { refused, ..Count::default() })?;
        }
        stream.socket().set_nonblocking(true)?;
        let descriptor = stream.socket().as_raw_fd();
        poll.registry().register(&mut SourceFd(&descriptor), Token(number), Interest::READABLE)?;
        streams.push((stream, answer));
    }
    println!("ready");
    io::stdin().read_line(&mut String::new())?;
    let (mut count, mut asked) = (Count { refused, ..Count::default() }, 0);
    // Each connection asks once at least, where so much is asked for: it is still there.
    let most = if length.is_zero() { variants } else { u64::MAX };
    for (stream, _) in streams.iter_mut().take(most.try_into().unwrap_or(usize::MAX)) {
        stream.ask(&request.variant(asked % variants))?;
        asked += 1;
    }
    let end = Instant::now() + length;
    while count.answers < asked {
        poll.poll(&mut events, None)?;
        let over = !length.is_zero() && Instant::now() >= end;
        for event in &events {
            let (stream, answer) = &mut streams[event.token().0];
            if answer.read(stream, &mut buffer, &mut count)? && !over && asked < most {
                stream.ask(&request.variant(asked % variants))?;
                asked += 1;
            }
        }
    }
    let Count { answers, bytes, refused } = count;
    println!("{{\"requests\":{answers},\"bytes\":{bytes},\"refused\":{}}}", refused.unwrap_or_default());
    // Connections stay open until nobody wants to look at them any more.
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}
