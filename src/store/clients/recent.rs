//! Who has spent how much lately, where replicas share their clients: what this one has to tell, and of whom.
//!
//! Beside the limiter's table rather than in it: a process on its own pays nothing, and a flood of addresses is bounded. Who
//! finds no room is limited by this replica alone.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};

use super::{SHARDS, SWEEP};
use crate::domain::client_ip::ClientKey;

/// Clients that a shard counts.
const MOST: usize = 1024;
/// Clients that are told of, in all.
pub(super) const TOLD: usize = 4096;

/// See the module.
pub(super) struct Recent {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    window: AtomicU64,
    /// Cells within a window from which on a client is told of.
    noteworthy: AtomicU32,
    /// Clients that came so far, and nobody was told of yet.
    fresh: Mutex<Vec<ClientKey>>,
}

struct Shard {
    spent: HashMap<ClientKey, Spent, RandomState>,
    swept: u64,
}

/// What was spent and not told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// When the first of these cells was.
    pub(super) since: u64,
    pub(super) cells: u32,
    told: bool,
}

impl Default for Recent {
    /// Nobody is told of before [`tell_from`](Recent::tell_from).
    fn default() -> Self {
        let hasher = RandomState::default();
        let empty = || Shard { spent: HashMap::with_hasher(hasher.clone()), swept: 0 };
        let shards = (0..SHARDS).map(|_| Mutex::new(empty())).collect();
        let (window, noteworthy) = (AtomicU64::new(0), AtomicU32::new(u32::MAX));
        Self { shards, hasher, window, noteworthy, fresh: Mutex::default() }
    }
}

impl Recent {
    fn shard(&self, key: ClientKey) -> MutexGuard<'_, Shard> {
        let shard = usize::try_from(self.hasher.hash_one(key) >> 58).unwrap_or_default();
        self.shards[shard % SHARDS].lock()
    }

    /// `cells` more of `key`.
    pub(super) fn add(&self, key: ClientKey, cells: u32, now: u64) {
        let window = self.window.load(Ordering::Relaxed);
        let noteworthy = self.noteworthy.load(Ordering::Relaxed);
        let mut shard = self.shard(key);
        if !shard.spent.contains_key(&key) && shard.is_full(now, window, noteworthy) {
            return;
        }
        let spent = shard.spent.entry(key).or_default();
        if !spent.told && now.saturating_sub(spent.since) > window {
            spent.cells = 0;
        }
        if spent.cells == 0 {
            spent.since = now;
        }
        spent.cells = spent.cells.saturating_add(cells);
        if !spent.told && spent.cells >= noteworthy {
            let mut fresh = self.fresh.lock();
            if fresh.len() < TOLD {
                spent.told = true;
                fresh.push(key);
            }
        }
    }

    /// From how many cells within how long a window on a client is told of.
    pub(super) fn tell_from(&self, noteworthy: u32, window: u64) {
        self.window.store(window, Ordering::Relaxed);
        self.noteworthy.store(noteworthy, Ordering::Relaxed);
    }

    /// Who came so far since the last call.
    pub(super) fn fresh(&self) -> Vec<ClientKey> {
        std::mem::take(&mut *self.fresh.lock())
    }

    /// What `key` spent.
    pub(super) fn of(&self, key: ClientKey) -> Spent {
        self.shard(key).spent.get(&key).copied().unwrap_or_default()
    }

    /// The same, and from here on it counts anew.
    pub(super) fn take(&self, key: ClientKey) -> Spent {
        match self.shard(key).spent.get_mut(&key) {
            Some(spent) => std::mem::replace(spent, Spent { cells: 0, ..*spent }),
            None => Spent::default(),
        }
    }

    /// Nobody is told of `key` any more, until it comes so far again.
    pub(super) fn forget(&self, key: ClientKey) {
        self.shard(key).spent.remove(&key);
    }
}

impl Shard {
    /// Whether there is no room, also without those that are not on the way to be told of.
    fn is_full(&mut self, now: u64, window: u64, noteworthy: u32) -> bool {
        if self.spent.len() >= MOST && now >= self.swept + SWEEP {
            self.swept = now;
            self.spent.retain(|_, spent| {
                let age = u128::from(now.saturating_sub(spent.since));
                spent.told || u128::from(spent.cells) * u128::from(window) > u128::from(noteworthy) * age
            });
        }
        self.spent.len() >= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 10_000_000_000;

    #[test]
    fn who_spends_much_within_a_window_is_told_of_once() {
        let recent = Recent::default();
        recent.tell_from(3, WINDOW);
        let key = ClientKey(7);
        for at in [0, 1, WINDOW + 1, WINDOW + 2] {
            recent.add(key, 1, at);
            assert_eq!(recent.fresh(), [], "at {at}");
        }
        recent.add(key, 4, WINDOW + 3);
        recent.add(key, 1, WINDOW + 4);
        assert_eq!(recent.fresh(), [key]);
        let spent = recent.take(key);
        assert_eq!((spent.since, spent.cells), (WINDOW + 1, 7), "since the window began");
        recent.add(key, 9, 3 * WINDOW);
        assert_eq!((recent.of(key).since, recent.of(key).cells), (3 * WINDOW, 9));
        assert_eq!(recent.fresh(), []);
        recent.forget(key);
        recent.add(key, 3, 3 * WINDOW);
        assert_eq!(recent.fresh(), [key]);
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_shuts_nobody_out_for_long() {
        let recent = Recent::default();
        recent.tell_from(100, WINDOW);
        for address in 0..200_000 {
            recent.add(ClientKey(address), 1, 0);
        }
        let counted = || recent.shards.iter().map(|shard| shard.lock().spent.len()).sum::<usize>();
        assert!(counted() <= MOST * SHARDS, "{}", counted());
        let late = ClientKey(1 << 40);
        recent.add(late, 100, SWEEP);
        assert_eq!(recent.fresh(), [late], "those who spent little make room");
    }
}
