//! List pages and the generations that make them unreachable.
//!
//! [`TieredPages`] is what the proxy has: pages in this process ([`MemoryPages`]), and behind them, where replicas share a
//! store, the pages of all of them (`shared`), with one fetch for all replicas and generations that all of them know.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::freshness::Freshness;
use crate::domain::page_key::PageKey;
use crate::time::{Timestamp, whole_seconds};

mod clock;
mod format;
mod generations;
mod known;
mod memory;
mod seal;
mod shared;
mod tiered;
mod waits;

pub use memory::MemoryPages;
pub use seal::Seal;
pub use shared::{Rules, SharedPages};
pub use tiered::TieredPages;

/// What the table of fields takes for each of them: the bucket and the value's own allocation.
const FIELD: usize = 136;
/// What it takes for each that it has room for, in its index.
const ROOM: usize = 8;

/// A complete answer to a GET of a list route.
#[derive(Debug)]
pub struct Page {
    /// Its fields, without those that belong to a connection or to one caller, and without its validator.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its validator: upstream's, else a strong one made from the body.
    pub etag: HeaderValue,
    /// `ETag` and `Last-Modified` as upstream sent them: what it can be asked by whether the page has changed.
    pub validators: [Option<HeaderValue>; 2],
    /// The body once more, compressed, and the validator of each.
    pub coded: Vec<Coded>,
    /// When it was made, as far as we know: its age counts from here.
    pub at: Timestamp,
    /// How long it is fresh, and what may be done with it afterwards.
    pub freshness: Freshness,
    /// Request fields it varies by, and the values of the request that brought it.
    pub varies: Box<[Varied]>,
    /// The id of its last item, where more follow.
    pub next_after: Option<Box<str>>,
    /// Not to be fetched anew before this moment, because the last attempt failed.
    pub retry_at: AtomicU64,
    /// The page after it was asked for already.
    pub ahead: AtomicBool,
}

/// A request field and its value, where it was there.
pub type Varied = (HeaderName, Option<Box<[u8]>>);

/// Whether what varies by these is the answer to a request with these fields.
pub fn answers(varies: &[Varied], headers: &HeaderMap) -> bool {
    varies.iter().all(|(name, value)| lines(headers, name).as_deref() == value.as_deref())
}

/// A body in a content coding (RFC 9110 §8.4).
#[derive(Debug)]
pub struct Coded {
    /// `gzip`, `br`
    pub coding: &'static str,
    /// The body.
    pub body: Bytes,
    /// The page's validator in this coding.
    pub etag: HeaderValue,
}

impl Page {
    /// How old it is.
    pub fn age(&self, now: Timestamp) -> Duration {
        now.since(self.at)
    }

    /// Seconds of freshness left of `lifetime`; negative when it is stale.
    pub fn ttl(&self, now: Timestamp, lifetime: Duration) -> i64 {
        let seconds = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        match lifetime.checked_sub(self.age(now)).filter(|left| !left.is_zero()) {
            Some(left) => seconds(left.as_secs()),
            // Rounded away from zero: a page that went stale just now is stale.
            None => -seconds(whole_seconds(self.age(now) - lifetime).max(1)),
        }
    }

    /// Whether it is the answer to a request with these fields.
    pub fn answers(&self, headers: &HeaderMap) -> bool {
        answers(&self.varies, headers)
    }

    /// Notes that it could not be fetched anew: not again before `retry_at`.
    pub fn failed(&self, retry_at: Timestamp) {
        self.retry_at.store(retry_at.0, Ordering::Relaxed);
    }

    /// Whether it may be fetched anew.
    pub fn may_retry(&self, now: Timestamp) -> bool {
        now.0 >= self.retry_at.load(Ordering::Relaxed)
    }

    /// Whether the page after it is still to be asked for; only the first one to ask hears so.
    pub fn goes_ahead(&self) -> bool {
        !self.ahead.swap(true, Ordering::Relaxed)
    }

