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
use std::cell::RefCell;
use std::error::Error;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpSocket;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::either::Either;

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
        "closed" => Builder::new_current_thread().enable_all().build()?.block_on(closed(
            address,
            connections,
            length,
            last,
            request,
        )),
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

/// How much of an answer is there. A body is counted and not kept: ten thousand connections' would push out of the caches
/// what the server has in them, and its callers are on other machines.
#[derive(Default)]
struct Answer {
    head: Vec<u8>,
    left: usize,
    /// Of all answers so far.
    bytes: u64,
    /// Answers of 429, where they may be.
    refused: Option<u64>,
}

impl Answer {
    /// Takes what was read; whether the answer is whole now, and then begins anew.
    fn push(&mut self, read: &[u8]) -> Outcome<bool> {
        if read.is_empty() {
            return Err("the connection was closed".into());
        }
        self.bytes += read.len() as u64;
        let (whole, there) = if self.left > 0 {
            (self.left, read.len())
        } else {
            let bytes = if self.head.is_empty() { read } else { &[&self.head, read].concat() };
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
                self.head.extend_from_slice(read);
                return Ok(false);
            };
            (end + 4 + length(&bytes[..end], &mut self.refused)?, bytes.len())
        };
        self.head.clear();
        self.left = whole.checked_sub(there).ok_or("more than one answer")?;
        Ok(self.left == 0)
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
    let (request, mut answers) = (request.variant(0), Vec::new());
    let (mut streams, mut buffer) = (Vec::new(), vec![0; 65536]);
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        // Each has been used once before it counts.
        stream.write_all(&request)?;
        let (mut answer, mut read) = (Answer::default(), stream.read(&mut buffer)?);
        while !answer.push(&buffer[..read])? {
            read = stream.read(&mut buffer)?;
        }
        stream.set_nonblocking(true)?;
        streams.push(stream);
        answers.push(answer);
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
            streams[connection].write_all(&request)?;
            busy.push(Busy { connection, due: due(next) });
            next += 1;
        }
        let mut at = 0;
        while at < busy.len() {
            let Busy { connection, due } = busy[at];
            match streams[connection].read(&mut buffer) {
                Ok(read) => {
                    if answers[connection].push(&buffer[..read])? {
                        latencies.push(start.elapsed() - due);
                        idle.push(connection);
                        busy.swap_remove(at);
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
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

async fn closed(
    address: SocketAddr,
    connections: usize,
    length: Duration,
    variants: u64,
    request: Request,
) -> Outcome<()> {
    let (request, next) = (Arc::new(request), Arc::new(AtomicU64::new(0)));
    let tls = std::env::var("STEADY_ROOTS").ok().map(trusting).transpose()?;
    let refusable = std::env::var_os("STEADY_REFUSED").map(|_| 0);
    let answer = move || Answer { refused: refusable, ..Answer::default() };
    let mut streams = Vec::new();
    for number in 0..connections {
        let socket = TcpSocket::new_v4()?;
        // One address has too few ports, and may have too few connections.
        let source = [127, 0, 0, 1 + (number / 2000) as u8];
        socket.bind((source, 0).into())?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let mut stream = match &tls {
            Some(tls) => Either::Left(tls.connect(ServerName::try_from("localhost")?, stream).await?),
            None => Either::Right(stream),
        };
        if length > Duration::ZERO {
            ask(&mut stream, &request.variant(number as u64 % variants), &mut answer()).await?;
        }
        streams.push(stream);
    }
    println!("ready");
    io::stdin().read_line(&mut String::new())?;
    let end = Instant::now() + length;
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        let (request, next) = (request.clone(), next.clone());
        tasks.spawn(async move {
            let (mut answer, mut answered) = (answer(), 0_u64);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                // Each connection asks once more at least: it is still there.
                let over =
                    if length.is_zero() { number >= variants } else { answered > 0 && Instant::now() >= end };
                if over {
                    return Outcome::Ok((stream, answered, answer));
                }
                ask(&mut stream, &request.variant(number % variants), &mut answer).await?;
                answered += 1;
            }
        });
    }
    let (mut kept, mut requests, mut bytes, mut refused) = (Vec::new(), 0, 0, 0);
    while let Some(done) = tasks.join_next().await {
        let (stream, answered, answer) = done??;
        kept.push(stream);
        (requests, bytes) = (requests + answered, bytes + answer.bytes);
        refused += answer.refused.unwrap_or_default();
    }
    println!("{{\"requests\":{requests},\"bytes\":{bytes},\"refused\":{refused}}}");
    // Connections stay open until nobody wants to look at them any more.
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Callers that trust this certificate.
fn trusting(path: String) -> Outcome<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path)?)?;
    let config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn ask<S>(stream: &mut S, request: &[u8], answer: &mut Answer) -> Outcome<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request).await?;
    stream.flush().await?;
    poll_fn(|context| {
        BUFFER.with_borrow_mut(|buffer| {
            loop {
                let mut read = ReadBuf::new(buffer);
                ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
                if answer.push(read.filled())? {
                    return Poll::Ready(Ok(()));
                }
            }
        })
    })
    .await
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 65536]);
}
