//! Cache: list pages, one upstream request for all who ask, and writes that make pages unreachable.
//!
//! Below authorize, or a page would be served to anyone; above the budgets, so that a hit costs nothing. A fill runs in its
//! own task: the caller that began it may leave. A write that may have succeeded changes the generation of its
//! collection before its answer is passed on, so no caller misses its own write in a list it asks for afterwards.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{ACCEPT, AGE, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use http::{Method, Response, StatusCode};
use pin_project_lite::pin_project;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};

use crate::body::ResponseBody;
use crate::config::Cache as Config;
use crate::domain::operation::collection;
use crate::domain::page_key::{PageKey, Parts};
use crate::exchange::{CacheStatus, Exchange, Journal, Permit, Permitted};
use crate::rejection::{Limit, Rejection};
use crate::store::pages::{Page, PageStore};
use crate::telemetry::labels::CacheResult;
use crate::telemetry::metrics::Metrics;
use crate::time::{Timestamp, timeout_at};

mod fill;
mod write;

pub use fill::Fills;
use fill::Outcome;

/// `metorial-version`
const VERSION: HeaderName = HeaderName::from_static("metorial-version");

/// Room for the fields that this layer and those outside add to a page's own.
const ADDED: usize = 12;

/// How long before its deadline a request gives up waiting for a page.
const LATE: Duration = Duration::from_millis(50);

/// Serves list pages.
pub struct CacheLayer<P>(Arc<Shared<P>>);

/// What the layer is made of.
pub struct CacheParts<P> {
    /// Where pages live.
    pub pages: Arc<P>,
    /// Fills under way.
    pub fills: Arc<Fills>,
    /// `[cache]`.
    pub config: Config,
    /// Request fields that go upstream beside the built-in ones: each may change an answer, so each is in the key.
    pub forward_headers: Vec<HeaderName>,
    /// How long a fill may take.
    pub request_timeout: Duration,
    /// Every task that outlives its request: drain waits for them.
    pub tasks: TaskTracker,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

type Shared<P> = CacheParts<P>;

impl<P> CacheLayer<P> {
    /// `parts.pages` and `parts.fills` outlive the pipeline.
    pub fn new(parts: CacheParts<P>) -> Self {
        Self(Arc::new(parts))
    }
}

impl<P, S> Layer<S> for CacheLayer<P> {
    type Service = Cache<P, S>;

    fn layer(&self, inner: S) -> Cache<P, S> {
        Cache { inner, shared: self.0.clone() }
    }
}

/// See [`CacheLayer`].
pub struct Cache<P, S> {
    inner: S,
    shared: Arc<Shared<P>>,
}

impl<P, S: Clone> Clone for Cache<P, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<P, S> Service<Exchange<Permitted>> for Cache<P, S>
where
    P: PageStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<ResponseBody>;
    type Error = Rejection;
    type Future = Caching<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<Permitted>) -> Self::Future {
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = self.shared.clone();
        match concern(&exchange.stage.permit, shared.config.enabled) {
            Concern::Page => Caching::Boxed { future: Box::pin(page(shared, inner, exchange)) },
            Concern::Write => Caching::Boxed { future: Box::pin(write::write(shared, inner, exchange)) },
            Concern::None { list } => {
                if list {
                    exchange.journal.cache(CacheStatus::Bypass);
                    shared.metrics.cache(CacheResult::Bypass);
                }
                Caching::Direct { future: inner.call(exchange) }
            }
        }
    }
}

type Boxed = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Rejection>> + Send>>;

pin_project! {
    /// A request that is none of the cache's business passes without a box.
    #[project = CachingProjection]
    #[expect(missing_docs, reason = "the macro takes no comment on a field of a variant")]
    pub enum Caching<F> {
        /// Passed on.
        Direct {
            #[pin]
            future: F
        },
        /// A page or a write.
        Boxed {
            future: Boxed
        },
    }
}

impl<F> Future for Caching<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Rejection>>,
{
    type Output = Result<Response<ResponseBody>, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            CachingProjection::Direct { future } => future.poll(cx),
            CachingProjection::Boxed { future } => future.as_mut().poll(cx),
        }
    }
}

/// What a request is to the cache.
#[derive(Debug, PartialEq, Eq)]
enum Concern {
    Page,
    Write,
    None { list: bool },
}

fn concern(permit: &Permit, enabled: bool) -> Concern {
    let reads = matches!(*permit.method(), Method::GET | Method::HEAD);
    let route = permit.route();
    match reads {
        true if route.list && !route.returns_secret && enabled => Concern::Page,
        true => Concern::None { list: route.list },
        false => Concern::Write,
    }
}

