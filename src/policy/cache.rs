//! Cache: list pages, one upstream request for all who ask, and writes that make pages unreachable.
//!
//! Below authorize, or a page would be served to anyone; above the budgets, so that a hit costs nothing. A fill runs in its
//! own task: the caller that began it may leave. A write that may have succeeded changes the generation of its
//! collection before its answer is passed on, so no caller misses its own write in a list it asks for afterwards. Where
//! replicas share pages all of that holds for all of them together.

use std::borrow::Borrow as _;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response};
use pin_project_lite::pin_project;
use smallvec::{SmallVec, smallvec};
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};

use crate::body::ResponseBody;
use crate::config::Cache as Config;
use crate::domain::operation::collection;
use crate::domain::page_key::{PageKey, Parts};
use crate::exchange::{CacheStatus, DroppedCredential, Exchange, Kept, Permit, Permitted};
use crate::rejection::{Limit, PROXY_STATUS, Rejection};
use crate::store::limits::{BudgetId, LimitStore};
use crate::store::pages::{Entry, Page, PageStore, lines};
use crate::telemetry::labels::CacheResult;
use crate::telemetry::metrics::Metrics;
use crate::time::{Timestamp, timeout_at};

mod asked;
mod fill;
mod fills;
mod made;
mod outcome;
mod prefetch;
mod usable;
mod write;

use asked::Asked;
use fill::Wanted;
pub use fills::Fills;
use outcome::{Outcome, Source};
use usable::{Room, Standing, Usable, Wishes, may_stand_in, stretched, usable};

/// `metorial-version`
const VERSION: HeaderName = HeaderName::from_static("metorial-version");

/// How long before its deadline a request gives up waiting for a page.
const LATE: Duration = Duration::from_millis(50);

/// Serves list pages.
pub struct CacheLayer<P, L>(Rc<Shared<P, L>>);

/// What the layer is made of.
pub struct CacheParts<P, L> {
    /// Where pages live.
    pub pages: Arc<P>,
    /// What is left of the budgets.
    pub limits: Arc<L>,
    /// The budget of our own address.
    pub egress: BudgetId,
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

type Shared<P, L> = CacheParts<P, L>;

impl<P, L> CacheLayer<P, L> {
    /// `parts.pages` and `parts.fills` outlive the pipeline.
    pub fn new(parts: CacheParts<P, L>) -> Self {
        Self(Rc::new(parts))
    }
}

impl<P, L, S> Layer<S> for CacheLayer<P, L> {
    type Service = Cache<P, L, S>;

    fn layer(&self, inner: S) -> Cache<P, L, S> {
        Cache { inner, shared: self.0.clone() }
    }
}

/// See [`CacheLayer`].
pub struct Cache<P, L, S> {
    inner: S,
    shared: Rc<Shared<P, L>>,
}

impl<P, L, S: Clone> Clone for Cache<P, L, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<P, L, S> Service<Exchange<Permitted>> for Cache<P, L, S>
where
    P: PageStore,
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + Clone + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Rejection;
    type Future = Caching<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange<Permitted>) -> Self::Future {
        let shared = &self.shared;
        match concern(&exchange.stage.permit, shared.config.enabled) {
            Concern::Page => match shared.fresh(&mut exchange) {
                Some(answer) => Caching::AtHand { answer: Some(answer) },
                None => {
                    let (shared, inner) = (shared.clone(), self.inner.clone());
                    Caching::Boxed { future: Box::pin(page(shared, inner, exchange)) }
                }
            },
            Concern::Write => {
                let (shared, inner) = (shared.clone(), self.inner.clone());
                Caching::Boxed { future: Box::pin(write::write(shared, inner, exchange)) }
            }
            Concern::None { list } => {
                if list {
                    exchange.journal.cache(CacheStatus::Bypass);
                    shared.metrics.cache(CacheResult::Bypass);
                }
                Caching::Direct { future: self.inner.call(exchange) }
            }
        }
    }
}

type Boxed = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Rejection>>>>;

