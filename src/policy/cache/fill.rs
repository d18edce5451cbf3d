//! Fills: one upstream request for all who ask for the same page at once.
//!
//! The leader's request runs in a task of its own; leader and waiters alike only listen. An error reaches all of them and
//! is not stored. An answer that may not be shared (too large, `private`, with a cookie) goes to the leader, and the
//! others ask for themselves.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use http::header::{AGE, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::select;
use tokio::sync::{oneshot, watch};
use tower::Service;

use super::Shared;
use crate::body::{BodyError, ResponseBody};
use crate::domain::freshness;
use crate::domain::page_key::PageKey;
use crate::exchange::{Exchange, HadCookie, Journal, Permitted, SentAt};
use crate::rejection::{Rejection, UpstreamFault};
use crate::store::pages::{Page, PageStore};
use crate::time::{Instant, Timestamp, timeout_at};

/// Fills under way, by page. Outlives the pipeline.
#[derive(Default)]
pub struct Fills(Mutex<HashMap<PageKey, watch::Sender<Option<Common>>>>);

impl Fills {
    fn lock(&self) -> MutexGuard<'_, HashMap<PageKey, watch::Sender<Option<Common>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the fill of a page, as its leader where there is none.
    fn join(self: &Arc<Self>, key: &PageKey) -> (watch::Receiver<Option<Common>>, Option<Lead>) {
        let mut fills = self.lock();
        if let Some(sender) = fills.get(key) {
            return (sender.subscribe(), None);
        }
        let (sender, receiver) = watch::channel(None);
        fills.insert(key.clone(), sender.clone());
        (receiver, Some(Lead { fills: self.clone(), key: key.clone(), sender }))
    }
}

/// The duty to publish an outcome. Dropped without one (a panic), the waiters learn that too.
struct Lead {
    fills: Arc<Fills>,
    key: PageKey,
    sender: watch::Sender<Option<Common>>,
}

impl Lead {
    fn publish(self, common: Common) {
        self.sender.send_replace(Some(common));
    }

