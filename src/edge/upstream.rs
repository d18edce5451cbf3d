//! The transport to the API: one pool per worker, over hyper's connections.
//!
//! Connection, pipeline and pool live on one thread, so a request never crosses cores on its way. HTTP/1.1 connections are
//! kept while idle; HTTP/2 shares one per worker, where TLS negotiated it or configuration asks for it. None is used for
//! longer than a minute, so that the pool follows a name to its new address. The address is chosen by configuration alone:
//! nothing a caller sends decides where a connection goes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{HOST, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};

use super::outbox::Outbox;
use crate::body::{Arriving, BodyError, Lease, RequestBody};
use crate::exchange::{Delivery, Journal};
use crate::policy::forward::{Answer, Transport, TransportError};
use crate::rejection::UpstreamFault;
use crate::time::Instant;

mod connect;
mod fault;
mod interim;
mod names;
#[cfg(test)]
mod tests;

use connect::Connection;
pub use connect::Connector;

/// An older connection gets no new request: the name it was made for may stand for another address by now.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The pool of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Pool>);

struct Pool {
    connector: Connector,
    outbox: Outbox,
    scheme: Scheme,
    authority: Authority,
    max_idle: usize,
    idle_timeout: Duration,
    // Of one worker, so it is never contended; the lock is for the compiler.
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Option<Shared>>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    born: Instant,
    since: Instant,
}

struct Shared {
    sender: http2::SendRequest<RequestBody>,
    born: Instant,
}

impl Upstream {
    /// A pool that keeps at most `max_idle` connections, each for at most `idle_timeout`, of the worker whose outbox that is.
    pub fn new(
        connector: Connector,
        outbox: Outbox,
        scheme: Scheme,
        authority: Authority,
        max_idle: usize,
        idle_timeout: Duration,
    ) -> Self {
        let (idle, shared) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Pool { connector, outbox, scheme, authority, max_idle, idle_timeout, idle, shared }))
    }

    /// Closes what has been idle, or there, for too long; to be called every second or so.
    pub fn close_idle(&self) {
        let now = Instant::now();
        lock(&self.0.idle).retain(|idle| self.0.may_serve(idle, now) && !idle.sender.is_closed());
        // What is under way over it goes on: it closes after the last answer.
        lock(&self.0.shared).take_if(|shared| is_old(shared.born, now));
    }
}

