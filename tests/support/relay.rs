//! A TCP relay between a client and a server, which can be slow, stalled and cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use metorial_proxy::time::sleep;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// They take so long.
    Slow(Duration),
    /// They stay here; connections are accepted and kept.
    Stalled,
    /// Connections are closed, new ones at once.
    Cut,
}

/// Lasts as long as the test's runtime, or until it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    way: watch::Sender<Way>,
}

impl Relay {
    /// To a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (way, tasks) = (watch::Sender::new(Way::Open), TaskTracker::new());
        let mut given = way.subscribe();
        tasks.clone().spawn(async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { return };
                        if *given.borrow() != Way::Cut {
                            tasks.spawn(relay(client, port, given.clone()));
                        }
                    }
                    changed = given.changed() => if changed.is_err() { return },
                }
            }
        });
        Self { address, way }
    }

    /// The address with a scheme before it.
    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    pub(crate) fn slow(&self, delay: Duration) {
        self.way.send_replace(Way::Slow(delay));
    }

    pub(crate) fn stall(&self) {
        self.way.send_replace(Way::Stalled);
    }

    pub(crate) fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// As before.
    pub(crate) fn mend(&self) {
        self.way.send_replace(Way::Open);
    }
}

async fn relay(client: TcpStream, port: u16, way: watch::Receiver<Way>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).ok();
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // The end of one direction is that of both.
    tokio::select! {
        () = pass(from_client, to_server, way.clone()) => {}
        () = pass(from_server, to_client, way) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let mut held = Vec::with_capacity(64 * 1024);
    loop {
        let now = *way.borrow_and_update();
        let flows = matches!(now, Way::Open | Way::Slow(_));
        if flows && !held.is_empty() {
            if let Way::Slow(delay) = now {
                sleep(delay).await;
            }
            if to.write_all(&held).await.is_err() {
                return;
            }
            held.clear();
        }
        tokio::select! {
            changed = way.changed() => if changed.is_err() { return },
            read = from.read_buf(&mut held), if flows => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
        }
        if *way.borrow() == Way::Cut {
            return;
        }
    }
}