    /// Resolves when everybody has left while `journal`'s request still waits for its turn: then nobody can join any more.
    /// What has gone upstream is paid for, and goes on.
    async fn abandoned(&self, journal: &Journal) {
        loop {
            self.sender.closed().await;
            if journal.attempts() > 0 {
                return std::future::pending().await;
            }
            let mut fills = self.fills.lock();
            if self.sender.receiver_count() == 0 {
                fills.remove(&self.key);
                return;
            }
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut fills = self.fills.lock();
        // Abandoned, its place may be another's by now.
        if fills.get(&self.key).is_some_and(|sender| sender.same_channel(&self.sender)) {
            fills.remove(&self.key);
        }
    }
}

/// An answer that is no page: passed to all who asked, not kept.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What a fill came to, as everybody sees it.
#[derive(Debug, Clone)]
enum Common {
    Page {
        page: Arc<Page>,
        stored: bool,
    },
    Other(Arc<Other>),
    /// The leader has the answer, and nobody else may.
    Unshared,
    Failed(Rejection),
}

/// What a fill came to for one caller.
pub(super) enum Outcome {
    Page {
        page: Arc<Page>,
        stored: bool,
    },
    Other(Arc<Other>),
    /// An answer of its own, as it streams.
    Own(Response<ResponseBody>),
    Failed(Rejection),
}

/// Has the page fetched, or waits for whoever is fetching it. `true`: it was another caller's request.
pub(super) async fn fill<P, S>(
    shared: &Arc<Shared<P>>,
    key: PageKey,
    mut inner: S,
    exchange: Exchange<Permitted>,
) -> (Outcome, bool)
where
    P: PageStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + Send + 'static,
    S::Future: Send,
{
    let (receiver, lead) = shared.fills.join(&key);
    let Some(lead) = lead else {
        let outcome = match published(receiver, &exchange.journal).await {
            Common::Page { page, stored } => Outcome::Page { page, stored },
            Common::Other(other) => Outcome::Other(other),
            Common::Failed(rejection) => Outcome::Failed(rejection),
            Common::Unshared => {
                let own = inner.call(exchange).await;
                return (own.map_or_else(Outcome::Failed, Outcome::Own), false);
            }
        };
        return (outcome, true);
    };
    let head = *exchange.stage.permit.method() == Method::HEAD;
    let (own, mine) = oneshot::channel();
    let journal = exchange.journal.clone();
    let detached = detached(exchange, shared.request_timeout);
    let theirs = detached.journal.clone();
    shared.tasks.spawn(run(shared.clone(), inner, detached, lead, own));
    let common = published(receiver, &journal).await;
    journal.add_attempts(theirs.attempts());
    let outcome = match common {
        Common::Page { page, stored } => Outcome::Page { page, stored },
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

async fn published(mut receiver: watch::Receiver<Option<Common>>, journal: &Journal) -> Common {
    match receiver.wait_for(Option::is_some).await {
        Ok(common) => common.clone().unwrap_or(Common::Failed(Rejection::Internal)),
        Err(_) => {
            tracing::error!(request_id = %journal.request_id, "the task that fetched a page panicked");
            Common::Failed(Rejection::Internal)
        }
    }
}

/// The request of a fill: it has its own deadline and its own journal, and asks for the body even where HEAD began it.
fn detached(exchange: Exchange<Permitted>, request_timeout: Duration) -> Exchange<Permitted> {
    let Exchange { mut request, stage, journal, .. } = exchange;
    *request.method_mut() = Method::GET;
    let stage = Permitted { client: stage.client, permit: stage.permit.with_body() };
    let journal = Arc::new(Journal::new(journal.request_id.clone()));
    Exchange { request, stage, deadline: Instant::now() + request_timeout, journal }
}

async fn run<P, S>(
    shared: Arc<Shared<P>>,
    mut inner: S,
    exchange: Exchange<Permitted>,
    lead: Lead,
    own: oneshot::Sender<Response<ResponseBody>>,
) where
    P: PageStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection>,
{
    let deadline = exchange.deadline;
    let permit = exchange.stage.permit.clone();
    let ttl = permit.route().ttl.unwrap_or(permit.environment().environment.ttl);
    let journal = exchange.journal.clone();
    let response = select! {
        // What is there is taken, even where nobody is left: it can be kept.
        biased;
        response = inner.call(exchange) => response,
        () = lead.abandoned(&journal) => return,
    };
    let response = match response {
        Ok(response) => response,
        Err(rejection) => return lead.publish(Common::Failed(rejection)),
    };
    let at = sent_at(&response);
    let lifetime = lifetime(&response, ttl);
    let own_cookie = response.extensions().get::<HadCookie>().is_some();
    let may_share = lifetime.is_some() || (response.status() != StatusCode::OK && !own_cookie);
    let too_large = response.body().size_hint().lower() > shared.config.max_page as u64;
    if !may_share || too_large {
        // Where the leader has left, its answer goes with it.
        own.send(response).ok();
        return lead.publish(Common::Unshared);
    }
    let (head, body) = response.into_parts();
    let body = match timeout_at(deadline, read(body, shared.config.max_page)).await {
        Ok(Ok(Read::Whole(body))) => body,
        Ok(Ok(Read::TooLarge(body))) => {
            own.send(Response::from_parts(head, body)).ok();
            return lead.publish(Common::Unshared);
        }
        Ok(Err(BodyError::Secret)) => return lead.publish(Common::Failed(Rejection::SecretGuard)),
        Ok(Err(_)) => {
            return lead.publish(Common::Failed(Rejection::Upstream(UpstreamFault::ConnectionTerminated)));
        }
        Err(_) => return lead.publish(Common::Failed(Rejection::Upstream(UpstreamFault::ResponseTimeout))),
    };
    let Some(fresh_for) = lifetime else {
        return lead.publish(Common::Other(Arc::new(Other {
            status: head.status,
            headers: head.headers,
            body,
        })));
    };
    let page = Arc::new(page(head.headers, body, at, fresh_for));
    shared.pages.put(lead.key.clone(), page.clone()).await;
    lead.publish(Common::Page { page, stored: true });
}

/// From when an answer's age counts: when the attempt that brought it was sent, less the age it had already. The wait for
/// budget before is not its age.
fn sent_at(response: &Response<ResponseBody>) -> Timestamp {
    let sent = response.extensions().get::<SentAt>().map_or_else(Timestamp::now, |sent| sent.0);
    sent.before(upstream_age(response))
}

/// The age it had already (RFC 9111 §5.1).
fn upstream_age(response: &Response<ResponseBody>) -> Duration {
    let age = response.headers().get(AGE).and_then(|age| age.to_str().ok()?.parse().ok());
    Duration::from_secs(age.unwrap_or(0))
}

fn lifetime(response: &Response<ResponseBody>, ttl: Duration) -> Option<Duration> {
    if response.extensions().get::<HadCookie>().is_some() {
        return None;
    }
    let lifetime = freshness::lifetime(response.status(), response.headers(), ttl)?;
    (upstream_age(response) < lifetime).then_some(lifetime)
}

fn page(mut headers: HeaderMap, body: Bytes, at: Timestamp, fresh_for: Duration) -> Page {
    // The length follows from the body; the id is that of one request, not of every hit.
    for name in [CONTENT_LENGTH, AGE, HeaderName::from_static("metorial-req-id")] {
        headers.remove(name);
    }
    let theirs = headers.remove(ETAG).filter(|etag| etag.to_str().is_ok());
    let etag = theirs.map_or_else(|| mint_etag(&body), |etag| own(&etag));
    // Copied, because what came is a slice of the connection's buffer, which a small page would keep alive whole.
    headers.values_mut().for_each(|value| *value = own(value));
    Page { headers, body: Bytes::copy_from_slice(&body), etag, at, fresh_for }
}

/// The same value in memory of its own.
fn own(value: &HeaderValue) -> HeaderValue {
    // What was a value once is one again.
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// A strong validator: 128 bits of the body's SHA-256.
fn mint_etag(body: &[u8]) -> HeaderValue {
    let digest = digest::digest(&digest::SHA256, body);
    let mut etag = String::with_capacity(34);
    etag.push('"');
    for byte in &digest.as_ref()[..16] {
        write!(etag, "{byte:02x}").ok();
    }
    etag.push('"');
    // Quotes and hexadecimal digits.
    HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("\"\""))
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