pin_project! {
    /// What is answered at once, and what is none of the cache's business, passes without a box.
    #[project = CachingProjection]
    #[expect(missing_docs, reason = "the macro takes no comment on a field of a variant")]
    pub enum Caching<F> {
        /// Passed on.
        Direct {
            #[pin]
            future: F
        },
        /// A fresh page of this process.
        AtHand {
            answer: Option<Response<ResponseBody>>
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
            // Polled again after it was ready, which no caller does, it would say that we failed.
            CachingProjection::AtHand { answer } => Poll::Ready(answer.take().ok_or(Rejection::Internal)),
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

async fn page<P, L, S>(
    shared: Rc<Shared<P, L>>,
    inner: S,
    exchange: Exchange<Permitted>,
) -> Result<Response<ResponseBody>, Rejection>
where
    P: PageStore,
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + Clone + 'static,
{
    let (asked, journal) =
        (Asked::of(&exchange, shared.config.honor_client_directives), exchange.journal.clone());
    let (primary, known) = shared.key(&exchange).await;
    let (varied, kept) = shared.look_up(&primary, exchange.request.headers()).await;
    let now = Timestamp::now();
    let credential = exchange.request.extensions().get::<DroppedCredential>().is_some();
    let wanted = |kept: Option<Arc<Page>>| {
        let key = varied.unwrap_or_else(|| primary.clone());
        Wanted { key, primary, kept, credential }
    };
    if let Some(page) = kept.as_ref() {
        // How things stand costs a look at the budgets, which a page that is fresh in any case can do without.
        let permit = &exchange.stage.permit;
        let fresh = usable(page, &asked.wishes, &shared.plainly(permit, known), now);
        let judged = match fresh {
            Usable::Fresh(_) => fresh,
            _ => usable(page, &asked.wishes, &shared.standing(permit, known), now),
        };
        let (ttl, detail) = match judged {
            Usable::Fresh(ttl) => (Some(ttl), None),
            Usable::Stale { ttl, detail, .. } => (Some(ttl), detail),
            Usable::No => (None, None),
        };
        if let Some(ttl) = ttl {
            let is_fresh = matches!(judged, Usable::Fresh(_));
            shared.metrics.cache(if is_fresh { CacheResult::Hit } else { CacheResult::Stale });
            journal.cache(CacheStatus::Hit { ttl, detail });
            let answer = asked.answer(page, true, now, HeaderMap::new());
            let keeps = !shared.forbids(exchange.request.headers());
            if matches!(judged, Usable::Stale { refresh: true, .. }) && keeps {
                fill::refresh(&shared, wanted(kept), inner, exchange);
            } else if shared.config.prefetch.enabled {
                prefetch::ahead(&shared, inner, &exchange, page).await;
            }
            return Ok(answer);
        }
    }
    let had = kept.as_ref().map_or(Kept::Nothing, |page| {
        match usable(page, &Wishes::default(), &shared.plainly(&exchange.stage.permit, known), now) {
            Usable::Fresh(_) => Kept::Fresh,
            _ => Kept::Stale,
        }
    });
    if asked.wishes.only_if_cached {
        journal.cache(CacheStatus::NotKept);
        return Err(Rejection::NotKept);
    }
    let paging = shared.config.prefetch.enabled.then(|| (inner.clone(), exchange.bodyless()));
    let permit = exchange.stage.permit.clone();
    // Boxed, so that a hit, whose future is made for both, is not made larger by a fill.
    // A little before the request's own deadline, so that a stale page can still take the place of a late one.
    let due = exchange.deadline.checked_sub(LATE).unwrap_or(exchange.deadline);
    let fill = Box::pin(fill::fill(&shared, wanted(kept.clone()), inner, exchange));
    let (outcome, collapsed) =
        timeout_at(due, fill).await.unwrap_or((Outcome::Failed(Rejection::DeadlineExceeded), false));
    if let Some(page) = &kept
        && asked.wishes.lets_stand_in()
        && let Some(status) = shared.stands_in(page, &outcome, &permit, known)
    {
        shared.metrics.cache(CacheResult::Stale);
        journal.cache(status);
        let mut answer = asked.answer(page, true, Timestamp::now(), HeaderMap::new());
        answer.headers_mut().extend(failed_with(&outcome).map(|told| (PROXY_STATUS, told)));
        return Ok(answer);
    }
    let (stored, validated, collapsed) = match &outcome {
        Outcome::Page(filled) => {
            (filled.stored, filled.validated, collapsed || filled.source == Source::Replica)
        }
        _ => (false, false, collapsed),
    };
    match &outcome {
        Outcome::Page(filled) if filled.source == Source::Store => {
            let plainly = shared.plainly(&permit, known);
            let ttl = filled.page.ttl(Timestamp::now(), usable::lifetime(&filled.page, &plainly));
            shared.metrics.cache(CacheResult::Hit);
            journal.cache(CacheStatus::Hit { ttl, detail: None });
        }
        _ => {
            shared.metrics.cache(if collapsed { CacheResult::Coalesced } else { CacheResult::Miss });
            journal.cache(CacheStatus::Miss { stored, collapsed, kept: had, validated });
        }
    }
    match outcome {
        Outcome::Page(filled) => {
            if let Some((inner, exchange)) = paging {
                prefetch::ahead(&shared, inner, &exchange, &filled.page).await;
            }
            let kept = filled.validated || filled.source != Source::Upstream;
            Ok(asked.answer(&filled.page, kept, Timestamp::now(), HeaderMap::new()))
        }
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

impl<P: PageStore, L: LimitStore> Shared<P, L> {
    /// A page of this process that is fresh whatever is left of the budgets, where nobody has to be waited for to know: most
    /// requests end here, without the future that all others need.
    fn fresh(&self, exchange: &mut Exchange<Permitted>) -> Option<Response<ResponseBody>> {
        let (permit, headers) = (&exchange.stage.permit, exchange.request.headers());
        let generation = self.pages.generation_at_hand(budget(permit), collection(permit.target().path()))?;
        let key = self.with_parts(permit, headers, generation.number, |parts| parts.bytes());
        let page = match self.pages.at_hand(&key)? {
            Entry::Page(page) => page,
            Entry::Varies(names) => {
                let key = varied(&PageKey::from(key), &names, headers);
                match self.pages.at_hand(key.borrow())? {
                    Entry::Page(page) => page,
                    Entry::Varies(_) => return None,
                }
            }
        };
        // Whoever is paging may have the next one fetched.
        if self.config.prefetch.enabled && page.next_after.is_some() {
            return None;
        }
        let (asked, now) = (Asked::of(exchange, self.config.honor_client_directives), Timestamp::this_turn());
        let standing = self.plainly(permit, generation.known);
        let Usable::Fresh(ttl) = usable(&page, &asked.wishes, &standing, now) else { return None };
        self.metrics.cache(CacheResult::Hit);
        exchange.journal.cache(CacheStatus::Hit { ttl, detail: None });
        Some(asked.answer(&page, true, now, std::mem::take(exchange.request.headers_mut())))
    }

    /// The page's key, and whether every write that was answered is in it, whichever replica it came through.
    async fn key(&self, exchange: &Exchange<Permitted>) -> (PageKey, bool) {
        let permit = &exchange.stage.permit;
        let generation = self.pages.generation(budget(permit), collection(permit.target().path())).await;
        let headers = exchange.request.headers();
        (self.with_parts(permit, headers, generation.number, PageKey::of), generation.known)
    }

    fn with_parts<T>(
        &self,
        permit: &Permit,
        headers: &HeaderMap,
        generation: u64,
        with: impl FnOnce(&Parts<'_>) -> T,
    ) -> T {
        let mut values: SmallVec<[_; 4]> = smallvec![lines(headers, &VERSION), lines(headers, &ACCEPT)];
        values.extend(self.forward_headers.iter().map(|name| lines(headers, name)));
        let fields: SmallVec<[_; 4]> = values.iter().map(Option::as_deref).collect();
        let target = permit.target();
        with(&Parts {
            environment: &permit.environment().pages,
            generation,
            path: target.path(),
            query: target.query(),
            fields: &fields,
        })
    }

    /// The page that answers a request with these fields, and its key where that is another than the first.
    async fn look_up(&self, primary: &PageKey, headers: &HeaderMap) -> (Option<PageKey>, Option<Arc<Page>>) {
        match self.pages.get(primary).await {
            None => (None, None),
            Some(Entry::Page(page)) => (None, Some(page)),
            Some(Entry::Varies(names)) => {
                let key = varied(primary, &names, headers);
                let page = match self.pages.get(&key).await {
                    Some(Entry::Page(page)) => Some(page),
                    _ => None,
                };
                (Some(key), page)
            }
        }
    }

    /// The operator's freshness for a route.
    fn ttl(&self, permit: &Permit) -> Duration {
        permit.route().ttl.unwrap_or(permit.environment().environment.ttl)
    }

    /// How things stand as long as there is plenty; `known`: of every write.
    fn plainly(&self, permit: &Permit, known: bool) -> Standing {
        let ttl = self.ttl(permit);
        // With `ttl = "0s"` upstream's own fields decide alone (RFC 9111 §4.2.4).
        let ours = !ttl.is_zero();
        Standing {
            stretched: ttl,
            while_revalidating: ours.then_some(self.config.stale_while_revalidate),
            if_error: ours.then_some(self.config.stale_if_error),
            room: Room::Open,
            cut_off: (!known).then_some(ttl),
        }
    }

    /// How things stand with the budgets as they are.
    fn standing(&self, permit: &Permit, known: bool) -> Standing {
        let plainly = self.plainly(permit, known);
        let handle = permit.environment();
        let own = self.limits.snapshot(handle.budget, 0);
        let egress = self.limits.snapshot(self.egress, 0);
        let room = match (own.shut || egress.shut, own.remaining.min(egress.remaining)) {
            (true, _) => Room::Shut,
            (false, 0) => Room::Spent,
            (false, _) => Room::Open,
        };
        let share = share(own.remaining, handle.environment.limit.requests);
        let low = self.config.low_budget;
        Standing { stretched: stretched(plainly.stretched, low.ttl, low.below, share), room, ..plainly }
    }

    /// Whether a stale page is better than what came instead of a new one, and what is said of it then.
    fn stands_in(&self, page: &Page, outcome: &Outcome, permit: &Permit, known: bool) -> Option<CacheStatus> {
        let now = Timestamp::now();
        let standing = self.standing(permit, known);
        let ttl = page.ttl(now, usable::lifetime(page, &standing));
        let status = match outcome {
            Outcome::Failed(Rejection::RateLimited { limit, .. }) => {
                let detail = if *limit == Limit::Upstream { "gate" } else { "budget" };
                CacheStatus::Hit { ttl, detail: Some(detail) }
            }
            Outcome::Failed(Rejection::Upstream(_) | Rejection::DeadlineExceeded) => {
                CacheStatus::StaleOnError { status: None }
            }
            _ => CacheStatus::StaleOnError { status: Some(outcome.server_error()?.as_u16()) },
        };
        may_stand_in(page, &standing, now).then_some(status)
    }

    /// Whether a request with these fields keeps its answer from being kept.
    fn forbids(&self, request: &HeaderMap) -> bool {
        self.config.honor_client_directives && Wishes::of(request).no_store
    }
}

/// How upstream failed where a page takes the place of what came of it (RFC 9209 §2.1).
fn failed_with(outcome: &Outcome) -> Option<HeaderValue> {
    if let Outcome::Failed(rejection @ (Rejection::Upstream(_) | Rejection::DeadlineExceeded)) = outcome {
        return Some(rejection.proxy_status());
    }
    let status = outcome.server_error()?.as_u16();
    HeaderValue::try_from(format!("metorial-proxy; received-status={status}")).ok()
}

/// Whose writes are seen: by budget, because environments with one secret see each other's. The page itself is of one
/// environment.
fn budget(permit: &Permit) -> &str {
    &permit.environment().environment.budget
}

/// The key of a page that varies by these fields, for a request with these.
fn varied(primary: &PageKey, names: &[HeaderName], headers: &HeaderMap) -> PageKey {
    let values: Vec<_> = names.iter().map(|name| lines(headers, name)).collect();
    primary.varied(names.iter().zip(values.iter().map(Option::as_deref)))
}

/// What is left of a budget, from 0 to 1.
fn share(remaining: u32, requests: u32) -> f32 {
    remaining as f32 / requests.max(1) as f32
}

#[cfg(test)]
mod tests;
