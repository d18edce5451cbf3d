//! A server that writes the bytes a test gives it, and keeps those it was sent.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// What to write once a request was read.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) bytes: Vec<u8>,
    pub(crate) then: Then,
}

/// … and what becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next request is read.
    Keep,
    /// It is closed.
    Close,
    /// The same bytes are written until nobody takes them.
    Repeat,
}

impl Script {
    pub(crate) fn keep(text: impl AsRef<[u8]>) -> Self {
        Self { bytes: text.as_ref().to_vec(), then: Then::Keep }
    }
}

/// One request as it came: head and body, framed as the head says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Got {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// All of the body came.
    pub(crate) whole: bool,
}

impl Got {
    /// Values of a field.
    pub(crate) fn fields(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// `METHOD /target`.
    pub(crate) fn target(&self) -> &str {
        self.head.split(" HTTP/").next().unwrap_or_default()
    }
}

/// Lasts as long as the test's runtime.
#[derive(Clone)]
pub(crate) struct RawUpstream {
    pub(crate) url: String,
    script: Arc<Mutex<Script>>,
    got: Arc<Mutex<Vec<Got>>>,
}

impl RawUpstream {
    /// Answers as [`RawUpstream::says`] says; a request whose target holds `probe` gets one of its own, always the same.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let script = Arc::new(Mutex::new(Script::keep(answer("fine"))));
        let upstream = Self { url, script, got: Arc::default() };
        let (shared, tasks) = (upstream.clone(), TaskTracker::new());
        tasks.clone().spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let shared = shared.clone();
                tasks.spawn(async move { shared.speak(tcp).await });
            }
        });
        upstream
    }

    pub(crate) fn says(&self, script: Script) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// What came since this was last asked, probes apart.
    pub(crate) fn got(&self) -> Vec<Got> {
        std::mem::take(&mut *self.got.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn speak(&self, mut tcp: TcpStream) {
        let mut buffer = Vec::new();
        loop {
            let mut got = Got::default();
            let going_on = read(&mut tcp, &mut buffer, &mut got).await;
            if got.head.is_empty() {
                return;
            }
            let (probe, target) = (got.target().contains("probe"), got.target().to_owned());
            if !probe {
                self.got.lock().unwrap_or_else(PoisonError::into_inner).push(got);
            }
            if !going_on {
                return;
            }
            let script = match probe {
                true => Script::keep(answer(&target)),
                false => self.script.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            };
            // The other side may have had enough.
            let written = tcp.write_all(&script.bytes).await;
            match script.then {
                Then::Keep if written.is_ok() => {}
                Then::Keep | Then::Close => return,
                Then::Repeat => while tcp.write_all(&script.bytes).await.is_ok() {},
            }
        }
    }
}

/// An answer with a body and nothing to object to.
pub(crate) fn answer(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Reads one request, and whether it is whole.
async fn read(tcp: &mut TcpStream, buffer: &mut Vec<u8>, got: &mut Got) -> bool {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if !more(tcp, buffer).await {
            return false;
        }
    };
    got.head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let chunked = !got.fields("transfer-encoding").is_empty();
    if chunked {
        return chunks(tcp, buffer, got).await;
    }
    let length = got.fields("content-length").first().map_or(0, |length| length.parse().expect("a number"));
    while buffer.len() < length {
        if !more(tcp, buffer).await {
            got.body.append(buffer);
            return false;
        }
    }
    got.body.extend(buffer.drain(..length));
    got.whole = true;
    true
}

async fn chunks(tcp: &mut TcpStream, buffer: &mut Vec<u8>, got: &mut Got) -> bool {
    loop {
        while let Some(at) = buffer.windows(2).position(|end| end == b"\r\n") {
            let size = String::from_utf8_lossy(&buffer[..at]).into_owned();
            let size = usize::from_str_radix(&size, 16).expect("a plain size");
            if buffer.len() < at + 2 + size + 2 {
                break;
            }
            got.body.extend_from_slice(&buffer[at + 2..at + 2 + size]);
            buffer.drain(..at + 2 + size + 2);
            if size == 0 {
                got.whole = true;
                return true;
            }
        }
        if !more(tcp, buffer).await {
            return false;
        }
    }
}

async fn more(tcp: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    matches!(tcp.read_buf(buffer).await, Ok(count) if count > 0)
}
