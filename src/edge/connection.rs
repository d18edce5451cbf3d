//! One connection: bytes in, requests to the pipeline, bytes out.
//!
//! HTTP/1.1 and HTTP/2 on one port, told apart by ALPN or the connection preface. The parsers' own limits lie above ours,
//! so that a request that is too large is refused with a reason; what the parser itself cannot read gets a bare status.

use std::convert::Infallible;
use std::future::Future;
use std::hint;
use std::mem;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::yield_now;

use super::deadlines::{Call, FAREWELL, Limits, Overdue, Serving, Watch};
use super::executor::ThisThread;
use super::in_force::{Own, Place};
use super::wire::Wire;
use crate::body::{BodyError, Inbound, RequestBody, ResponseBody};
use crate::exchange::{Arrival, HadFragment, HadManyFields, HadTwoLengths};
use crate::pipeline::Answering;
use crate::rejection::PROXY_STATUS;
use crate::telemetry::labels::RefusedConnection;
use crate::telemetry::metrics::Metrics;
use crate::time::{sleep, timeout};

/// How long a connection that was just made is given for its first request when the proxy drains.
const FIRST: Duration = Duration::from_secs(1);

/// Streams of one HTTP/2 connection at once.
const MAX_STREAMS: u32 = 128;

/// Streams of one connection that may be reset for what the peer did wrong with them, or before anyone has looked at them.
const MAX_RESETS: usize = 32;

/// Bytes of an answer that are held for a peer that does not take them, per stream.
const MAX_UNSENT: usize = 64 * 1024;

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Bytes of a target.
    pub max_uri: usize,
    /// Bytes of the fields.
    pub max_header_bytes: usize,
    /// How long each phase of a connection may last.
    pub deadlines: Limits,
}

impl Rules {
    /// Bytes of a head that the parser of HTTP/1.1 takes.
    fn longest_head(&self) -> usize {
        (self.max_header_bytes + self.max_uri + 16 * 1024).max(64 * 1024)
    }
}

/// Serves connections.
pub struct Server {
    rules: Rules,
    http1: http1::Builder,
    http2: http2::Builder<ThisThread>,
    ready: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Serves by `rules`. Once it is not `ready` any more, callers are asked to go elsewhere next time.
    pub fn new(rules: Rules, ready: Arc<AtomicBool>, metrics: Arc<Metrics>) -> Self {
        let (longest, fields) = (rules.longest_head(), rules.max_header_bytes + rules.max_uri + 16 * 1024);
        let (mut http1, mut http2) = (http1::Builder::new(), http2::Builder::new(ThisThread));
        // No header_read_timeout, and no reading while a request is served: `deadlines` sees to both, at no cost per request.
        http1.header_read_timeout(None).half_close(true).max_buf_size(longest);
        // No pings: a slow reader answers them behind all that is on its way to it, and `deadlines` sees to who is gone.
        http2
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(fields).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS)
            .max_send_buf_size(MAX_UNSENT);
        Self { rules, http1, http2, ready, metrics }
    }

    /// How long each phase of a connection may last.
    pub fn deadlines(&self) -> Limits {
        self.rules.deadlines
    }

    /// Serves one connection to its end, each request by what is in force at its `place` when it arrives; `watch` tells
    /// when it is to end.
    pub async fn serve<I>(&self, io: I, peer: IpAddr, place: Place, watch: Rc<Watch>)
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let service = Requests { place, ready: self.ready.clone(), peer, watch: watch.clone() };
        let wire = Wire::new(io, watch.clone(), self.rules.longest_head());
        let state = State::Waits(Some((wire, service)));
        let mut connection = pin!(Connection { server: self, watch: &watch, state });
        let ended = match watch.attend(connection.as_mut(), false).await {
            Ok(ended) => ended,
            Err(Call::Overdue(overdue)) => return self.end(overdue, connection, &watch, peer).await,
            Err(Call::Drain) => {
                if !watch.has_begun() {
                    // Just made: its first request is on its way, and whoever sent it takes a reset for a failure.
                    tokio::select! {
                        _ = connection.as_mut() => return,
                        () = watch.first() => {}
                        () = sleep(FIRST) => {}
                    }
                }
                // What the kernel has taken for us already is read first, also what the runtime has not heard of yet.
                tokio::select! {
                    biased;
                    _ = connection.as_mut() => return,
                    () = yield_now() => {}
                }
                connection.as_mut().graceful_shutdown();
                match watch.attend(connection.as_mut(), true).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if watch.heads.was_flood() {
            self.metrics.connection_refused(RefusedConnection::Flood);
            tracing::debug!(%peer, "a connection was ended: it sent frames that bring nothing");
        } else if let Err(error) = ended
            && error.is_parse()
        {
            self.metrics.connection_refused(RefusedConnection::Parse);
            tracing::debug!(%error, "a request could not be parsed");
        }
    }
}

