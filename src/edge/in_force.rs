//! What is in force: what one configuration makes of each worker, and how connections are served by it. A reload puts
//! another in its place in one step, for all workers: each request is served by one of them alone. Requests in flight finish
//! on the old one, and connections go on with the terms they were taken under.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use ipnet::IpNet;
use tokio_rustls::TlsAcceptor;

use super::connection::Server;
use super::upstream::Upstream;
use crate::pipeline::Pipeline;

/// All that a reload changes at once.
pub struct InForce {
    /// Of each worker.
    pub lanes: Vec<Lane>,
    /// Of connections that are made from now on.
    pub terms: Arc<Terms>,
    /// Bytes of a request's body.
    pub max_request_body: u64,
    /// Longest silence while a body streams.
    pub body_idle_timeout: Duration,
}

/// The way of one worker's requests.
pub struct Lane {
    /// What they pass.
    pub pipeline: Arc<Pipeline>,
    /// The pool below it, which is swept.
    pub upstream: Upstream,
}

/// How connections are taken and served; each keeps those it began with.
pub struct Terms {
    /// Where callers come by TLS.
    pub tls: Option<TlsAcceptor>,
    /// Where each connection begins with a PROXY header: those who may write one.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// Serves them.
    pub server: Server,
}

/// What is in force now.
pub struct Current(ArcSwap<InForce>);

impl Current {
    /// Begins with `first`.
    pub fn new(first: InForce) -> Self {
        Self(ArcSwap::from_pointee(first))
    }

    /// To look at, for a moment.
    pub fn load(&self) -> Guard<Arc<InForce>> {
        self.0.load()
    }

    /// Puts another in force.
    pub fn swap(&self, next: InForce) {
        self.0.store(Arc::new(next));
    }
}

/// What is in force for one worker.
#[derive(Clone)]
pub struct Place {
    /// For all.
    pub current: Arc<Current>,
    /// Which worker.
    pub worker: usize,
}

impl Place {
    /// Looks at the worker's own lane, and at what is in force around it.
    pub fn with<T>(&self, look: impl FnOnce(&Lane, &InForce) -> T) -> T {
        let in_force = self.current.load();
        look(&in_force.lanes[self.worker], &in_force)
    }

    /// How a connection that is made now is served.
    pub fn terms(&self) -> Arc<Terms> {
        self.current.load().terms.clone()
    }
}
