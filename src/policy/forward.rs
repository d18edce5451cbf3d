//! Forward: what goes to upstream, and what may come back.
//!
//! Only listed request fields go; the authority is rewritten, and the connection is chosen by configuration alone. What
//! comes back loses the fields that belong to the connection or speak for the upstream's own host, and is searched for
//! the secret: in the head at once, in a short body before anything is sent, in a stream as it passes.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, USER_AGENT,
};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, StatusCode, response};
use http_body::Body;
use tower::{Layer, Service};

use crate::body::{Arriving, Lease, Outbound, RequestBody, ResponseBody, Upload};
use crate::exchange::{Answered, Armed, Delivery, Exchange, Failure, Journal, RequestId, Unserved};
use crate::rejection::{Rejection, UpstreamFault};
use crate::telemetry::health::UpstreamHealth;
use crate::telemetry::labels::Label;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{AttemptSpan, Sent};
use crate::time::{Instant, Timers, Timestamp, this_turn};

mod ahead;
mod fault;
mod fields;
mod outgoing;
mod receipt;

use ahead::read_ahead;
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
pub trait Transport: Clone + 'static {
    /// Sends one request. Notes in the journal when it begins to write.
    fn send(
        &self,
        request: &mut Outgoing,
        journal: &Journal,
    ) -> impl Future<Output = Result<Answer, Box<TransportError>>>;
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
pub struct ForwardLayer(Rc<Shared>);

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
        Self(Rc::new(Shared { rules, host, metrics, health, traces, timers }))
    }
}

impl<T> Layer<T> for ForwardLayer {
    type Service = Forward<T>;

    fn layer(&self, transport: T) -> Forward<T> {
        Forward(Rc::new(Stack { shared: self.0.clone(), transport }))
    }
}

/// See [`ForwardLayer`].
#[derive(Clone)]
pub struct Forward<T>(Rc<Stack<T>>);

struct Stack<T> {
    shared: Rc<Shared>,
    transport: T,
}

impl<T: Transport> Service<Exchange<Armed>> for Forward<T> {
    type Response = Response<ResponseBody>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Failure>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut exchange: Exchange<Armed>) -> Self::Future {
        let stack = self.0.clone();
        // Small, because all of it is copied to its box, with the room for what comes later: so what is moved in is used where
        // it is, or it would have two places, and what few need is a box of its own. With this and the two futures around it of
        // half their size, and cells instead of locks, a pass-through takes 0.975 of what it did.
        Box::pin(async move {
            let Stack { shared, transport } = &*stack;
            let (stage, journal, received) = (&exchange.stage, &exchange.journal, &mut exchange.request);
            let Some(target) = target(&shared.rules.base_path, stage.permit.target().path_and_query()) else {
                let rejection = Rejection::BadRequest("the target is too long".into());
                return Err(Failure::refused(rejection, std::mem::take(received.body_mut())));
            };
            let mut outgoing = shared.outgoing(received, target, stage, &journal.request_id);
            let span = shared.begin(stage, journal, &mut outgoing.fields);
            let upload = match &outgoing.body {
                Some(RequestBody::Streaming(inbound)) => Some(inbound.upload()),
                Some(RequestBody::Empty | RequestBody::Held(_)) | None => None,
            };
            let call = Call { stage, journal, started: this_turn(), upload };
            // While a body streams up, the caller's pace is not upstream's fault: then only the deadline counts.
            let due = match call.upload {
                Some(_) => exchange.deadline,
                None => exchange.deadline.min(call.started + shared.rules.attempt_timeout),
            };
            let sent = shared.timers.by(due, transport.send(&mut outgoing, call.journal)).await;
            let outcome = sent.unwrap_or_else(|| Err(too_late(call.is_callers_turn())));
            let mut answered = shared.received(outcome, &call, span).and_then(|answer| {
                let accepted = shared.accept(answer, &call);
                accepted.inspect_err(|failure| shared.is_of_no_use(failure, &call))
            });
            if let Ok(response) = &mut answered
                && !response.body().is_at_hand()
                && let Err(failure) = Box::pin(read_ahead(response, due)).await
            {
                shared.is_of_no_use(&failure, &call);
                answered = Err(failure);
            }
            let again = match &mut answered {
                Ok(response) => response.status() == StatusCode::TOO_MANY_REQUESTS,
                Err(failure) => {
                    failure.body = outgoing.body.take();
                    true
                }
            };
            if again {
                let Exchange { mut request, stage: Armed { permit, unless, .. }, journal, .. } = exchange;
                shared.restore(&mut request, *outgoing);
                journal.leave_unserved(Unserved { request, permit, unless });
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
    fn is_of_no_use(&self, failure: &Failure, call: &Call<'_>) {
        if let Rejection::Upstream(fault) = &failure.rejection {
            self.health.set_healthy(false);
            let request_id = call.request_id();
            tracing::warn!(request_id, error = fault.name(), "upstream's answer is of no use");
        }
    }

    /// Cleans the head and searches it, and the body where that came whole; else it is still to come.
    fn accept(self: &Rc<Self>, answer: Answer, call: &Call<'_>) -> Result<Response<ResponseBody>, Failure> {
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
        let comes = matches!(&body, Arriving::Wire(body) if !body.is_end_stream());
        let end_untold = told.end_untold && comes;
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
        let in_body = |body: &Arriving| matches!(body, Arriving::Held(bytes) if guard.found_in(bytes));
        if head.headers.iter().any(found) || in_body(&body) {
            self.guarded(call.journal);
            return Err(possible(Rejection::SecretGuard));
        }
        let body = match body {
            // Most short answers come whole, with their head: their connection serves the next one from here on.
            Arriving::Held(bytes) => {
                if let Some(lease) = lease {
                    lease.finish();
                }
                ResponseBody::full(bytes)
            }
            Arriving::Wire(body) => {
                let receipt = Receipt { lease, shared: self.clone(), journal: call.journal.clone() };
                let (scan, idle) = (Some(guard.scan()), self.rules.body_idle_timeout);
                ResponseBody::streaming(Outbound::new(body, scan, idle, Some(Box::new(receipt))))
            }
        };
        Ok(anew(head, body))
    }

    /// Upstream told our secret key; nobody gets to see it.
    fn guarded(&self, journal: &Journal) {
        self.metrics.secret_guard();
        journal.broke("secret_guard");
        tracing::error!(request_id = &*journal.request_id, "an answer held our secret key and was withheld");
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
    journal: &'a Rc<Journal>,
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