    /// Bytes it takes up, its key aside: of a small page, the table of its fields is the largest part.
    pub fn size(&self) -> usize {
        let values: usize = self.headers.values().map(HeaderValue::len).sum();
        let validators: usize = self.validators.iter().flatten().map(HeaderValue::len).sum();
        let coded: usize =
            self.coded.iter().map(|coded| coded.body.len() + coded.etag.len() + size_of::<Coded>()).sum();
        let varies: usize =
            self.varies.iter().map(|(_, value)| value.as_ref().map_or(0, |value| value.len()) + FIELD).sum();
        let table = self.headers.len() * FIELD + self.headers.capacity() * ROOM;
        let fields = table + values + self.etag.len() + validators;
        self.body.len() + coded + fields + varies + size_of::<Self>()
    }
}

/// All lines of a field, as they go upstream: each of them may change the answer.
pub fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Cow<'h, [u8]>> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = lines.next()?;
    Some(lines.fold(Cow::Borrowed(first), |mut all, line| {
        // A line holds no line break.
        all.to_mut().push(b'\n');
        all.to_mut().extend_from_slice(line);
        all
    }))
}

/// What is kept under a key.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A page.
    Page(Arc<Page>),
    /// Pages vary by these request fields: the key is to be made with them.
    Varies(Arc<[HeaderName]>),
}

/// How the cache is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Pages kept in this process.
    pub entries: u64,
    /// Bytes they take up.
    pub bytes: u64,
    /// Bytes they may take up.
    pub capacity: u64,
}

/// The generation of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Part of the keys of its pages.
    pub number: u64,
    /// No write that has been answered is missing in it, whichever replica it came through. Without that, pages are as old as
    /// they are, and nothing is known of what changed since.
    pub known: bool,
}

/// What is to be done for a page that is not there, or not good enough.
#[derive(Debug)]
pub enum Claim {
    /// It is to be fetched, and what came of it to be told by [`PageStore::share`].
    Lead(Lease),
    /// Another replica has fetched it.
    Found {
        /// What it kept.
        entry: Entry,
        /// It did so while we waited.
        awaited: bool,
    },
}

/// The right to fetch a page for all replicas, for a while; the default is that to fetch it for this one.
#[derive(Debug, Default)]
pub struct Lease(Option<shared::Held>);

/// What came of a lease.
#[derive(Debug)]
pub enum Fetched {
    /// These, and for how long they may be of use.
    Entries(Vec<(PageKey, Entry)>, Duration),
    /// Nothing that others may have: each is to fetch for itself.
    Unshared,
    /// Nothing, since nobody here wants it any more: another one may try.
    GivenUp,
}

/// A store of pages.
pub trait PageStore: Send + Sync + 'static {
    /// What this process keeps under a key, fresh or stale, where that can be said at once: what a hit is answered by.
    fn at_hand(&self, key: &[u8]) -> Option<Entry>;

    /// The generation of a collection, where no other replica has to be asked for it.
    fn generation_at_hand(&self, budget: &str, collection: &str) -> Option<Generation>;

    /// What is kept under a key, fresh or stale.
    fn get(&self, key: &PageKey) -> impl Future<Output = Option<Entry>> + Send;

    /// Keeps it in this process; other replicas get it by [`share`](Self::share).
    fn put(&self, key: PageKey, entry: Entry) -> impl Future<Output = ()> + Send;

    /// Keeps it no longer.
    fn remove(&self, key: &PageKey) -> impl Future<Output = ()> + Send;

    /// Asks for the right to fetch a page. Returns one that another replica has and that is `good`, and waits for one that is
    /// being fetched, however good it turns out to be.
    fn claim(
        &self,
        key: &PageKey,
        good: impl Fn(&Page) -> bool + Send + Sync,
    ) -> impl Future<Output = Claim> + Send;

    /// Holds a lease for as long as this is polled; it never resolves.
    fn hold(&self, lease: &Lease) -> impl Future<Output = Infallible> + Send;

    /// Gives a lease back, and lets other replicas have what came of it.
    fn share(&self, lease: Lease, fetched: Fetched) -> impl Future<Output = ()> + Send;

    /// The generation of a collection of an environment's budget: part of each of its pages' keys.
    fn generation(&self, budget: &str, collection: &str) -> impl Future<Output = Generation> + Send;

    /// Makes every page of these collections unreachable, those whose fill is under way included: in this process when it is
    /// first polled, and in every other when it resolves.
    fn invalidate(&self, budget: &str, collections: &[String]) -> impl Future<Output = ()> + Send;

    /// How the cache is doing.
    fn usage(&self) -> Usage;
}

#[cfg(test)]
pub mod contract;
