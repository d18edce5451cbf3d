//! What would happen to a request, and why: asked of the very layers that decide on it when it comes by a socket.
//!
//! The stack below is the pipeline down to the permit. It cannot drift from it: the layers are made by the same function,
//! and the types of their stages leave no other order. Cache and upstream are not asked.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, ORIGIN, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde_json::{Number, Value};
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceBuilder, ServiceExt};

use super::StartError;
use super::assembly::{Lasting, Setup, layers};
use crate::body::{RequestBody, ResponseBody};
use crate::config::Config;
use crate::edge::state_file::Past;
use crate::exchange::{Exchange, HadFragment, HadTwoLengths, Journal, Permitted, Received};
use crate::rejection::Rejection;
use crate::telemetry::metrics::Metrics;
use crate::time::Instant;

/// A request as it would come, without a body.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// Its method, as written.
    pub method: String,
    /// Its target, as written: path and query, base path included.
    pub target: String,
    /// The key of its `Authorization` field.
    pub key: Option<String>,
    /// Its `Origin`.
    pub origin: Option<String>,
    /// Further fields; a `host` among them stands instead of one that is accepted.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// `allow` or `refuse`.
    pub decision: &'static str,
    /// What the caller would get; 200 stands for whatever upstream answers.
    pub status: u16,
    /// The error's code.
    pub code: Option<String>,
    /// On whose behalf.
    pub environment: Option<String>,
    /// What opened the route, or whose constraint was broken.
    pub rule: Option<String>,
    /// The route's template.
    pub route: Option<String>,
    /// Whether its answer is kept.
    pub cache: Cached,
    /// The limits it would draw on.
    pub limits: Vec<&'static str>,
    /// Why.
    pub reason: String,
    /// What would open it.
    pub hint: Option<String>,
    /// What a shadow rule would have refused.
    pub shadow: Option<Shadow>,
}

/// Whether an answer is kept.
#[derive(Debug, Clone, Serialize)]
pub struct Cached {
    /// It is a page of a list.
    pub list: bool,
    /// Seconds it is fresh for, where upstream does not say otherwise.
    pub ttl: Option<Number>,
}

/// What a shadow rule would have refused.
#[derive(Debug, Clone, Serialize)]
pub struct Shadow {
    /// Where it stands.
    pub rule: String,
    /// Why.
    pub reason: String,
}

/// Longest body of a refusal.
const REFUSAL: usize = 64 * 1024;

