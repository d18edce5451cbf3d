//! List pages and the generations that make them unreachable.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};

use crate::domain::page_key::PageKey;
use crate::time::{Timestamp, whole_seconds};

mod memory;

pub use memory::MemoryPages;

/// What the table of fields takes for each place it has: the bucket, the index, and the value's own allocation.
const FIELD: usize = 144;

/// A complete answer to a GET of a list route.
#[derive(Debug)]
pub struct Page {
    /// Its fields, without those that belong to a connection or to one caller.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// A strong validator made from the body, in quotes.
    pub etag: HeaderValue,
    /// When it was asked for: its age counts from here.
    pub at: Timestamp,
    /// How long it is fresh.
    pub fresh_for: Duration,
}

impl Page {
    /// How old it is.
    pub fn age(&self, now: Timestamp) -> Duration {
        now.since(self.at)
    }

    /// Seconds of freshness left; negative when it is stale.
    pub fn ttl(&self, now: Timestamp) -> i64 {
        let seconds = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        if self.is_fresh(now) {
            seconds((self.fresh_for - self.age(now)).as_secs())
        } else {
            // Rounded away from zero: a page that went stale just now is stale.
            -seconds(whole_seconds(self.age(now) - self.fresh_for).max(1))
        }
    }

    /// Whether it is still fresh.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.age(now) < self.fresh_for
    }

    /// Bytes it takes up, its key aside: of a small page, the table of its fields is the largest part.
    pub fn size(&self) -> usize {
        let values: usize = self.headers.values().map(HeaderValue::len).sum();
        self.body.len() + self.headers.capacity() * FIELD + values + self.etag.len() + size_of::<Self>()
    }
}

/// How the cache is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Pages kept.
    pub entries: u64,
    /// Bytes they take up.
    pub bytes: u64,
    /// Bytes they may take up.
    pub capacity: u64,
}

/// A store of pages.
pub trait PageStore: Send + Sync + 'static {
    /// The page, fresh or stale.
    fn get(&self, key: &PageKey) -> impl Future<Output = Option<Arc<Page>>> + Send;

    /// Keeps a page.
    fn put(&self, key: PageKey, page: Arc<Page>) -> impl Future<Output = ()> + Send;

    /// The generation of a collection: part of each of its pages' keys.
    fn generation(&self, environment: &str, collection: &str) -> impl Future<Output = u64> + Send;

    /// Makes every page of a collection unreachable, those whose fill is under way included.
    fn invalidate(&self, environment: &str, collection: &str) -> impl Future<Output = ()> + Send;

    /// How the cache is doing.
    fn usage(&self) -> Usage;
}

#[cfg(test)]
pub mod contract;
