//! Fills: one upstream request for all who ask for the same page at once.
//!
//! The leader's request runs in a task of its own; leader and waiters alike only listen. An error reaches all of them and
//! is not stored. An answer that may not be shared (too large, `private`, with a cookie, about the request itself) goes to the
//! leader, and the others ask for themselves. Where a page is kept that upstream can be asked about, it is asked whether it has changed.
//! Replicas that share pages do likewise among each other: a leader here first claims the page from the store.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, ETAG, HeaderMap};
use http::{Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::select;
use tokio::sync::{oneshot, watch};
use tower::Service;

use super::fills::{Joined, Lead};
use super::made::{self, Extras};
use super::outcome::{Common, Filled, Other, Outcome, Source, is_final, is_for_others};
use super::usable::{Standing, Usable, Wishes, usable, useful};
use super::{Shared, varied};
use crate::body::{BodyError, ResponseBody};
use crate::domain::freshness::{self, Freshness};
use crate::domain::page_key::PageKey;
use crate::exchange::{Answered, EnvironmentHandle, Exchange, Journal, Permitted};
use crate::rejection::{Rejection, UpstreamFault};
use crate::store::limits::LimitStore;
use crate::store::pages::{Claim, Entry, Fetched, Lease, Page, PageStore, answers};
use crate::time::{Instant, Timestamp, timeout, timeout_at, unix_now};

/// After a fill that failed a stale page is not fetched anew for so long.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// A call to the store is over by then.
const SOON: Duration = Duration::from_secs(1);
/// No page is kept for other replicas for longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What is to be fetched.
pub(super) struct Wanted {
    /// Under this key it is kept.
    pub(super) key: PageKey,
    /// And under this one, where it turns out to vary by more.
    pub(super) primary: PageKey,
    /// The page that is to be replaced.
    pub(super) kept: Option<Arc<Page>>,
    /// The caller had a credential of its own, which was dropped.
    pub(super) credential: bool,
}

/// Has the page fetched, or waits for whoever is fetching it. `true`: it was another caller's request.
pub(super) async fn fill<P, L, S>(
    shared: &Rc<Shared<P, L>>,
    wanted: Wanted,
    mut inner: S,
    exchange: Exchange<Permitted>,
) -> (Outcome, bool)
where
    P: PageStore,
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + 'static,
{
    let (client, permit) = (exchange.stage.client, exchange.stage.permit.clone());
    // Whoever waits for another's request waits in that one's place in the queue, and it may have a better one.
    let overtakes = |other| {
        let EnvironmentHandle { queue, environment, .. } = &**permit.environment();
        let rule = environment.rule();
        client != other && queue.ask(client, rule) < queue.held_back(other, rule)
    };
    let queued = |other| !permit.environment().queue.is_empty() && overtakes(other);
    let (lead, receiver) = loop {
        let (receiver, other) = match shared.fills.join(&wanted.key, client, queued) {
            Joined::Lead(lead, receiver) => break (lead, receiver),
            Joined::Wait(receiver, other) => (receiver, other),
        };
        let request = exchange.request.headers();
        let outcome = match published(receiver, &exchange.journal).await {
            Common::Page(filled) if filled.page.answers(request) => Outcome::Page(filled),
            Common::Other(other) if answers(&other.varies, request) => Outcome::Other(other),
            Common::Failed(Rejection::RateLimited { .. }) if overtakes(other) => continue,
            Common::Failed(rejection) => Outcome::Failed(rejection),
            Common::Page(_) | Common::Other(_) | Common::Unshared => {
                let own = inner.call(exchange).await;
                return (own.map_or_else(Outcome::Failed, Outcome::Own), false);
            }
        };
        return (outcome, true);
    };
    let head = *exchange.stage.permit.method() == Method::HEAD;
    let (own, mine) = oneshot::channel();
    let journal = exchange.journal.clone();
    let exchange = detached(exchange, shared.request_timeout, wanted.kept.as_deref());
    let theirs = exchange.journal.clone();
    lead.begins(&theirs);
    let fill = Fill { shared: shared.clone(), wanted, lead, own };
    shared.tasks.spawn_local(fill.run(inner, exchange));
    let common = published(receiver, &journal).await;
    journal.add_attempts(theirs.attempts());
    let outcome = match common {
        Common::Page(filled) => Outcome::Page(filled),
        Common::Other(other) => Outcome::Other(other),
        Common::Failed(rejection) => Outcome::Failed(rejection),
        Common::Unshared => match mine.await {
            Ok(response) if head => Outcome::Own(response.map(|_| ResponseBody::empty())),
            Ok(response) => Outcome::Own(response),
            Err(_) => Outcome::Failed(Rejection::Internal),
        },
    };
    (outcome, false)
}

/// Has the page fetched behind everybody's back, unless that is being done already. Whether it is now.
pub(super) fn refresh<P, L, S>(
    shared: &Rc<Shared<P, L>>,
    wanted: Wanted,
    inner: S,
    exchange: Exchange<Permitted>,
) -> bool
where
    P: PageStore,
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + 'static,
{
    let joined = shared.fills.join(&wanted.key, exchange.stage.client, |_| false);
    let Joined::Lead(lead, receiver) = joined else { return false };
    let exchange = detached(exchange, shared.request_timeout, wanted.kept.as_deref());
    lead.begins(&exchange.journal);
    let (own, _) = oneshot::channel();
    let fill = Fill { shared: shared.clone(), wanted, lead, own };
    shared.tasks.spawn_local(async move {
        // Somebody waits for it, in a way.
        let _receiver = receiver;
        fill.run(inner, exchange).await;
    });
    true
}

async fn published(mut receiver: watch::Receiver<Option<Common>>, journal: &Journal) -> Common {
    match receiver.wait_for(Option::is_some).await {
        Ok(common) => common.clone().unwrap_or(Common::Failed(Rejection::Internal)),
        Err(_) => {
            tracing::error!(request_id = %journal.request_id, "the task that fetched a page panicked");
            Common::Failed(Rejection::Internal)
        }
    }
}

/// The request of a fill: it has its own deadline and its own journal, asks for the body even where HEAD began it, and where
/// it can, only for a page that has changed.
fn detached(
    exchange: Exchange<Permitted>,
    request_timeout: Duration,
    kept: Option<&Page>,
) -> Exchange<Permitted> {
    let Exchange { mut request, stage, journal, .. } = exchange;
    *request.method_mut() = Method::GET;
    let unless = kept.map(|page| page.validators.clone()).filter(|them| them.iter().any(Option::is_some));
    let stage = Permitted { permit: stage.permit.with_body(), unless: unless.map(Box::new), ..stage };
    let journal = Rc::new(journal.detached());
    Exchange { request, stage, deadline: Instant::now() + request_timeout, journal }
}

/// A fill under way.
struct Fill<P, L> {
    shared: Rc<Shared<P, L>>,
    wanted: Wanted,
    lead: Lead,
    own: oneshot::Sender<Response<ResponseBody>>,
}

impl<P: PageStore, L: LimitStore> Fill<P, L> {
    async fn run<S>(self, inner: S, exchange: Exchange<Permitted>)
    where
        S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection>,
    {
        let plainly = self.shared.plainly(&exchange.stage.permit, true);
        let shared = self.shared.clone();
        let claimed = {
            let mut claiming = pin!(self.claimed(exchange.request.headers(), &plainly));
            select! {
                claimed = &mut claiming => claimed,
                () = self.lead.abandoned(&exchange.journal) => {
                    // What was asked for may be given, and others wait for it then.
                    if let Ok(Err(lease)) = timeout(SOON, claiming).await {
                        shared.pages.share(lease, Fetched::GivenUp).await;
                    }
                    return;
                }
            }
        };
        let lease = match claimed {
            Ok(filled) => return self.lead.publish(Common::Page(filled)),
            Err(lease) => lease,
        };
        let fetched = select! {
            fetched = self.fetch(inner, exchange, &plainly) => fetched,
            never = shared.pages.hold(&lease) => match never {},
        };
        shared.pages.share(lease, fetched).await;
    }

    /// The page as another replica has or fetches it; else the right to fetch it for all.
    async fn claimed(&self, request: &HeaderMap, plainly: &Standing) -> Result<Filled, Lease> {
        let honoured = self.shared.config.honor_client_directives;
        let wishes = if honoured { Wishes::of(request) } else { Wishes::default() };
        let good = |page: &Page| matches!(usable(page, &wishes, plainly, Timestamp::now()), Usable::Fresh(_));
        let mut key = self.wanted.key.clone();
        loop {
            match self.shared.pages.claim(&key, good).await {
                Claim::Lead(lease) => return Err(lease),
                Claim::Found { entry: Entry::Page(page), awaited } if page.answers(request) => {
                    let source = if awaited { Source::Replica } else { Source::Store };
                    return Ok(Filled { page, stored: true, validated: false, source });
                }
                Claim::Found { entry: Entry::Varies(names), .. } if key == self.wanted.primary => {
                    key = varied(&key, &names, request);
                }
                Claim::Found { .. } => return Err(Lease::default()),
            }
        }
    }

    /// Has the page fetched, and returns what other replicas may have of it.
    async fn fetch<S>(self, mut inner: S, exchange: Exchange<Permitted>, plainly: &Standing) -> Fetched
    where
        S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection>,
    {
        let (deadline, journal) = (exchange.deadline, exchange.journal.clone());
        let request = exchange.request.headers().clone();
        let ttl = self.shared.ttl(&exchange.stage.permit);
        let kept = self.wanted.kept.clone();
        let anew = exchange.stage.unless.is_some().then(|| exchange.bodyless());
        let mut response = select! {
            // What is there is taken, even where nobody is left: it can be kept.
            biased;
            response = inner.call(exchange) => response,
            () = self.lead.abandoned(&journal) => return Fetched::GivenUp,
        };
        if let Some(mut anew) = anew.filter(|_| speaks_of_another(&response, kept.as_deref())) {
            // That one is fetched.
            anew.stage.unless = None;
            response = inner.call(anew).await;
        }
        let common = match response {
            Ok(response) if response.status() == StatusCode::NOT_MODIFIED && kept.is_some() => {
                self.unchanged(response.headers(), sent_at(journal.answer()), ttl).await
            }
            Ok(response) => match self.answered(response, journal.answer(), &request, ttl, deadline).await {
                Ok(common) => common,
                Err(own) => {
                    if is_final(own.status()) && !self.is_personal(&request, ttl) {
                        self.superseded().await;
                    }
                    // Where the leader has left, its answer goes with it.
                    self.own.send(own).ok();
                    self.lead.publish(Common::Unshared);
                    return Fetched::Unshared;
                }
            },
            Err(rejection) => Common::Failed(rejection),
        };
        let mut fetched = Fetched::Unshared;
        match &common {
            Common::Page(Filled { stored: false, .. }) => self.superseded().await,
            Common::Other(other) if is_final(other.status) => self.superseded().await,
            Common::Failed(_) | Common::Other(_) => {
                if let Some(kept) = kept {
                    kept.failed(Timestamp::now() + AFTER_FAILURE);
                }
            }
            Common::Page(Filled { page, .. }) => {
                let of_use = useful(page, plainly, self.shared.config.low_budget.ttl).min(LONGEST);
                let left = of_use.saturating_sub(page.age(Timestamp::now()));
                fetched = Fetched::Entries(self.entries(page), left);
            }
            Common::Unshared => {}
        }
        self.lead.publish(common);
        fetched
    }

    /// Upstream has said something else since, and that cannot be kept: nobody is to have the page any more.
    async fn superseded(&self) {
        if self.wanted.kept.is_some() {
            self.shared.pages.remove(&self.wanted.key).await;
        }
    }

    /// Whether the answer may be one caller's alone, whatever upstream says: of the page it tells nothing.
    fn is_personal(&self, request: &HeaderMap, ttl: Duration) -> bool {
        // Where upstream alone decides, a caller's own credential makes an answer its own, although upstream never saw it
        // (RFC 9111 §3.5).
        self.shared.forbids(request) || (self.wanted.credential && ttl.is_zero())
    }

    /// A 304: the kept page has the fields that upstream sent, and is as fresh as they say.
    async fn unchanged(&self, told: &HeaderMap, sent: Timestamp, ttl: Duration) -> Common {
        let Some(kept) = &self.wanted.kept else { return Common::Failed(Rejection::Internal) };
        let fields = made::merged(kept, told);
        let freshness = Freshness::of(StatusCode::OK, &fields, ttl, unix_now());
        let page = made::renewed(kept, told, sent, freshness.unwrap_or_default());
        let page = Arc::new(page);
        if freshness.is_some() {
            self.put(&page).await;
        }
        Common::Page(Filled { page, stored: freshness.is_some(), validated: true, source: Source::Upstream })
    }

    /// What is made of an answer; one that may not be shared comes back.
    async fn answered(
        &self,
        response: Response<ResponseBody>,
        known: Option<Answered>,
        request: &HeaderMap,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<Common, Response<ResponseBody>> {
        let config = &self.shared.config;
        let sent = sent_at(known);
        let own_cookie = known.is_some_and(|known| known.had_cookie);
        let own = self.wanted.credential && ttl.is_zero() && !freshness::is_shared(response.headers());
        let may_be_cut = known.is_some_and(|known| known.end_untold);
        let unkept = own_cookie || own || may_be_cut || self.shared.forbids(request);
        let freshness = match unkept {
            true => None,
            false => Freshness::of(response.status(), response.headers(), ttl, unix_now()),
        };
        let freshness = freshness.filter(|freshness| of_use(freshness, response.headers()));
        let may_share = freshness.is_some() || (is_for_others(&response) && !own_cookie);
        let too_large = response.body().size_hint().lower() > config.max_page as u64;
        if !may_share || too_large || is_endless(response.headers()) {
            return Err(response);
        }
        let (head, body) = response.into_parts();
        let body = match timeout_at(deadline, read(body, config.max_page)).await {
            Ok(Ok(Read::Whole(body))) => body,
            Ok(Ok(Read::TooLarge(body))) => return Err(Response::from_parts(head, body)),
            Ok(Err(BodyError::Secret)) => return Ok(Common::Failed(Rejection::SecretGuard)),
            Ok(Err(_)) => {
                return Ok(Common::Failed(Rejection::Upstream(UpstreamFault::ConnectionTerminated)));
            }
            Err(_) => return Ok(Common::Failed(Rejection::Upstream(UpstreamFault::ResponseTimeout))),
        };
        let Some(freshness) = freshness else {
            let varies = made::varies(&head.headers, request);
            let other = Other { status: head.status, headers: head.headers, body, varies };
            return Ok(Common::Other(Arc::new(other)));
        };
        let extras = Extras { compress: config.compress, next: config.prefetch.enabled };
        let page = match extras.compress && body.len() > made::LARGE {
            false => made::page(head.headers, &body, sent, freshness, request, extras),
            true => {
                let request = request.clone();
                let make = move || made::page(head.headers, &body, sent, freshness, &request, extras);
                match tokio::task::spawn_blocking(make).await {
                    Ok(page) => page,
                    Err(_) => return Ok(Common::Failed(Rejection::Internal)),
                }
            }
        };
        let page = Arc::new(page);
        self.put(&page).await;
        Ok(Common::Page(Filled { page, stored: true, validated: false, source: Source::Upstream }))
    }

    async fn put(&self, page: &Arc<Page>) {
        for (key, entry) in self.entries(page) {
            self.shared.pages.put(key, entry).await;
        }
    }

    /// A page under its key, or, where it varies by request fields, under one made with them.
    fn entries(&self, page: &Arc<Page>) -> Vec<(PageKey, Entry)> {
        let (primary, entry) = (self.wanted.primary.clone(), Entry::Page(page.clone()));
        if page.varies.is_empty() {
            return vec![(primary, entry)];
        }
        let names: Vec<_> = page.varies.iter().map(|(name, _)| name.clone()).collect();
        let key = primary.varied(page.varies.iter().map(|(name, value)| (name, value.as_deref())));
        vec![(primary, Entry::Varies(names.into())), (key, entry)]
    }
}

/// Whether upstream says of another page than `kept` that it has not changed (RFC 9111 §4.3.4).
fn speaks_of_another(response: &Result<Response<ResponseBody>, Rejection>, kept: Option<&Page>) -> bool {
    let (Ok(told), Some(kept)) = (response, kept) else { return false };
    let etag = told.headers().get(ETAG);
    told.status() == StatusCode::NOT_MODIFIED
        && etag.is_some_and(|etag| Some(etag) != kept.validators[0].as_ref())
}

/// Whether the body is to be read as it comes, because it may have no end.
fn is_endless(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()?.split(';').next());
    media_type.is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Whether a page with this freshness is worth its place: it is fresh for a while, or upstream can be asked about it.
fn of_use(freshness: &Freshness, headers: &HeaderMap) -> bool {
    let age = freshness::initial_age(headers, freshness, unix_now());
    let askable = headers.contains_key(ETAG) || headers.contains_key(http::header::LAST_MODIFIED);
    age < freshness.lifetime || askable
}

/// When the attempt that brought an answer was sent. The wait for budget before is not its age.
fn sent_at(known: Option<Answered>) -> Timestamp {
    known.map_or_else(Timestamp::now, |known| known.sent)
}

enum Read {
    Whole(Bytes),
    /// More than fits: what was read, followed by the rest.
    TooLarge(ResponseBody),
}

async fn read(mut body: ResponseBody, max: usize) -> Result<Read, BodyError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let data = frame?.into_data().unwrap_or_default();
        if whole.is_empty() && body.is_end_stream() && data.len() <= max {
            return Ok(Read::Whole(data)); // The usual case: nothing to copy.
        }
        whole.extend_from_slice(&data);
        if whole.len() > max {
            return Ok(Read::TooLarge(body.preceded_by(whole.freeze())));
        }
    }
    Ok(Read::Whole(whole.freeze()))
}