/// Asks.
///
/// # Errors
/// What keeps the proxy from starting.
pub async fn explain(config: &Config, question: &Question) -> Result<Explanation, StartError> {
    let lasting = Lasting::new(config, Arc::new(Metrics::new()), Past::default(), None, None)?;
    let setup = Setup::first(config, &lasting)?;
    let layers = layers(&setup, &lasting, &TaskTracker::new());
    let Some(request) = request(config, question) else { return Ok(unreadable()) };
    let stack = ServiceBuilder::new()
        .layer(layers.cors)
        .layer(layers.respond)
        .layer(layers.catch_panic)
        .layer(layers.admit)
        .layer(layers.deadline)
        .layer(layers.identify)
        .layer(layers.client_limit)
        .layer(layers.authenticate)
        .layer(layers.authorize)
        .service(Reached);
    let journal = Arc::new(Journal::new("req_explain".into()));
    let stage = Received { peer: IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let exchange = Exchange { request, stage, deadline: Instant::now(), journal: journal.clone() };
    let response: Result<_, Infallible> = stack.oneshot(exchange).await;
    let response = match response {
        Ok(response) => response,
        Err(never) => match never {},
    };
    Ok(told(config, &journal, response).await)
}

/// The request as a connection would hand it over; `None`: its parser would not.
fn request(config: &Config, question: &Question) -> Option<Request<RequestBody>> {
    let mut request = Request::new(RequestBody::Empty);
    *request.method_mut() = Method::from_bytes(question.method.as_bytes()).ok()?;
    *request.uri_mut() = Uri::try_from(question.target.as_str()).ok()?;
    if question.target.contains('#') {
        request.extensions_mut().insert(HadFragment);
    }
    let headers = request.headers_mut();
    headers.extend(question.fields.iter().cloned().map(|(name, value)| (Some(name), value)));
    let two_lengths = headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING);
    if !headers.contains_key(HOST) {
        let host = config.server.hosts.first().map_or("localhost", String::as_str);
        headers.insert(HOST, HeaderValue::from_str(host).ok()?);
    }
    if let Some(key) = &question.key {
        headers.append(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {key}")).ok()?);
    }
    if let Some(origin) = &question.origin {
        headers.append(ORIGIN, HeaderValue::from_str(origin).ok()?);
    }
    if two_lengths {
        request.extensions_mut().insert(HadTwoLengths);
    }
    Some(request)
}

/// What no parser takes is answered by the connection itself.
fn unreadable() -> Explanation {
    Explanation {
        decision: "refuse",
        status: StatusCode::BAD_REQUEST.as_u16(),
        code: None,
        environment: None,
        rule: None,
        route: None,
        cache: Cached { list: false, ttl: None },
        limits: Vec::new(),
        reason: "This is no HTTP request: method, target or a field holds what none may hold.".to_owned(),
        hint: None,
        shadow: None,
    }
}

async fn told(config: &Config, journal: &Journal, response: Response<ResponseBody>) -> Explanation {
    let (status, route) = (response.status(), journal.route.get());
    let environment = journal.environment.get().map(|handle| &*handle.environment);
    let refused = status.is_client_error() || status.is_server_error();
    let preflight = status == StatusCode::NO_CONTENT;
    let body = if refused { problem(response).await } else { Value::Null };
    let said = |key: &str| body[key].as_str().map(str::to_owned);
    let reason = match route.filter(|_| !refused) {
        Some(route) => format!("{} opens {}.", route.rule, route.template),
        None if preflight => "A preflight: it is answered here and costs nothing.".to_owned(),
        None => said("message").unwrap_or_default(),
    };
    let list = config.cache.enabled && route.is_some_and(|route| route.list && !route.returns_secret);
    let ttl = environment.filter(|_| list).and_then(|environment| {
        let own = route.and_then(|route| route.ttl);
        seconds(own.unwrap_or(environment.ttl))
    });
    let limits: &[_] = match (preflight, refused) {
        (true, _) => &[],
        (_, true) => &["client"],
        (_, false) => &["client", "environment", "egress"],
    };
    Explanation {
        decision: if refused { "refuse" } else { "allow" },
        status: status.as_u16(),
        code: said("code"),
        environment: environment.map(|environment| environment.name.clone()),
        rule: route.map(|route| route.rule.clone()).or_else(|| journal.refusing_rule.get().cloned()),
        route: route
            .map(|route| route.template.clone())
            .or_else(|| journal.refused_route.get().map(|template| (*template).to_owned())),
        cache: Cached { list, ttl },
        limits: limits.to_vec(),
        reason,
        hint: said("hint"),
        shadow: journal
            .shadow
            .get()
            .map(|shadow| Shadow { rule: shadow.rule.clone(), reason: shadow.message.clone() }),
    }
}

/// What the caller would read.
async fn problem(response: Response<ResponseBody>) -> Value {
    let body = Limited::new(response.into_body(), REFUSAL).collect().await;
    body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok()).unwrap_or_default()
}

/// Whole where it is whole.
fn seconds(duration: Duration) -> Option<Number> {
    match duration.subsec_nanos() {
        0 => Some(duration.as_secs().into()),
        _ => Number::from_f64(duration.as_secs_f64()),
    }
}

/// The end of the way: it may be done.
#[derive(Clone)]
struct Reached;

impl Service<Exchange<Permitted>> for Reached {
    type Response = Response<ResponseBody>;
    type Error = Rejection;
    type Future = Ready<Result<Self::Response, Rejection>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Exchange<Permitted>) -> Self::Future {
        ready(Ok(Response::new(ResponseBody::empty())))
    }
}
