//! What would happen to a request, and why: asked of the very layers that decide on it when it comes by a socket.
//!
//! The stack below is the pipeline down to the permit. It cannot drift from it: the layers are made by the same function,
//! and the types of their stages leave no other order. Cache and upstream are not asked.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderValue, ORIGIN, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use serde_json::{Number, Value};
use tokio_util::task::TaskTracker;
use tower::layer::layer_fn;
use tower::{Service, ServiceBuilder, ServiceExt};

use super::StartError;
use super::assembly::{Lasting, Setup, layers};
use crate::body::{RequestBody, ResponseBody};
use crate::config::Config;
use crate::domain::key::{KeyDigest, PUBLISHABLE_PREFIX};
pub use crate::edge::admin::explanation::{Cached, Caller, Explanation, Layer, Question, Said, Shadow};
use crate::edge::state_file::Past;
use crate::exchange::{Exchange, HadFragment, HadTwoLengths, Journal, Permitted, Received};
use crate::policy::authenticate::{AuthenticateLayer, Callers};
use crate::rejection::Rejection;
use crate::telemetry::metrics::Metrics;
use crate::time::Instant;

/// Longest body of a refusal.
const REFUSAL: usize = 64 * 1024;

/// Asks.
///
/// # Errors
/// What keeps the proxy from starting.
pub fn explain(config: &Config, question: &Question) -> Result<Explanation, StartError> {
    // Upstream is not asked, and nothing else has anyone wait.
    let explained = decided(config, question).now_or_never();
    explained.unwrap_or_else(|| Err(StartError::new("explain", "a layer had the question wait")))
}

async fn decided(config: &Config, question: &Question) -> Result<Explanation, StartError> {
    let lasting = Lasting::new(config, Arc::new(Metrics::new()), Past::default(), None, None)?;
    let setup = Setup::first(config, &lasting)?;
    let mut layers = layers(&setup, &lasting, &TaskTracker::new());
    let key = match &question.caller {
        Caller::Keyless => None,
        Caller::Key(key) => Some(key.clone()),
        Caller::Environment(name) => {
            let (key, callers) = one_more_key(&setup, name);
            layers.authenticate =
                AuthenticateLayer::new(callers, setup.clients.clone(), lasting.metrics.clone());
            Some(key)
        }
    };
    let Some(request) = request(config, question, key.as_deref()) else { return Ok(unreadable()) };
    let passed = Passed::default();
    let stack = ServiceBuilder::new()
        .layer(layers.cors)
        .layer(passed.mark(0))
        .layer(layers.respond)
        .layer(layers.catch_panic)
        .layer(layers.admit)
        .layer(passed.mark(1))
        .layer(layers.deadline)
        .layer(layers.identify)
        .layer(passed.mark(2))
        .layer(layers.client_limit)
        .layer(passed.mark(3))
        .layer(layers.authenticate)
        .layer(passed.mark(4))
        .layer(layers.authorize)
        .layer(passed.mark(5))
        .service(Reached);
    let journal = Rc::new(Journal::of("req_explain"));
    let stage = Received { peer: question.client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)) };
    let request = Box::new(request);
    let exchange = Exchange { request, stage, deadline: Instant::now(), journal: journal.clone() };
    let response: Result<_, Infallible> = stack.oneshot(exchange).await;
    let response = match response {
        Ok(response) => response,
        Err(never) => match never {},
    };
    Ok(told(config, &journal, passed.count(), response).await)
}

/// Those that decide, from the outside in; the cache and what lies below are not asked.
const DECIDING: [&str; 6] = ["cors", "admit", "identify", "client_limit", "authenticate", "authorize"];

/// How many of [`DECIDING`] let the request pass.
#[derive(Debug, Clone, Default)]
struct Passed(Arc<AtomicUsize>);

impl Passed {
    /// Stands behind the layer at this place, and is reached only if that one lets the request pass.
    fn mark<S>(&self, at: usize) -> impl tower::Layer<S, Service = Mark<S>> + use<S> {
        let passed = self.clone();
        layer_fn(move |inner| Mark { inner, passed: passed.clone(), at })
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Mark<S> {
    inner: S,
    passed: Passed,
    at: usize,
}

impl<S: Service<R>, R> Service<R> for Mark<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.passed.0.store(self.at + 1, Ordering::Relaxed);
        self.inner.call(request)
    }
}

/// A publishable key for this one question, and callers among whom it is one of the environment's.
fn one_more_key(setup: &Setup, name: &str) -> (String, Callers) {
    let random: String = (0..32).map(|_| fastrand::alphanumeric()).collect();
    let key = format!("{PUBLISHABLE_PREFIX}{random}");
    let index = setup.environments.iter().position(|handle| handle.environment.name == name);
    let keyring = (*setup.keyring).clone().and(index.map(|index| (KeyDigest::of(key.as_bytes()), index)));
    (key, Callers::new(Arc::new(keyring), &setup.handles()))
}

/// The request as a connection would hand it over; `None`: its parser would not.
fn request(config: &Config, question: &Question, key: Option<&str>) -> Option<Request<RequestBody>> {
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
    if let Some(key) = key {
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
        layers: Vec::new(),
    }
}

async fn told(
    config: &Config,
    journal: &Journal,
    passed: usize,
    response: Response<ResponseBody>,
) -> Explanation {
    let (status, route) = (response.status(), journal.route());
    let environment = journal.environment().map(|handle| &*handle.environment);
    let refused = status.is_client_error() || status.is_server_error();
    let preflight = status == StatusCode::NO_CONTENT;
    let body = if refused { problem(response).await } else { Value::Null };
    let stated = |key: &str| body[key].as_str().map(str::to_owned);
    let reason = match route.filter(|_| !refused) {
        Some(route) => format!("{} opens {}.", route.rule, route.template),
        None if preflight => "A preflight: it is answered here and costs nothing.".to_owned(),
        None => stated("message").unwrap_or_default(),
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
        code: stated("code"),
        environment: environment.map(|environment| environment.name.clone()),
        rule: route.map(|route| route.rule.clone()).or_else(|| journal.refusing_rule.get().cloned()),
        route: route
            .map(|route| route.template.clone())
            .or_else(|| journal.refused_route.get().map(|template| (*template).to_owned())),
        cache: Cached { list, ttl },
        limits: limits.to_vec(),
        reason,
        hint: stated("hint"),
        shadow: journal
            .shadow
            .get()
            .map(|shadow| Shadow { rule: shadow.rule.clone(), reason: shadow.message.clone() }),
        layers: said(passed, refused),
    }
}

/// What each layer said, of which `passed` let the request pass.
fn said(passed: usize, refused: bool) -> Vec<Layer> {
    let said = |at: usize| match at.cmp(&passed) {
        std::cmp::Ordering::Less => Said::Passed,
        std::cmp::Ordering::Equal if refused => Said::Refused,
        std::cmp::Ordering::Equal => Said::Answered,
        std::cmp::Ordering::Greater => Said::NotReached,
    };
    DECIDING.iter().enumerate().map(|(at, layer)| Layer { layer, said: said(at) }).collect()
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
