//! The transport to the API: one pool of connections per worker.
//!
//! Connection, pipeline and pool live on one thread, so a request never crosses cores on its way. HTTP/1.1 connections are
//! kept while idle, and driven by whoever asks (`http1`); HTTP/2, which is hyper's, shares one per worker, where TLS negotiated
//! it or configuration asks for it. None is used for longer than a minute, so that the pool follows a name to its new address.
//! The address is chosen by configuration alone: nothing a caller sends decides where a connection goes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};

use super::outbox::Outbox;
use crate::body::{Arriving, BodyError, Lease, RequestBody};
use crate::exchange::{Delivery, Journal};
use crate::policy::forward::{Answer, Outgoing, Transport, TransportError};
use crate::rejection::UpstreamFault;
use crate::time::Timestamp;

mod connect;
mod fault;
pub mod http1;
mod interim;
mod names;
#[cfg(test)]
mod tests;
mod upload;

pub use connect::Connector;
use connect::{Connection, Stream};
use http1::{Framing, Http1};

/// An older connection gets no new request: the name it was made for may stand for another address by now.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The pool of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Upstream(Rc<Pool>);

struct Pool {
    connector: Connector,
    outbox: Outbox,
    scheme: Scheme,
    authority: Authority,
    max_idle: Cell<usize>,
    idle_timeout: Duration,
    kept: RefCell<Kept>,
}

/// Connections that may serve another request.
#[derive(Default)]
struct Kept {
    idle: Vec<Idle>,
    shared: Option<Shared>,
}

struct Idle {
    connection: Box<Http1<Stream>>,
    since: Timestamp,
}

struct Shared {
    sender: http2::SendRequest<RequestBody>,
    born: Timestamp,
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
        let (max_idle, kept) = (Cell::new(max_idle), RefCell::default());
        Self(Rc::new(Pool { connector, outbox, scheme, authority, max_idle, idle_timeout, kept }))
    }

    /// Whether it connects by this one.
    pub fn is_over(&self, connector: &Connector) -> bool {
        self.0.connector.is(connector)
    }

    /// Closes what has been idle, or there, for too long, and what upstream has closed; to be called every second or so.
    pub fn close_idle(&self) {
        let (mut kept, now) = (self.0.kept.borrow_mut(), Timestamp::now());
        let mut nobody = Context::from_waker(Waker::noop());
        kept.idle.retain_mut(|idle| self.0.may_serve(idle, now) && idle.connection.is_quiet(&mut nobody));
        // What is under way over it goes on: it closes after the last answer.
        kept.shared.take_if(|shared| is_old(shared.born, now));
    }

    /// Keeps no connection from now on: another pool is asked in its place, and nobody closes what is idle in this one. What is
    /// under way goes on.
    pub fn retire(&self) {
        self.0.max_idle.set(0);
        self.0.kept.take();
    }
}

fn is_old(born: Timestamp, now: Timestamp) -> bool {
    now.since(born) >= MAX_AGE
}

impl Transport for Upstream {
    async fn send(&self, request: &mut Outgoing, journal: &Journal) -> Result<Answer, Box<TransportError>> {
        // A connection that was idle may have been closed just now; then nothing was written, and the next one is tried.
        while let Some(connection) = poll_fn(|cx| Poll::Ready(self.0.checkout(cx))).await {
            journal.written(true);
            match self.0.send_over(connection, request).await {
                Err(error) if error.delivery == Delivery::Never && request.body.is_some() => {
                    journal.written(false);
                }
                outcome => return outcome,
            }
        }
        let connection = match self.0.connector.connect(&self.0.outbox).await {
            Ok(connection) => connection,
            Err((fault, detail)) => {
                let delivery = Delivery::Never;
                return Err(Box::new(TransportError { fault, delivery, detail, caller: None }));
            }
        };
        if let Connection::Http2(sender, born) = &connection {
            self.0.kept.borrow_mut().shared = Some(Shared { sender: sender.clone(), born: *born });
        }
        journal.written(true);
        self.0.send_over(connection, request).await
    }
}

impl Pool {
    /// A connection that is ready to be asked by the task of this `cx`, the one used last first: the rest can grow old.
    fn checkout(&self, cx: &mut Context<'_>) -> Option<Connection> {
        let (mut kept, now) = (self.kept.borrow_mut(), Timestamp::this_turn());
        if let Some(shared) = &kept.shared
            && !shared.sender.is_closed()
            && !is_old(shared.born, now)
        {
            return Some(Connection::Http2(shared.sender.clone(), shared.born));
        }
        while let Some(mut candidate) = kept.idle.pop() {
            if self.may_serve(&candidate, now) && candidate.connection.is_quiet(cx) {
                return Some(Connection::Http1(candidate.connection));
            }
        }
        None
    }

    fn may_serve(&self, idle: &Idle, now: Timestamp) -> bool {
        now.since(idle.since) < self.idle_timeout && !is_old(idle.connection.born, now)
    }

    fn give_back(&self, connection: Box<Http1<Stream>>) {
        let since = Timestamp::this_turn();
        if is_old(connection.born, since) {
            return;
        }
        let idle = &mut self.kept.borrow_mut().idle;
        if idle.len() < self.max_idle.get() {
            idle.push(Idle { connection, since });
        }
    }

    /// A shared connection that takes no more requests is not offered again.
    fn forget(&self, of: Timestamp) {
        self.kept.borrow_mut().shared.take_if(|shared| shared.born == of);
    }

