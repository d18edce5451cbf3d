//! Forward: what goes to upstream, and what may come back.
//!
//! Only listed request fields go; the authority is rewritten, and the connection is chosen by configuration alone. What
//! comes back loses the fields that belong to the connection or speak for the upstream's own host, and is searched for
//! the secret: in the head at once, in a short body before anything is sent, in a stream as it passes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, USER_AGENT,
};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, StatusCode, response};
use http_body::Body;
use http_body_util::BodyExt;
use tower::{Layer, Service};

use crate::body::{Arriving, BodyError, Lease, Outbound, RequestBody, ResponseBody, Upload};
use crate::exchange::{Answered, Armed, Delivery, Exchange, Failure, Journal, RequestId};
use crate::rejection::{Rejection, UpstreamFault};
use crate::telemetry::health::UpstreamHealth;
use crate::telemetry::labels::Label;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{AttemptSpan, Sent};
use crate::time::{Instant, Timers, Timestamp, ready_by, this_turn};

mod fault;
mod fields;
mod outgoing;
mod receipt;

pub use fault::TransportError;
use fault::{failure, possible, too_late};
use fields::Told;
pub use outgoing::Outgoing;
use receipt::Receipt;

/// Request fields that are passed on, beside the operator's own.
const ALLOWED: [HeaderName; 6] = [
    ACCEPT,
    CONTENT_TYPE,
    HeaderName::from_static("metorial-version"),
    USER_AGENT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Request fields that are ours alone, whatever the operator lists.
const OURS: [HeaderName; 7] =
    [HOST, ACCEPT_ENCODING, IF_NONE_MATCH, IF_MODIFIED_SINCE, REQUEST_ID, CONTENT_LENGTH, AUTHORIZATION];

/// A body of known length up to this is read whole before the head is sent: head and body leave in one write, and a
/// fault in it can still become a 502.
const GATHERED: u64 = 64 * 1024;

/// How long the first of a body of unknown length is waited for before the head is sent: what breaks at once can still
/// become a 502, and whoever has a head and nothing else to say is not kept from saying it.
const BEGINS: Duration = Duration::from_millis(100);

/// An answer as the transport received it.
pub struct Answer {
    /// Status and fields.
    pub head: response::Parts,
    /// The body, as it comes.
    pub body: Arriving,
    /// Gives the connection back once the body was read.
    pub lease: Option<Box<dyn Lease>>,
}

/// What carries a request to upstream and its answer back.
pub trait Transport: Clone + Send + Sync + 'static {
    /// Sends one request. Notes in the journal when it begins to write.
    fn send(
        &self,
        request: &mut Outgoing,
        journal: &Journal,
    ) -> impl Future<Output = Result<Answer, Box<TransportError>>> + Send;
}

/// How requests are sent on.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The secret goes to this authority and nowhere else.
    pub authority: Authority,
    /// Path prefix of the API: empty, or `/a/b`.
    pub base_path: String,
    /// Request fields passed on beside the built-in list.
    pub forward_headers: Vec<HeaderName>,
    /// From a request's first byte to the head of its response.
    pub attempt_timeout: Duration,
    /// Longest silence while a body streams.
    pub body_idle_timeout: Duration,
}

/// Sends requests on.
#[derive(Clone)]
pub struct ForwardLayer(Arc<Shared>);

struct Shared {
    rules: Rules,
    host: HeaderValue,
    metrics: Arc<Metrics>,
    health: Arc<UpstreamHealth>,
    traces: Option<Sent>,
    timers: Timers,
}

impl ForwardLayer {
    /// Sends by `rules`, from one worker.
    pub fn new(
        mut rules: Rules,
        metrics: Arc<Metrics>,
        health: Arc<UpstreamHealth>,
        traces: Option<Sent>,
    ) -> Self {
        // An authority is ASCII without control characters.
        let host = HeaderValue::from_str(rules.authority.as_str()).unwrap_or(HeaderValue::from_static(""));
        rules.forward_headers.retain(|name| !OURS.contains(name));
        let timers = Timers::default();
        Self(Arc::new(Shared { rules, host, metrics, health, traces, timers }))
    }
}

impl<T> Layer<T> for ForwardLayer {
    type Service = Forward<T>;

    fn layer(&self, transport: T) -> Forward<T> {
        Forward { transport, shared: self.0.clone() }
    }
}

/// See [`ForwardLayer`].
#[derive(Clone)]
pub struct Forward<T> {
    transport: T,
    shared: Arc<Shared>,
}

