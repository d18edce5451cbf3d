//! The pages of this process, and behind them, where replicas share a store, those of all of them.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use super::{Claim, Entry, Fetched, Generation, Lease, MemoryPages, Page, PageStore, SharedPages, Usage};
use crate::domain::page_key::PageKey;
use crate::store::link::Link;
use crate::time::Timestamp;

/// See the module.
pub struct TieredPages<L> {
    memory: MemoryPages,
    shared: Option<Arc<SharedPages<L>>>,
}

impl<L: Link> TieredPages<L> {
    /// With or without pages of others behind those of this process.
    pub fn new(memory: MemoryPages, shared: Option<Arc<SharedPages<L>>>) -> Self {
        Self { memory, shared }
    }

    /// The pages of all replicas, where they are shared.
    pub fn shared(&self) -> Option<&Arc<SharedPages<L>>> {
        self.shared.as_ref()
    }

    /// How long this replica has been cut off from the pages of others, in which time only fresh pages are served. Zero where
    /// that has just begun; `None`: it is not, or there are no others.
    pub fn cut_off(&self) -> Option<Duration> {
        let lapsed = self.shared.as_ref()?.generations.lapsed()?;
        Some(Timestamp::now().since(lapsed))
    }

    /// Does what moka puts off while nobody asks.
    pub async fn tidy(&self) {
        self.memory.tidy().await;
    }
}

impl<L: Link> PageStore for TieredPages<L> {
    fn at_hand(&self, key: &[u8]) -> Option<Entry> {
        self.memory.at_hand(key)
    }

    fn generation_at_hand(&self, budget: &str, collection: &str) -> Option<Generation> {
        match &self.shared {
            None => self.memory.generation_at_hand(budget, collection),
            Some(shared) => shared.generations.at_hand(budget, collection),
        }
    }

    async fn get(&self, key: &PageKey) -> Option<Entry> {
        match (self.memory.get(key).await, &self.shared) {
            // Boxed, so that a hit's future is not made larger by it.
            (None, Some(shared)) => Box::pin(self.memory.get_or(key, shared.find(key))).await,
            (entry, _) => entry,
        }
    }

    async fn put(&self, key: PageKey, entry: Entry) {
        self.memory.put(key, entry).await;
    }

    async fn remove(&self, key: &PageKey) {
        self.memory.remove(key).await;
        if let Some(shared) = &self.shared {
            shared.remove(key).await;
        }
    }

    async fn claim(&self, key: &PageKey, good: impl Fn(&Page) -> bool + Send + Sync) -> Claim {
        let Some(shared) = &self.shared else { return Claim::Lead(Lease::default()) };
        let claim = shared.claim(key, good).await;
        if let Claim::Found { entry, .. } = &claim {
            self.memory.put(key.clone(), entry.clone()).await;
        }
        claim
    }

    async fn hold(&self, lease: &Lease) -> Infallible {
        match (&self.shared, &lease.0) {
            (Some(shared), Some(held)) => shared.hold(held).await,
            _ => pending().await,
        }
    }

    async fn share(&self, lease: Lease, fetched: Fetched) {
        if let Some(shared) = &self.shared {
            shared.share(lease, fetched).await;
        }
    }

    async fn generation(&self, budget: &str, collection: &str) -> Generation {
        match &self.shared {
            None => self.memory.generation(budget, collection).await,
            Some(shared) => shared.generations.generation(budget, collection).await,
        }
    }

    async fn invalidate(&self, budget: &str, collections: &[String]) {
        match &self.shared {
            None => self.memory.invalidate(budget, collections).await,
            Some(shared) => shared.generations.invalidate(budget, collections).await,
        }
    }

    fn usage(&self) -> Usage {
        self.memory.usage()
    }
}