impl Server {
    /// Ends a connection that has been at something for too long.
    async fn end<I>(
        &self,
        overdue: Overdue,
        mut connection: Pin<&mut Connection<'_, I>>,
        watch: &Watch,
        peer: IpAddr,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        if overdue == Overdue::Head {
            self.metrics.connection_refused(RefusedConnection::HeaderTimeout);
        }
        if overdue == Overdue::Held {
            self.metrics.connection_refused(RefusedConnection::Flood);
            tracing::debug!(%peer, "a connection was ended: it asked for answers and left no window for them");
        }
        if overdue == Overdue::Idle {
            // HTTP/2 is told by GOAWAY, so that a request just on its way is sent elsewhere.
            connection.as_mut().graceful_shutdown();
            // It answers behind what it has not read yet: the kernel may have taken a lot that is still on its way.
            let farewell = async {
                while let Err(Call::Overdue(Overdue::Idle) | Call::Drain) =
                    watch.attend(connection.as_mut(), false).await
                {}
            };
            timeout(FAREWELL, farewell).await.ok();
        }
    }
}

/// One connection, as HTTP/1.1 or HTTP/2 once it shows which of them it is.
struct Connection<'s, I: AsyncRead + AsyncWrite + Unpin + 'static> {
    server: &'s Server,
    watch: &'s Watch,
    state: State<I>,
}

enum State<I: AsyncRead + AsyncWrite + Unpin + 'static> {
    /// For the first request or, among a crowd, for the next one; or for none any more.
    Waits(Option<(Wire<I>, Requests)>),
    /// Boxed, so that who rests gives back all of it: with 10,000 connections a hit takes 0.99 of what it does else.
    Http1(Box<http1::Connection<TokioIo<Wire<I>>, Requests>>),
    Http2(Box<http2::Connection<TokioIo<Wire<I>>, Requests, ThisThread>>),
}