impl<T: Transport> Service<Exchange<Armed>> for Forward<T> {
    type Response = Response<ResponseBody>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, exchange: Exchange<Armed>) -> Self::Future {
        let (shared, transport) = (self.shared.clone(), self.transport.clone());
        Box::pin(async move {
            // Both are read where they are: what is moved here has two places in what is allocated for the request.
            let (stage, journal) = (&exchange.stage, &exchange.journal);
            let mut received = exchange.request;
            let Some(target) = target(&shared.rules.base_path, stage.permit.target().path_and_query()) else {
                return Err(Failure::refused(
                    Rejection::BadRequest("the target is too long".into()),
                    received.into_body(),
                ));
            };
            let mut outgoing = shared.outgoing(&mut received, target, stage, &journal.request_id);
            let span = shared.begin(stage, journal, &mut outgoing.fields);
            let upload = match &outgoing.body {
                Some(RequestBody::Streaming(inbound)) => Some(inbound.upload()),
                Some(RequestBody::Empty | RequestBody::Held(_)) | None => None,
            };
            journal.mended();
            let call = Call { stage, journal, started: this_turn(), upload };
            // While a body streams up, the caller's pace is not upstream's fault: then only the deadline counts.
            let due = match call.upload {
                Some(_) => exchange.deadline,
                None => exchange.deadline.min(call.started + shared.rules.attempt_timeout),
            };
            let sent = shared.timers.by(due, transport.send(&mut outgoing, journal)).await;
            let outcome = sent.unwrap_or_else(|| Err(too_late(call.is_callers_turn())));
            let mut answered = match shared.received(outcome, &call, span) {
                Ok(answer) => {
                    let mut accepted = shared.accept(answer, &call);
                    if let Ok(response) = &mut accepted
                        && let Err(failure) = read_ahead(response, due).await
                    {
                        accepted = Err(failure);
                    }
                    shared.judge(&accepted, journal);
                    accepted
                }
                Err(failure) => Err(failure),
            };
            let again = match &mut answered {
                Ok(response) => response.status() == StatusCode::TOO_MANY_REQUESTS,
                Err(failure) => {
                    failure.body = outgoing.body.take();
                    true
                }
            };
            if again {
                shared.restore(&mut received, *outgoing);
                journal.leave(received);
            }
            answered
        })
    }
}

impl Shared {
    /// The request as upstream sees it, made of what was received.
    fn outgoing(
        &self,
        received: &mut Request<RequestBody>,
        target: PathAndQuery,
        stage: &Armed,
        id: &RequestId,
    ) -> Box<Outgoing> {
        let mut outgoing = Box::new(Outgoing::new(stage.permit.method().clone(), target));
        let body = std::mem::take(received.body_mut());
        let bodyless = matches!(body, RequestBody::Empty);
        let fields = &mut outgoing.fields;
        // More than most have.
        fields.reserve(12);
        fields.push((HOST, self.host.clone()));
        let mut last = None;
        for (name, value) in received.headers_mut().drain() {
            // It names the first line of each name alone.
            last = name.or(last);
            let Some(name) = &last else { continue };
            // The API takes a Content-Type for the promise of a body and answers 400 where none comes.
            let misleads = bodyless && *name == CONTENT_TYPE;
            if self.passes(name) && !misleads {
                fields.push((name.clone(), value));
            }
        }
        fields.push((ACCEPT_ENCODING, HeaderValue::from_static("identity")));
        // The cache's own question: a caller's is answered from the page.
        if let Some(unless) = &stage.unless {
            let lines = [IF_NONE_MATCH, IF_MODIFIED_SINCE].into_iter().zip(unless.iter());
            fields.extend(lines.filter_map(|(name, value)| Some((name, value.clone()?))));
        }
        fields.push((REQUEST_ID, id.field()));
        // A method that means a body says how long it is, also where it is empty (RFC 9110 §8.6).
        if bodyless && matches!(outgoing.method, Method::POST | Method::PUT | Method::PATCH) {
            fields.push((CONTENT_LENGTH, HeaderValue::from_static("0")));
        }
        // None that was received passes: this is the only credential.
        fields.push((AUTHORIZATION, stage.authorization.clone()));
        outgoing.body = Some(body);
        outgoing.room = std::mem::take(received.headers_mut());
        outgoing
    }

    fn passes(&self, name: &HeaderName) -> bool {
        ALLOWED.contains(name) || self.rules.forward_headers.contains(name)
    }

    /// What was received, as far as it passes: where it has to be sent again, it is made of the same once more.
    fn restore(&self, received: &mut Request<RequestBody>, outgoing: Outgoing) {
        let mut fields = outgoing.room;
        fields.clear();
        for (name, value) in outgoing.fields {
            if self.passes(&name) {
                fields.append(name, value);
            }
        }
        *received.headers_mut() = fields;
    }