    /// Sends over one connection; where surely nothing was written, the request has its body still.
    async fn send_over(
        self: &Rc<Self>,
        connection: Connection,
        request: &mut Outgoing,
    ) -> Result<Answer, Box<TransportError>> {
        match connection {
            Connection::Http1(connection) => match &request.body {
                // Boxed: every request's future would have room for it.
                Some(RequestBody::Streaming(_)) => Box::pin(self.upload(connection, request)).await,
                Some(RequestBody::Empty | RequestBody::Held(_)) | None => self.ask(connection, request).await,
            },
            // Boxed for the same.
            Connection::Http2(sender, born) => Box::pin(self.share(sender, born, request)).await,
        }
    }

    /// Sends over the connection that all share.
    async fn share(
        &self,
        mut sender: http2::SendRequest<RequestBody>,
        born: Timestamp,
        request: &mut Outgoing,
    ) -> Result<Answer, Box<TransportError>> {
        let sent = sender.try_send_request(self.absolute(request)).await;
        sent.map(|response| answer(response, None)).map_err(|error| {
            let failed = unsent(error, request);
            if request.body.is_some() {
                self.forget(born);
            }
            failed
        })
    }

    /// Sends a request that is at hand whole, and reads its answer as far as it has come.
    async fn ask(
        self: &Rc<Self>,
        mut connection: Box<Http1<Stream>>,
        request: &mut Outgoing,
    ) -> Result<Answer, Box<TransportError>> {
        let mut head = match connection.ask(request).await {
            Ok(head) => head,
            Err(http1::Failed { fault, detail, unsent }) => {
                // TLS does not tell how many of its records left before one did not.
                let unsent = unsent && self.scheme == Scheme::HTTP;
                let delivery = if unsent { Delivery::Never } else { Delivery::Possible };
                return Err(Box::new(TransportError { fault, delivery, detail, caller: None }));
            }
        };
        let (whole, pool) = (connection.whole(&mut head), self.clone());
        let (stays, framing) = (head.stays, head.framing);
        let (body, lease): (_, Option<Box<dyn Lease>>) = match whole {
            Some(body) if stays => (Arriving::Held(body), Some(Box::new(Whole { pool, connection }))),
            Some(body) => (Arriving::Held(body), None),
            None => {
                let connection = Some(connection);
                (Arriving::Wire(Box::new(Rest { pool, connection, framing, stays })), None)
            }
        };
        Ok(Answer { head: head.parts, body, lease })
    }

    /// HTTP/2 wants the authority in the target and no `Host`.
    fn absolute(&self, request: &mut Outgoing) -> Request<RequestBody> {
        let mut request = request.to_request();
        request.headers_mut().remove(HOST);
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        // Scheme, authority and path are all there, so this is a URI. Were it none, the request would be refused without them.
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        request
    }
}

fn answer(response: Response<Incoming>, lease: Option<Box<dyn Lease>>) -> Answer {
    let (head, body) = response.into_parts();
    let body = body.map_err(|error| BodyError::Broken(error.into()));
    Answer { head, body: Arriving::Wire(Box::new(body)), lease }
}

/// What failed. Where surely nothing of it was written, `request` gets its body back.
fn unsent(mut error: TrySendError<Request<RequestBody>>, request: &mut Outgoing) -> Box<TransportError> {
    request.body = error.take_message().map(Request::into_body);
    let error = error.into_error();
    let unsent = request.body.is_some() || fault::is_unprocessed(&error);
    failed(&error, if unsent { Delivery::Never } else { Delivery::Possible })
}

fn failed(error: &hyper::Error, delivery: Delivery) -> Box<TransportError> {
    let (fault, detail, caller) = (fault::of_hyper(error), fault::chain(error), fault::of_caller(error));
    Box::new(TransportError { fault, delivery, detail, caller })
}

/// Gives the connection back when the answer, which has all come, was of use; dropped before, it closes that.
struct Whole {
    pool: Rc<Pool>,
    connection: Box<Http1<Stream>>,
}

impl Lease for Whole {
    fn finish(self: Box<Self>) {
        if let Some(connection) = self.connection.idle() {
            self.pool.give_back(connection);
        }
    }

    fn broken(self: Box<Self>, _: &BodyError) {}
}

/// A body that is read when it is asked for. Read to its end, it gives the connection back; dropped before, it closes that.
struct Rest {
    pool: Rc<Pool>,
    connection: Option<Box<Http1<Stream>>>,
    framing: Framing,
    stays: bool,
}

impl Body for Rest {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(connection) = &mut this.connection else { return Poll::Ready(None) };
        let data = ready!(connection.poll_body(cx, &mut this.framing));
        if matches!(data, Some(Err(_))) {
            this.connection = None;
        } else if this.framing == Framing::Length(0)
            && let Some(connection) = this.connection.take()
            && this.stays
            && let Some(connection) = connection.idle()
        {
            this.pool.give_back(connection);
        }
        Poll::Ready(data.map(|data| data.map(Frame::data).map_err(|error| BodyError::Broken(error.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Length(length) => SizeHint::with_exact(length),
            Framing::Chunked(_) | Framing::Close | Framing::Unclear => SizeHint::default(),
        }
    }
}

/// What upstream did when there is no more precise word for it.
const BROKE: UpstreamFault = UpstreamFault::ConnectionTerminated;
