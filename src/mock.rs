//! The stand-in Metorial API: the tests' upstream, and a sandbox for who has no key.
//!
//! It answers with the API's real shapes, its surprises included: malformed credentials echoed in errors, `RateLimit-*`
//! with an epoch reset, a 429 without `Retry-After` or CORS, content types that are checked on every method. Behind
//! every list and get of the [route table](crate::domain::operation) stands a seeded, deterministic store that writes
//! change. `/_mock/requests` tells what was received, `/_mock/faults` makes the next answers go wrong.
//!
//! A request is handled in this order, the API's own: record → edge limit per IP → fault → authentication → limit per
//! key → route → latency.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::key::SecretKey;
use crate::domain::quota::Quota;
use crate::mock::service::State;
use crate::time;

pub use crate::mock::faults::{Fault, Reset};
pub use crate::mock::limit::{Algorithm, Counter, Verdict, parse_quota};
pub use crate::mock::record::Record;

mod answer;
mod auth;
mod body;
mod connection;
mod control;
mod error;
mod faults;
mod handlers;
mod limit;
mod page;
mod query;
mod record;
mod routes;
mod seed;
mod service;
mod store;

/// How the stand-in behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The limit per organisation: each key stands for one, or all keys for one where `key` is set.
    pub limit: Quota,
    /// The edge's limit per peer IP, counted over a trailing window.
    pub egress_limit: Quota,
    /// How `limit` is counted.
    pub algorithm: Algorithm,
    /// How long each answer of the API takes at least.
    pub latency: Duration,
    /// Items that each list begins with.
    pub items: usize,
    /// The one secret key that is accepted; `None` accepts any `metorial_sk_…`. Publishable keys are accepted in any
    /// case, for the routes that the API opens to them.
    pub key: Option<SecretKey>,
}

impl Default for Options {
    /// `127.0.0.1:4010`, the documented limits of a development environment, 57 items, no latency, any key.
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 4010).into(),
            limit: Quota::DEVELOPMENT,
            egress_limit: Quota::PER_IP,
            algorithm: Algorithm::Trailing,
            latency: Duration::ZERO,
            items: 57,
            key: None,
        }
    }
}

/// A stand-in that listens, but doesn't serve yet.
#[derive(Debug)]
pub struct Mock {
    listener: TcpListener,
    addr: SocketAddr,
    state: Arc<State>,
}

/// Binds the stand-in's listener.
///
/// # Errors
/// The address can't be bound: in use, not ours, or not allowed.
pub async fn bind(options: Options) -> std::io::Result<Mock> {
    let listener = TcpListener::bind(options.listen).await?;
    let addr = listener.local_addr()?;
    Ok(Mock { listener, addr, state: Arc::new(State::new(&options)) })
}

impl Mock {
    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A handle on what it received and what goes wrong next; it outlives [`Self::serve`].
    pub fn handle(&self) -> MockHandle {
        MockHandle { state: self.state.clone() }
    }

    /// Serves until `stop`, then closes the listener and returns once what is in flight has finished.
    pub async fn serve(self, stop: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let ip = peer.ip().to_canonical();
                    connections.spawn(connection::serve(self.state.clone(), tcp, ip, stop.clone()));
                }
                Err(error) => {
                    // Out of descriptors, mostly: a connection that ends frees some.
                    tracing::warn!(%error, "the stand-in could not accept a connection");
                    time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(self.listener);
        connections.close();
        connections.wait().await;
    }
}

/// A handle on a running stand-in.
#[derive(Debug, Clone)]
pub struct MockHandle {
    state: Arc<State>,
}

impl MockHandle {
    /// Requests received, whatever became of them.
    pub fn received(&self) -> u64 {
        self.state.recorder.lock().received
    }

    /// Requests that the limit per key let pass and counted.
    pub fn counted(&self) -> u64 {
        self.state.recorder.lock().counted
    }

    /// Requests that either limit refused with 429. Those of a fault aren't among them.
    pub fn refused(&self) -> u64 {
        self.state.recorder.lock().refused
    }

    /// The last requests, oldest first, 10,000 at most.
    pub fn requests(&self) -> Vec<Record> {
        self.state.recorder.lock().report().requests
    }

    /// Forgets requests and counts. What the limits have counted stays counted.
    pub fn reset(&self) {
        self.state.recorder.lock().reset();
    }

    /// Lets something go wrong.
    ///
    /// # Errors
    /// What of the fault makes no sense, by the field's name.
    pub fn fault(&self, fault: Fault) -> Result<(), String> {
        self.state.faults.lock().add(fault)
    }

    /// Forgets the faults that still wait for their requests.
    pub fn clear_faults(&self) {
        self.state.faults.lock().clear();
    }
}

#[cfg(test)]
mod tests;