    /// The span of this attempt, where there is one for the request.
    fn begin(
        &self,
        stage: &Armed,
        journal: &Journal,
        fields: &mut Vec<(HeaderName, HeaderValue)>,
    ) -> Option<AttemptSpan> {
        let (traces, parent) = (self.traces.as_ref()?, journal.trace.get()?);
        let (method, route) = (stage.permit.method(), stage.permit.route().template.as_str());
        let resent = journal.attempts().saturating_sub(1);
        Some(traces.begin(parent, method, route, resent, fields))
    }

    /// What came of an attempt: an answer, and what it says of our key.
    fn received(
        &self,
        outcome: Result<Answer, Box<TransportError>>,
        call: &Call<'_>,
        span: Option<AttemptSpan>,
    ) -> Result<Answer, Failure> {
        let (method, environment) = (call.stage.permit.method(), call.stage.permit.environment());
        let environment = environment.environment.name.as_str();
        let answer = match outcome {
            Ok(answer) => answer,
            Err(mut error) => {
                // Not every library tells that it was the caller's body that broke; the body itself does.
                error.caller = error.caller.or_else(|| Some(call.upload.as_ref()?.broke()?.into()));
                if error.caller.is_none() {
                    let failure = failure(error.fault);
                    self.metrics.client.record(method, Err(failure), environment, this_turn() - call.started);
                    if let Some(span) = span {
                        span.failed(failure.as_str());
                    }
                }
                return Err(self.failed(*error, call.request_id()));
            }
        };
        let status = answer.head.status;
        if let Some(span) = span {
            span.answered(status.as_u16());
        }
        self.metrics.client.record(method, Ok(status.as_u16()), environment, this_turn() - call.started);
        self.health.set_healthy(!status.is_server_error());
        if status == StatusCode::UNAUTHORIZED {
            self.metrics.upstream_credentials_refused(environment);
            let (request_id, key) = (call.request_id(), &call.stage.key);
            let fingerprint = key.fingerprint();
            if key.refused() {
                tracing::warn!(
                    request_id,
                    environment,
                    fingerprint,
                    other = key.other_fingerprint(),
                    "upstream refused a secret key: the other one is tried"
                );
                let rejection = Rejection::UpstreamCredentials;
                return Err(Failure { rejection, delivery: Delivery::KeyRefused(key.which()), body: None });
            }
            key.set_ok(false);
            tracing::error!(
                request_id,
                environment,
                fingerprint,
                "upstream refused our secret key with 401: check that it is current and not revoked"
            );
            return Err(possible(Rejection::UpstreamCredentials));
        }
        call.stage.key.set_ok(true);
        // Any other answer of the API's own comes after it has looked at the key; its edge's may not.
        let judged = !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS;
        if judged && call.stage.key.accepted() {
            tracing::warn!(
                environment,
                fingerprint = call.stage.key.fingerprint(),
                before = call.stage.key.other_fingerprint(),
                "another secret key is in use from now on: make it the environment's secret_key"
            );
        }
        Ok(answer)
    }

    /// Tells of an answer that is of no use.
    fn judge(&self, accepted: &Result<Response<ResponseBody>, Failure>, journal: &Journal) {
        if let Err(Failure { rejection: Rejection::Upstream(fault), .. }) = accepted {
            self.health.set_healthy(false);
            let request_id = &*journal.request_id;
            tracing::warn!(request_id, error = fault.name(), "upstream's answer is of no use");
        }
    }

    /// Cleans the head and searches it; the body, where there is one, is still to come.
    fn accept(self: &Arc<Self>, answer: Answer, call: &Call<'_>) -> Result<Response<ResponseBody>, Failure> {
        let Answer { mut head, body, lease } = answer;
        if head.status.is_informational() {
            return Err(possible(Rejection::Upstream(UpstreamFault::HttpProtocol)));
        }
        if head.status == StatusCode::TOO_MANY_REQUESTS {
            // What counts is that it said so: whatever is wrong with its body, which nobody gets to see, the gate must shut.
            return Ok(anew(head, ResponseBody::empty()));
        }
        let told = Told::of(&head);
        if !told.framed_plainly {
            return Err(possible(Rejection::Upstream(UpstreamFault::HttpProtocol)));
        }
        if told.coded {
            return Err(possible(Rejection::Upstream(UpstreamFault::UnexpectedCoding)));
        }
        let end_untold = told.end_untold && matches!(body, Arriving::Wire(_)) && !body.is_end_stream();
        let (sent, had_cookie) = (Timestamp::of(call.started), told.cookie);
        call.journal.answered(Answered { sent, had_cookie, end_untold });
        told.clean(&mut head.headers);
        if head.status == StatusCode::NO_CONTENT {
            head.headers.remove(CONTENT_LENGTH);
        }
        let guard = &call.stage.guard;
        let found = |(name, value): (&HeaderName, &HeaderValue)| {
            guard.found_in(value.as_bytes()) || guard.found_in_name(name.as_str())
        };
        let receipt = Receipt { lease, shared: self.clone(), journal: call.journal.clone() };
        if head.headers.iter().any(found) {
            receipt.guarded();
            return Err(possible(Rejection::SecretGuard));
        }
        let scan = Some(guard.scan());
        let body = Outbound::new(body, scan, self.rules.body_idle_timeout, Some(Box::new(receipt)));
        Ok(anew(head, ResponseBody::streaming(body)))
    }

