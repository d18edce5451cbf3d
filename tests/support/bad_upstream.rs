//! An API that does to each connection what a script says, byte by byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metorial_proxy::time::sleep;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// One step of a connection; after the last one it is closed.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Reads until the end of a head.
    Read,
    Write(Vec<u8>),
    /// Writes so a byte every few milliseconds, until the other side has had enough.
    Trickle(u8),
    /// Waits until the test says so.
    Until(CancellationToken),
    /// Closes with a reset.
    Reset,
    /// Waits until the other side leaves.
    Wait,
    /// Answers as an API should, until the other side leaves.
    Serve,
}

pub(crate) fn write(bytes: impl AsRef<[u8]>) -> Act {
    Act::Write(bytes.as_ref().to_vec())
}

/// Lasts as long as the test's runtime.
pub(crate) struct BadUpstream {
    pub(crate) url: String,
    accepted: Arc<AtomicU64>,
    /// Heads that were read.
    heads: Arc<AtomicU64>,
    open: Arc<AtomicU64>,
}

impl BadUpstream {
    /// `script` is that of the so manieth connection.
    pub(crate) async fn start(script: impl Fn(u64) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let upstream = Self {
            url: format!("http://{}", listener.local_addr().expect("an address")),
            accepted: Arc::default(),
            heads: Arc::default(),
            open: Arc::default(),
        };
        let counts = (upstream.accepted.clone(), upstream.heads.clone(), upstream.open.clone());
        let tasks = TaskTracker::new();
        tasks.clone().spawn(async move {
            let (accepted, heads, open) = counts;
            while let Ok((tcp, _)) = listener.accept().await {
                let (heads, open) = (heads.clone(), open.clone());
                let script = script(accepted.fetch_add(1, Ordering::Relaxed));
                open.fetch_add(1, Ordering::Relaxed);
                tasks.spawn(async move {
                    play(tcp, script, &heads).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        upstream
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn heads(&self) -> u64 {
        self.heads.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

async fn play(mut tcp: TcpStream, script: Vec<Act>, heads: &AtomicU64) {
    for act in script {
        match act {
            Act::Read => {
                if !head(&mut tcp, heads).await {
                    return;
                }
            }
            // The other side may have had enough.
            Act::Write(bytes) => drop(tcp.write_all(&bytes).await),
            Act::Trickle(byte) => {
                while tcp.write_all(&[byte]).await.is_ok() {
                    sleep(Duration::from_millis(5)).await;
                }
            }
            Act::Until(said) => said.cancelled().await,
            Act::Reset => tcp.set_zero_linger().expect("a socket"),
            Act::Wait => drop(tcp.read_to_end(&mut Vec::new()).await),
            Act::Serve => {
                while head(&mut tcp, heads).await {
                    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood").await.ok();
                }
            }
        }
    }
}

/// Reads a head to its end; `false` where there is none any more.
async fn head(tcp: &mut TcpStream, heads: &AtomicU64) -> bool {
    let mut head = Vec::new();
    // A body of two bytes may follow at once.
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match tcp.read_buf(&mut head).await {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
    }
    heads.fetch_add(1, Ordering::Relaxed);
    true
}