fn is_old(born: Instant, now: Instant) -> bool {
    now.duration_since(born) >= MAX_AGE
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transport for Upstream {
    async fn send(
        &self,
        mut request: Box<Request<RequestBody>>,
        journal: &Journal,
    ) -> Result<Answer, Box<TransportError>> {
        // A connection that was idle may have been closed just now; then nothing was written, and the next one is tried.
        while let Some(connection) = self.0.checkout() {
            journal.written(true);
            match self.0.send_over(connection, request).await {
                Ok(answer) => return Ok(answer),
                Err((error, unsent)) => match unsent {
                    Some(unsent) => {
                        journal.written(false);
                        request = unsent;
                    }
                    None => return Err(error),
                },
            }
        }
        let connection = match self.0.connector.connect(&self.0.outbox).await {
            Ok(connection) => connection,
            Err((fault, detail)) => {
                let body = Some(request.into_body());
                return Err(Box::new(TransportError {
                    fault,
                    delivery: Delivery::Never,
                    detail,
                    caller: None,
                    body,
                }));
            }
        };
        if let Connection::Http2(sender, born) = &connection {
            *lock(&self.0.shared) = Some(Shared { sender: sender.clone(), born: *born });
        }
        journal.written(true);
        self.0.send_over(connection, request).await.map_err(|(mut error, unsent)| {
            error.body = unsent.map(|request| request.into_body());
            error
        })
    }
}

impl Pool {
    /// A connection that is ready, the one used last first: the rest can grow old.
    fn checkout(&self) -> Option<Connection> {
        if let Some(shared) = lock(&self.shared).as_ref()
            && !shared.sender.is_closed()
            && !is_old(shared.born, Instant::now())
        {
            return Some(Connection::Http2(shared.sender.clone(), shared.born));
        }
        let (mut idle, now) = (lock(&self.idle), Instant::now());
        while let Some(candidate) = idle.pop() {
            if candidate.sender.is_ready() && self.may_serve(&candidate, now) {
                return Some(Connection::Http1(candidate.sender, candidate.born));
            }
        }
        None
    }

    fn may_serve(&self, idle: &Idle, now: Instant) -> bool {
        now.duration_since(idle.since) < self.idle_timeout && !is_old(idle.born, now)
    }

    fn give_back(&self, sender: http1::SendRequest<RequestBody>, born: Instant) {
        let now = Instant::now();
        if sender.is_closed() || is_old(born, now) {
            return;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < self.max_idle {
            idle.push(Idle { sender, born, since: now });
        }
    }

    /// A shared connection that takes no more requests is not offered again.
    fn forget(&self, of: Instant) {
        lock(&self.shared).take_if(|shared| shared.born == of);
    }

    /// Sends over one connection; where surely nothing was written, the request comes back.
    async fn send_over(
        self: &Arc<Self>,
        connection: Connection,
        mut request: Box<Request<RequestBody>>,
    ) -> Result<Answer, Unsent> {
        match connection {
            Connection::Http1(mut sender, born) => {
                self.make_relative(&mut request);
                let response = sender.try_send_request(*request).await.map_err(unsent)?;
                let lease = Returning { pool: self.clone(), sender, born };
                Ok(answer(response, Some(Box::new(lease))))
            }
            Connection::Http2(mut sender, born) => {
                self.make_absolute(&mut request);
                let response = sender.try_send_request(*request).await.map_err(unsent);
                if matches!(response, Err((_, Some(_)))) {
                    self.forget(born);
                }
                response.map(|response| answer(response, None))
            }
        }
    }

    /// HTTP/2 wants the authority in the target and no `Host`.
    fn make_absolute(&self, request: &mut Request<RequestBody>) {
        request.headers_mut().remove(HOST);
        let mut parts = request.uri().clone().into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        // Scheme, authority and path are all there, so this is a URI. Were it none, the request would be refused without them.
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }

    /// Back to the form of HTTP/1.1, where a connection by HTTP/2 had not taken it.
    fn make_relative(&self, request: &mut Request<RequestBody>) {
        if request.uri().authority().is_some() {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
            let host = HeaderValue::from_str(self.authority.as_str());
            request.headers_mut().extend(host.ok().map(|host| (HOST, host)));
        }
    }
}

fn answer(response: Response<Incoming>, lease: Option<Box<dyn Lease>>) -> Answer {
    let (head, body) = response.into_parts();
    Answer { head, body: Arriving::Wire(body), lease }
}

/// What failed, and the request, where surely nothing of it was written.
type Unsent = (Box<TransportError>, Option<Box<Request<RequestBody>>>);

fn unsent(mut error: TrySendError<Request<RequestBody>>) -> Unsent {
    let request = error.take_message();
    let error = error.into_error();
    let unsent = request.is_some() || fault::is_unprocessed(&error);
    let delivery = if unsent { Delivery::Never } else { Delivery::Possible };
    let caller = fault::of_caller(&error);
    let (fault, detail) = (fault::of_hyper(&error), fault::chain(&error));
    (Box::new(TransportError { fault, delivery, detail, caller, body: None }), request.map(Box::new))
}

/// Puts a connection back once its response was read to the end; dropped before, the connection closes.
struct Returning {
    pool: Arc<Pool>,
    sender: http1::SendRequest<RequestBody>,
    born: Instant,
}

impl Lease for Returning {
    fn finish(self: Box<Self>) {
        self.pool.give_back(self.sender, self.born);
    }

    fn broken(self: Box<Self>, _: &BodyError) {}
}

/// What upstream did when there is no more precise word for it.
const BROKE: UpstreamFault = UpstreamFault::ConnectionTerminated;