    fn failed(&self, error: TransportError, request_id: &str) -> Failure {
        if let Some(rejection) = error.caller {
            return Failure { rejection, delivery: Delivery::Possible, body: None };
        }
        if error.fault != UpstreamFault::OutOfConnections {
            self.health.set_healthy(false);
        }
        tracing::warn!(request_id, error = error.fault.name(), detail = error.detail, "upstream failed");
        Failure { rejection: Rejection::Upstream(error.fault), delivery: error.delivery, body: None }
    }
}

/// One attempt under way.
struct Call<'a> {
    stage: &'a Armed,
    journal: &'a Arc<Journal>,
    started: Instant,
    /// Where the caller's body streams: how far it is.
    upload: Option<Arc<Upload>>,
}

impl Call<'_> {
    fn request_id(&self) -> &str {
        &self.journal.request_id
    }

    /// Whether upstream could not answer in time, because the caller has not sent all of its body.
    fn is_callers_turn(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| !upload.is_whole())
    }
}

/// The answer made anew: the version is of upstream's connection, and its extensions hold its own reason phrase.
fn anew(head: response::Parts, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

/// Origin form: the authority is the connection's business. `None`: both together are longer than a target can be.
fn target(base_path: &str, target: &PathAndQuery) -> Option<PathAndQuery> {
    if base_path.is_empty() {
        return Some(target.clone());
    }
    PathAndQuery::try_from(format!("{base_path}{target}")).ok()
}

/// Reads a short body whole, and of one that is of unknown length the first; a longer one is left to come.
async fn read_ahead(response: &mut Response<ResponseBody>, due: Instant) -> Result<(), Failure> {
    let read = match response.body().size_hint().exact() {
        Some(length) if length <= GATHERED => {
            match ready_by(due, gather(response.body_mut(), length)).await {
                Ok(gathered) => gathered.map(ResponseBody::full),
                Err(_) => return Err(possible(Rejection::Upstream(UpstreamFault::ResponseTimeout))),
            }
        }
        None if !fields::is_event_stream(response.headers()) => {
            begun(std::mem::replace(response.body_mut(), ResponseBody::empty()), due).await
        }
        _ => return Ok(()),
    };
    match read {
        Ok(body) => {
            *response.body_mut() = body;
            Ok(())
        }
        Err(BodyError::Secret) => Err(possible(Rejection::SecretGuard)),
        Err(_) => Err(possible(Rejection::Upstream(UpstreamFault::ConnectionTerminated))),
    }
}

/// A body of which some has come, or has not come yet.
async fn begun(mut body: ResponseBody, due: Instant) -> Result<ResponseBody, BodyError> {
    let first = match ready_by(due.min(this_turn() + BEGINS), body.frame()).await {
        Ok(Some(frame)) => frame?.into_data().unwrap_or_default(),
        Ok(None) | Err(_) => return Ok(body),
    };
    Ok(body.preceded_by(first))
}

async fn gather(body: &mut ResponseBody, length: u64) -> Result<Bytes, BodyError> {
    let mut whole: Option<BytesMut> = None;
    let mut first = Bytes::new();
    while let Some(frame) = body.frame().await {
        let data = frame?.into_data().unwrap_or_default();
        match &mut whole {
            Some(whole) => whole.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let mut both = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
                both.extend_from_slice(&first);
                both.extend_from_slice(&data);
                whole = Some(both);
            }
        }
    }
    Ok(whole.map_or(first, BytesMut::freeze))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_put_behind_the_upstreams_base_path() {
        let asked = PathAndQuery::from_static("/providers?limit=1");
        assert_eq!(target("", &asked), Some(asked.clone()));
        assert_eq!(target("/v1", &asked), Some(PathAndQuery::from_static("/v1/providers?limit=1")));
        let long = PathAndQuery::try_from(format!("/{}", "x".repeat(60_000))).expect("a path");
        assert_eq!(target(&format!("/{}", "y".repeat(10_000)), &long), None);
    }
}
