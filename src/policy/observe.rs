//! Observe: request id, duration, access log.
//!
//! Outermost, because a refusal is a served request too. The caller's `X-Request-Id` is kept where it is sane, so that one
//! id runs through the caller's log, ours and upstream's. A request is over when the last byte of its response has been
//! handed to the connection, or when the caller has left.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::HeaderName;
use http::{HeaderMap, Method, Response};
use memchr::memmem;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::body::{ResponseBody, Tail};
use crate::domain::access::METHODS;
use crate::exchange::{Arrival, Exchange, Journal, MINTED, Received, RequestId};
use crate::telemetry::durations::UNMATCHED;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{End, RequestSpan, Served};
use crate::time::{Timestamp, look};

/// `X-Request-Id`
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a response that never was is recorded as: the caller left (nginx's 499).
const CALLER_LEFT: u16 = 499;

/// Observes every request.
#[derive(Clone)]
pub struct ObserveLayer(Rc<Shared>);

struct Shared {
    metrics: Arc<Metrics>,
    access_log: bool,
    traces: Option<Served>,
}

impl ObserveLayer {
    /// `access_log`: one line per request.
    pub fn new(metrics: Arc<Metrics>, access_log: bool, traces: Option<Served>) -> Self {
        Self(Rc::new(Shared { metrics, access_log, traces }))
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, shared: self.0.clone() }
    }
}

/// See [`ObserveLayer`].
#[derive(Clone)]
pub struct Observe<S> {
    inner: S,
    shared: Rc<Shared>,
}

impl<S> Service<Arrival> for Observe<S>
where
    S: Service<Exchange<Received>, Response = Response<ResponseBody>, Error = Infallible>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, arrival: Arrival) -> Self::Future {
        let started = look();
        let journal = Rc::new(Journal::new(request_id(arrival.request.headers())));
        let span = self.shared.traces.as_ref().map(|traces| Box::new(traces.begin(&arrival.request)));
        if let Some(span) = &span {
            // This is the first to write it.
            journal.trace.set(Box::new(span.context().clone())).ok();
        }
        self.shared.metrics.in_flight.enter();
        let record = Record {
            shared: self.shared.clone(),
            journal: journal.clone(),
            method: arrival.request.method().clone(),
            started: Timestamp::of(started),
            status: CALLER_LEFT,
            bytes: 0,
            span,
        };
        let record = Some(Box::new(record));
        let stage = Received { peer: arrival.peer };
        let exchange = Exchange { request: arrival.request, stage, deadline: started, journal };
        Observing { future: self.inner.call(exchange), record }
    }
}

pin_project! {
    /// Waits for the response and ties the record to its body.
    pub struct Observing<F> {
        #[pin]
        future: F,
        record: Option<Box<Record>>,
    }
}

impl<F> Future for Observing<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Infallible>>,
{
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Poll::Ready(Ok(mut response)) = this.future.poll(cx) else { return Poll::Pending };
        if let Some(mut record) = this.record.take() {
            record.status = response.status().as_u16();
            response.headers_mut().insert(REQUEST_ID, record.journal.request_id.field());
            response.body_mut().set_tail(record);
        }
        Poll::Ready(Ok(response))
    }
}

/// What is said about a request when it is over.
struct Record {
    shared: Rc<Shared>,
    journal: Rc<Journal>,
    method: Method,
    started: Timestamp,
    status: u16,
    bytes: u64,
    span: Option<Box<RequestSpan>>,
}