impl<I: AsyncRead + AsyncWrite + Unpin + 'static> State<I> {
    /// Gives back what the library would keep for the next request (a head's fields, room to read and to write): nothing is
    /// under way.
    fn rest(&mut self) {
        match mem::replace(self, Self::Waits(None)) {
            Self::Http1(connection) => {
                let parts = connection.into_parts();
                debug_assert!(parts.read_buf.is_empty(), "something came behind the last request");
                *self = Self::Waits(Some((parts.io.into_inner(), parts.service)));
            }
            other => *self = other,
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin + 'static> Connection<'_, I> {
    /// What has begun is finished; then it ends.
    fn graceful_shutdown(self: Pin<&mut Self>) {
        let this = self.get_mut();
        match &mut this.state {
            State::Waits(parts) => {
                // One that was served closes as the library closes it: over TLS there is a farewell to send.
                if let Some((wire, service)) = parts.take().filter(|(wire, _)| wire.is_http1()) {
                    let mut connection = this.server.http1.serve_connection(TokioIo::new(wire), service);
                    Pin::new(&mut connection).graceful_shutdown();
                    this.state = State::Http1(Box::new(connection));
                }
            }
            State::Http1(connection) => Pin::new(&mut **connection).graceful_shutdown(),
            State::Http2(connection) => Pin::new(&mut **connection).graceful_shutdown(),
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin + 'static> Future for Connection<'_, I> {
    type Output = hyper::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        let Self { server, watch, state } = self.get_mut();
        loop {
            match state {
                State::Waits(parts) => {
                    let Some((wire, service)) = parts else { return Poll::Ready(Ok(())) };
                    // Among a crowd none of it is in the caches any more. Looked at here it comes at once; behind the kernel's
                    // call each line would be waited for alone.
                    hint::black_box((service.peer, watch.has_begun(), watch.heads.served()));
                    let multiplexes = ready!(wire.poll_begins(cx));
                    let (Ok(multiplexes), Some((wire, service))) = (multiplexes, parts.take()) else {
                        return Poll::Ready(Ok(()));
                    };
                    let io = TokioIo::new(wire);
                    *state = match multiplexes {
                        true => State::Http2(Box::new(server.http2.serve_connection(io, service))),
                        false => State::Http1(Box::new(server.http1.serve_connection(io, service))),
                    };
                }
                State::Http1(connection) => {
                    let poll = Pin::new(connection).poll(cx);
                    if poll.is_ready() || !watch.is_resting() {
                        return poll;
                    }
                    watch.rests(false);
                    state.rest();
                }
                State::Http2(connection) => return Pin::new(connection).poll(cx),
            }
        }
    }
}

/// The requests of one connection, handed to the pipeline.
struct Requests {
    place: Place,
    ready: Arc<AtomicBool>,
    peer: IpAddr,
    watch: Rc<Watch>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Served>;
    type Error = Infallible;
    type Future = Serve;

    fn call(&self, mut request: Request<Incoming>) -> Serve {
        let serving = Some(self.watch.serve());
        let version = request.version();
        let mut persistence = match version {
            Version::HTTP_2 => Persistence::Streams,
            // HTTP/1 has no other farewell: closing a connection that is idle may lose the request that is just on its way.
            _ if !self.ready.load(Ordering::Relaxed) => Persistence::None,
            _ if request.headers().contains_key(EXPECT) => Persistence::WithoutError,
            _ => Persistence::WithoutDoubt,
        };
        if let Some(seen) = self.watch.heads.next() {
            // Nothing behind it is read.
            persistence = Persistence::None;
            if seen.fragment {
                request.extensions_mut().insert(HadFragment);
            }
            if seen.two_lengths {
                request.extensions_mut().insert(HadTwoLengths);
            }
            if seen.many_fields {
                request.extensions_mut().insert(HadManyFields);
            }
        }
        let own = self.place.now();
        let request = request.map(|body| {
            if body.is_end_stream() {
                RequestBody::Empty
            } else {
                let in_force = &own.in_force;
                let inbound = Inbound::new(body, in_force.max_request_body, in_force.body_idle_timeout);
                RequestBody::Streaming(Box::new(inbound))
            }
        });
        // Over HTTP/2 it is its task that serves it, later: what it held until then would keep others out.
        let at_once = matches!(request.body(), RequestBody::Empty) && persistence != Persistence::Streams;
        let arrival = Arrival { request: Box::new(request), peer: self.peer };
        let (arrived, answering) = match at_once {
            // Most are answered here: their head is gone before more is read, and the connection's buffer serves again.
            true => (None, Some(own.lane.pipeline.serve(arrival))),
            false => (Some((own, arrival)), None),
        };
        Serve { arrived, answering, serving, persistence, version }
    }
}

/// Whether another request may come over the connection after this one's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Persistence {
    /// Requests of HTTP/2 have nothing to do with each other.
    Streams,
    /// Where it was understood: behind a request that could be read in two ways, the next one could begin in two places.
    WithoutDoubt,
    /// Where it was served: whoever was waiting for leave to send the body may or may not send it yet.
    WithoutError,
    /// No.
    None,
}

impl Persistence {
    fn ends_after<B>(self, response: &Response<B>) -> bool {
        let status = response.status();
        match self {
            Self::Streams => false,
            Self::WithoutDoubt => {
                let doubtful = matches!(
                    status,
                    StatusCode::BAD_REQUEST
                        | StatusCode::METHOD_NOT_ALLOWED
                        | StatusCode::REQUEST_TIMEOUT
                        | StatusCode::PAYLOAD_TOO_LARGE
                        | StatusCode::URI_TOO_LONG
                        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
                );
                // Of ours: upstream's are answers to requests that were understood.
                doubtful && response.headers().contains_key(PROXY_STATUS)
            }
            Self::WithoutError => status.is_client_error() || status.is_server_error(),
            Self::None => true,
        }
    }
}

/// A request on its way. One with a body, or over HTTP/2, is seen by no layer before this is polled: a layer that refuses a
/// request drops its body, and until then hyper does not look after it.
struct Serve {
    arrived: Option<(Rc<Own>, Arrival)>,
    answering: Option<Answering>,
    serving: Option<Serving>,
    persistence: Persistence,
    version: Version,
}

impl Future for Serve {
    type Output = Result<Response<Served>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some((own, arrival)) = this.arrived.take() {
            this.answering = Some(own.lane.pipeline.serve(arrival));
        }
        let Some(answering) = &mut this.answering else { return Poll::Pending };
        let Poll::Ready(Ok(mut response)) = answering.as_mut().poll(cx) else { return Poll::Pending };
        let last =
            this.serving.as_ref().is_some_and(Serving::is_last) && this.persistence != Persistence::Streams;
        if last || this.persistence.ends_after(&response) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut serving = this.serving.take();
        serving.iter_mut().for_each(Serving::moved);
        let body = response.body();
        let closes = this.version < Version::HTTP_11 && body.size_hint().exact().is_none();
        serving.iter().filter(|_| closes).for_each(Serving::ends_by_closing);
        Poll::Ready(Ok(response.map(|body| Served { body, serving, late: None })))
    }
}

/// A response's body; the request counts as served until it is dropped.
struct Served {
    body: ResponseBody,
    serving: Option<Serving>,
    /// What broke it off, told one turn late.
    late: Option<BodyError>,
}

impl Body for Served {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // The connection asks for more only when it could pass on what it had.
        self.serving.iter_mut().for_each(Serving::moved);
        if let Some(error) = self.late.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = frame {
            // The library lets go of what it has not sent by then, be it the head, and the peer would see nothing at all.
            self.late = Some(error);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.late.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
