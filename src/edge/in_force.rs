//! What is in force: what one configuration makes of each worker, and how connections are served by it. A reload puts
//! another in its place in one step, for all workers: each request is served by one of them alone. Requests in flight finish
//! on the old one, and connections go on with the terms they were taken under.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio_rustls::TlsAcceptor;

use super::connection::Server;
use super::outbox::Outbox;
use super::upstream::Upstream;
use crate::pipeline::Pipeline;

/// All that a reload changes at once.
pub struct InForce {
    /// Makes the way of one worker's requests, on its thread and for its outbox, of the one before it. Does not fail.
    pub lane: Box<MakeLane>,
    /// Of connections that are made from now on.
    pub terms: Arc<Terms>,
    /// Bytes of a request's body.
    pub max_request_body: u64,
    /// Longest silence while a body streams.
    pub body_idle_timeout: Duration,
}

/// Of the worker's index, what its sockets have to send, and the lane there was.
pub type MakeLane = dyn Fn(usize, &Outbox, Option<&Lane>) -> Lane + Send + Sync;

/// The way of one worker's requests.
pub struct Lane {
    /// What they pass.
    pub pipeline: Pipeline,
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
pub struct Current {
    in_force: Mutex<Arc<InForce>>,
    /// How often it has changed: to look at that takes no lock.
    changes: AtomicU64,
}

impl Current {
    /// Begins with `first`.
    pub fn new(first: InForce) -> Self {
        Self { in_force: Mutex::new(Arc::new(first)), changes: AtomicU64::new(0) }
    }

    /// Puts another in force.
    pub fn swap(&self, next: InForce) {
        let mut in_force = self.in_force.lock();
        *in_force = Arc::new(next);
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn get(&self) -> (Arc<InForce>, u64) {
        let in_force = self.in_force.lock();
        (in_force.clone(), self.changes.load(Ordering::Relaxed))
    }
}

/// What is in force for one worker, on its thread. Cheap to clone.
#[derive(Clone)]
pub struct Place(Rc<Worker>);

struct Worker {
    current: Arc<Current>,
    index: usize,
    outbox: Outbox,
    own: RefCell<Rc<Own>>,
}

/// What a worker has made of what is in force.
pub struct Own {
    /// The way of its requests.
    pub lane: Lane,
    /// Of which it was made.
    pub in_force: Arc<InForce>,
    change: u64,
}

impl Place {
    /// That of the worker with this index, which sends by `outbox`.
    pub fn new(current: Arc<Current>, index: usize, outbox: Outbox) -> Self {
        let (in_force, change) = current.get();
        let own = Own { lane: (in_force.lane)(index, &outbox, None), in_force, change };
        Self(Rc::new(Worker { current, index, outbox, own: RefCell::new(Rc::new(own)) }))
    }

    /// What is in force now, made where it is news.
    pub fn now(&self) -> Rc<Own> {
        let Worker { current, index, outbox, own } = &*self.0;
        let before = own.borrow().clone();
        if before.change == current.changes.load(Ordering::Acquire) {
            return before;
        }
        let (in_force, change) = current.get();
        let lane = (in_force.lane)(*index, outbox, Some(&before.lane));
        let now = Rc::new(Own { lane, in_force, change });
        *own.borrow_mut() = now.clone();
        now
    }
}