async fn page<P, S>(
    shared: Arc<Shared<P>>,
    inner: S,
    exchange: Exchange<Permitted>,
) -> Result<Response<ResponseBody>, Rejection>
where
    P: PageStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + Send + 'static,
    S::Future: Send,
{
    let asked = Asked::of(&exchange);
    let key = shared.key(&exchange).await;
    let now = Timestamp::now();
    let kept = shared.pages.get(&key).await;
    if let Some(page) = kept.as_ref().filter(|page| page.is_fresh(now)) {
        shared.metrics.cache(CacheResult::Hit);
        asked.journal.cache(CacheStatus::Hit { ttl: page.ttl(now), detail: None });
        return Ok(asked.answer(page, Some(now)));
    }
    // Boxed, so that a hit, whose future is made for both, is not made larger by a fill.
    // A little before the request's own deadline, so that a stale page can still take the place of a late one.
    let due = exchange.deadline.checked_sub(LATE).unwrap_or(exchange.deadline);
    let filled = timeout_at(due, Box::pin(fill::fill(&shared, key, inner, exchange))).await;
    let (outcome, collapsed) = filled.unwrap_or((Outcome::Failed(Rejection::DeadlineExceeded), false));
    if let Some(stale) = kept.as_ref().and_then(|page| shared.stale(page, &outcome)) {
        shared.metrics.cache(CacheResult::Stale);
        asked.journal.cache(stale.status);
        return Ok(asked.answer(stale.page, Some(Timestamp::now())));
    }
    shared.metrics.cache(if collapsed { CacheResult::Coalesced } else { CacheResult::Miss });
    let stored = matches!(outcome, Outcome::Page { stored: true, .. });
    asked.journal.cache(CacheStatus::Miss { stored, collapsed, expired: kept.is_some() });
    match outcome {
        Outcome::Page { page, .. } => Ok(asked.answer(&page, None)),
        Outcome::Other(answer) => {
            let body =
                if asked.head { ResponseBody::empty() } else { ResponseBody::full(answer.body.clone()) };
            let mut response = Response::new(body);
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers.clone();
            Ok(response)
        }
        Outcome::Own(response) => Ok(response),
        Outcome::Failed(rejection) => Err(rejection),
    }
}

/// A stale page, and what is said of it.
struct Stale<'p> {
    page: &'p Page,
    status: CacheStatus,
}

impl<P: PageStore> Shared<P> {
    async fn key(&self, exchange: &Exchange<Permitted>) -> PageKey {
        let permit = &exchange.stage.permit;
        let (environment, target) = (permit.environment(), permit.target());
        let headers = exchange.request.headers();
        let mut fields = Vec::with_capacity(2 + self.forward_headers.len());
        fields.extend([lines(headers, &VERSION), lines(headers, &ACCEPT)]);
        fields.extend(self.forward_headers.iter().map(|name| lines(headers, name)));
        let fields: Vec<Option<&[u8]>> = fields.iter().map(Option::as_deref).collect();
        let environment = &environment.environment;
        // By budget: environments with one secret see each other's writes. The page itself is of one environment.
        let generation = self.pages.generation(&environment.budget, collection(target.path())).await;
        let environment = environment.name.as_str();
        PageKey::of(&Parts {
            environment,
            generation,
            path: target.path(),
            query: target.query(),
            fields: &fields,
        })
    }

    /// Whether a page we have is better than what came instead of a new one.
    fn stale<'p>(&self, page: &'p Page, outcome: &Outcome) -> Option<Stale<'p>> {
        let now = Timestamp::now();
        let ttl = page.ttl(now);
        let too_old = page.age(now) > page.fresh_for + self.config.stale_if_error;
        let status = match outcome {
            Outcome::Failed(Rejection::RateLimited { limit, .. }) => {
                let detail = if *limit == Limit::Upstream { "gate" } else { "budget" };
                CacheStatus::Hit { ttl, detail: Some(detail) }
            }
            Outcome::Failed(Rejection::Upstream(_) | Rejection::DeadlineExceeded) => {
                CacheStatus::StaleOnError { status: None }
            }
            Outcome::Other(answer) if answer.status.is_server_error() => {
                CacheStatus::StaleOnError { status: Some(answer.status.as_u16()) }
            }
            _ => return None,
        };
        (!too_old).then_some(Stale { page, status })
    }
}

/// What one caller wants of a page.
struct Asked {
    head: bool,
    if_none_match: Vec<HeaderValue>,
    journal: Arc<Journal>,
}

impl Asked {
    fn of(exchange: &Exchange<Permitted>) -> Self {
        Self {
            head: *exchange.stage.permit.method() == Method::HEAD,
            if_none_match: exchange.request.headers().get_all(IF_NONE_MATCH).iter().cloned().collect(),
            journal: exchange.journal.clone(),
        }
    }

    /// `now`: the page comes from the cache, so its age is told.
    fn answer(&self, page: &Page, now: Option<Timestamp>) -> Response<ResponseBody> {
        let unchanged = self.if_none_match.iter().any(|line| names(line.as_bytes(), page.etag.as_bytes()));
        let body = if unchanged || self.head {
            ResponseBody::empty()
        } else {
            ResponseBody::full(page.body.clone())
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.reserve(page.headers.len() + ADDED);
        for (name, value) in &page.headers {
            headers.append(name.clone(), value.clone());
        }
        headers.insert(ETAG, page.etag.clone());
        if let Some(now) = now {
            headers.insert(AGE, HeaderValue::from(page.age(now).as_secs()));
        }
        if unchanged {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else if self.head {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(page.body.len()));
        }
        response
    }
}

/// All lines of a field, as they go upstream: each of them may change the answer.
fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Cow<'h, [u8]>> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = lines.next()?;
    Some(lines.fold(Cow::Borrowed(first), |mut all, line| {
        // A line holds no line break.
        all.to_mut().push(b'\n');
        all.to_mut().extend_from_slice(line);
        all
    }))
}

/// Whether an `If-None-Match` line names `etag` (weak comparison, RFC 9110 §13.1.2).
fn names(line: &[u8], etag: &[u8]) -> bool {
    let opaque = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag).to_vec();
    let etag = opaque(etag);
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|tag| tag == b"*" || opaque(tag) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_none_match_is_compared_weakly() {
        for (line, expected) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(names(line.as_bytes(), b"\"a\""), expected, "{line}");
            assert_eq!(names(line.as_bytes(), b"W/\"a\""), expected, "{line}");
        }
    }
}
