//! Pages in this process, in moka: bounded by their true size, evicted by frequency and recency (TinyLFU).
//!
//! Freshness is ours (our entry, our clock); moka's expiry is a backstop for pages that nobody asks for again.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use futures_util::FutureExt;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use parking_lot::RwLock;

use super::{Claim, Entry, Fetched, Generation, Lease, Page, PageStore, Usage};
use crate::domain::page_key::PageKey;

/// What moka and the allocator take for an entry beside its key and page.
const ENTRY_OVERHEAD: usize = 400;

/// Pages of a single replica.
#[derive(Debug)]
pub struct MemoryPages {
    pages: Cache<PageKey, Entry, RandomState>,
    capacity: u64,
    // Only collections that were written to are here, so callers cannot make it grow by reading.
    generations: RwLock<HashMap<String, HashMap<String, AtomicU64, RandomState>, RandomState>>,
}

impl MemoryPages {
    /// Keeps at most `capacity` bytes, each page for at most `backstop`.
    pub fn new(capacity: u64, backstop: Duration) -> Self {
        let pages = Cache::builder()
            .max_capacity(capacity)
            .weigher(|key: &PageKey, entry: &Entry| {
                let size = match entry {
                    Entry::Page(page) => page.size(),
                    Entry::Varies(names) => names.iter().map(|name| name.as_str().len() + 40).sum(),
                };
                u32::try_from(key.len() + size + ENTRY_OVERHEAD).unwrap_or(u32::MAX)
            })
            .eviction_policy(EvictionPolicy::tiny_lfu())
            .time_to_live(backstop)
            // Seeded at random, and a third of what the usual hasher costs on keys of this length.
            .build_with_hasher(RandomState::default());
        Self { pages, capacity, generations: RwLock::default() }
    }

    /// What is kept under a key, else what `find` finds: it looks once for all who ask at once.
    pub(super) async fn get_or(
        &self,
        key: &PageKey,
        find: impl Future<Output = Option<Entry>>,
    ) -> Option<Entry> {
        self.pages.optionally_get_with_by_ref(key, find).await
    }

    fn known_generation(&self, budget: &str, collection: &str) -> Generation {
        let generations = self.generations.read();
        let found = generations.get(budget).and_then(|collections| collections.get(collection));
        let number = found.map_or(0, |generation| generation.load(Ordering::Acquire));
        Generation { number, known: true }
    }

    /// Does what moka puts off while nobody asks: expiry, eviction, counting.
    pub async fn tidy(&self) {
        self.pages.run_pending_tasks().await;
    }
}

impl PageStore for MemoryPages {
    fn at_hand(&self, key: &[u8]) -> Option<Entry> {
        // It waits only for its own housekeeping, and what it found is found again.
        self.pages.get(key).now_or_never().flatten()
    }

    fn generation_at_hand(&self, budget: &str, collection: &str) -> Option<Generation> {
        Some(self.known_generation(budget, collection))
    }

    async fn get(&self, key: &PageKey) -> Option<Entry> {
        self.pages.get(key).await
    }

    async fn put(&self, key: PageKey, entry: Entry) {
        self.pages.insert(key, entry).await;
    }

    async fn remove(&self, key: &PageKey) {
        self.pages.invalidate(key).await;
    }

    async fn claim(&self, _: &PageKey, _: impl Fn(&Page) -> bool + Send + Sync) -> Claim {
        Claim::Lead(Lease::default())
    }

    async fn hold(&self, _: &Lease) -> Infallible {
        pending().await
    }

    async fn share(&self, _: Lease, _: Fetched) {}

    async fn generation(&self, budget: &str, collection: &str) -> Generation {
        self.known_generation(budget, collection)
    }

    async fn invalidate(&self, budget: &str, collections: &[String]) {
        let mut generations = self.generations.write();
        let known = generations.entry(budget.to_owned()).or_default();
        for collection in collections {
            known.entry(collection.to_owned()).or_default().fetch_add(1, Ordering::AcqRel);
        }
    }

    fn usage(&self) -> Usage {
        Usage {
            entries: self.pages.entry_count(),
            bytes: self.pages.weighted_size(),
            capacity: self.capacity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    super::super::contract::suite!(&MemoryPages::new(1 << 20, Duration::from_secs(600)));

    #[tokio::test]
    async fn a_scan_of_pages_that_nobody_asks_for_again_leaves_the_popular_ones() {
        let store = MemoryPages::new(200_000, Duration::from_secs(600));
        let page = |path: &str| super::super::contract::page(path, &"x".repeat(10_000));
        let popular: Vec<_> = (0..5).map(|at| page(&format!("/popular/{at}"))).collect();
        for (key, entry) in &popular {
            store.put(key.clone(), entry.clone()).await;
        }
        for at in 0..500 {
            for (key, _) in &popular {
                store.get(key).await;
            }
            let (key, entry) = page(&format!("/once/{at}"));
            store.get(&key).await;
            store.put(key, entry).await;
            store.tidy().await;
        }
        let mut kept = 0;
        for (key, _) in &popular {
            kept += usize::from(store.get(key).await.is_some());
        }
        assert_eq!(kept, 5);
    }

    #[tokio::test]
    async fn capacity_is_respected_by_true_size() {
        let store = MemoryPages::new(100_000, Duration::from_secs(600));
        for at in 0..100 {
            let (key, page) = super::super::contract::page(&format!("/things/{at}"), &"x".repeat(10_000));
            store.put(key, page).await;
        }
        store.tidy().await;
        let usage = store.usage();
        assert!(usage.bytes <= 100_000 && usage.entries >= 1 && usage.entries <= 9, "{usage:?}");
    }
}