impl Tail for Record {
    fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.shared.metrics.in_flight.leave();
        // As of this turn; what was served within it would else have taken no time.
        let now =
            Some(Timestamp::this_turn()).filter(|now| *now > self.started).unwrap_or_else(Timestamp::now);
        let elapsed = now.since(self.started);
        let refused = self.journal.refused_route.get().copied().unwrap_or(UNMATCHED);
        let route = self.journal.route().map_or(refused, |route| route.template.as_str());
        self.shared.metrics.server.record(&self.method, self.status, route, elapsed);
        if let Some(span) = self.span.take() {
            self.end(*span, route);
        }
        if !self.shared.access_log {
            return;
        }
        let rejection = self.journal.rejection();
        tracing::info!(
            target: "access",
            request_id = %self.journal.request_id,
            // A method of the caller's own invention could hold anything.
            method = if METHODS.contains(&self.method) { self.method.as_str() } else { "_OTHER" },
            route,
            status = self.status,
            duration_ms = elapsed.as_secs_f64() * 1e3,
            bytes = self.bytes,
            environment = self.journal.environment().map(|handle| handle.environment.name.as_str()),
            cache = self.journal.cache_status().map(|status| status.text()),
            attempts = self.journal.attempts(),
            broken = self.journal.broken(),
            code = rejection.as_ref().map(|rejection| rejection.code()),
            trace_id = self.journal.trace.get().map(|span| tracing::field::display(span.trace_id())),
            "request"
        );
    }
}

impl Record {
    fn end(&self, span: RequestSpan, route: &str) {
        let left = self.status == CALLER_LEFT;
        let rejection = self.journal.rejection().filter(|_| self.status >= 500);
        let failed = rejection.as_ref().map(|rejection| rejection.code());
        span.end(End {
            route: Some(route).filter(|route| *route != UNMATCHED),
            status: Some(self.status).filter(|_| !left),
            error: self.journal.broken().or(failed).or(left.then_some("cancelled")),
            request_id: &self.journal.request_id,
            environment: self.journal.environment().map(|handle| handle.environment.name.as_str()),
            cache: self.journal.cache_status().map(|status| status.text()),
        });
    }
}

/// The caller's id where it is sane, else one of ours.
fn request_id(headers: &HeaderMap) -> RequestId {
    let theirs = headers.get(REQUEST_ID).filter(|id| is_sane(id.as_bytes()));
    theirs.cloned().and_then(RequestId::new).unwrap_or_else(mint)
}

/// It is logged and passed on, so a key in its place is none.
fn is_sane(id: &[u8]) -> bool {
    (1..=128).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && memmem::find(id, b"metorial_").is_none()
}

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// `req_` and 20 characters: 118 random bits.
fn mint() -> RequestId {
    let mut id: [u8; MINTED] = *b"req_--------------------";
    // Ten letters a draw, because 62¹⁰ is below 2⁶⁴; each is the whole part of what the one before has left, times 62.
    for letters in id[4..].chunks_exact_mut(10) {
        let mut left = fastrand::u64(..);
        for letter in letters {
            let product = u128::from(left) * 62;
            *letter = ALPHABET[usize::try_from(product >> 64).unwrap_or_default()];
            left = product as u64;
        }
    }
    RequestId::minted(id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use http::Request;
    use tower::service_fn;

    use super::*;
    use crate::body::RequestBody;
    use crate::time::turn;

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn what_is_served_within_one_turn_takes_its_time_too() {
        let metrics = Arc::new(Metrics::new());
        let mut service = ObserveLayer::new(metrics.clone(), false, None).layer(service_fn(|_| async {
            // The clock goes on as soon as this is polled.
            assert!(tokio::time::advance(Duration::from_secs(1)).now_or_never().is_none());
            Ok(Response::new(ResponseBody::empty()))
        }));
        let peer = std::net::Ipv4Addr::LOCALHOST.into();
        let arrival = Arrival { request: Box::new(Request::new(RequestBody::Empty)), peer };
        turn(|| assert!(service.call(arrival).now_or_never().is_some()));
        let served = metrics.tally().server;
        assert_eq!((served.count(), served.buckets[0]), (1, 0));
    }

    #[test]
    fn a_sane_id_of_the_caller_is_kept_and_any_other_replaced() {
        let id = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, value.parse().expect("a value"));
            request_id(&headers).to_string()
        };
        assert_eq!(id("trace-1.2_3"), "trace-1.2_3");
        for insane in ["", "metorial_sk_abc", "a b", "x\ty", "a/b", "\u{e9}", &"x".repeat(129)] {
            assert!(id(insane).starts_with("req_") && id(insane).len() == 24, "{insane:?}");
        }
        assert_ne!(*request_id(&HeaderMap::new()), *request_id(&HeaderMap::new()));
    }
}
