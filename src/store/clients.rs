//! One token bucket per client IP: governor's keyed GCRA over a bounded table of our own.
//!
//! GCRA never refuses a client that stays within the documented limit in every window, and costs one number a key. The
//! table is ours because governor's own grows with every address that calls: here it is bounded. A full one first forgets
//! whose bucket is full again, which says nothing; where that is not enough an unknown client shares the bucket of its wider
//! network. So neither is a door left open nor are bystanders shut out.
//!
//! Each replica counts on its own, and tells the others of the clients that spend much: see [`ClientLimits::share`].

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota as Cells, RateLimiter};

use crate::domain::client_ip::ClientKey;
use crate::domain::quota::Quota;
use crate::domain::ratelimit::Standing;
use crate::time::{Timestamp, whole_seconds};

mod recent;
mod sharing;

use parking_lot::{Mutex, MutexGuard};
use recent::Recent;

/// The limit per client IP.
pub struct ClientLimits {
    limiter: RateLimiter<ClientKey, Shared, TokioClock, StateInformationMiddleware>,
    table: Shared,
    /// Between two cells.
    period: Duration,
    quota: Quota,
}

/// A client has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    /// Until its next request is admitted.
    pub wait: Duration,
}

impl ClientLimits {
    /// Bursts of `quota.requests`, refilled evenly over `quota.window`; about `max_tracked` clients at once.
    pub fn new(quota: Quota, max_tracked: usize) -> Self {
        Self::over(Arc::new(Table::new(max_tracked, TokioClock.now(), None)), quota)
    }

    /// The same for one of several replicas: see [`share`](Self::share).
    pub fn shared(quota: Quota, max_tracked: usize) -> Self {
        let recent = Arc::new(Recent::default());
        Self::over(Arc::new(Table::new(max_tracked, TokioClock.now(), Some(recent))), quota)
    }

    /// The same clients under another limit. What each has used of its bucket it has used of the new one, in proportion: a
    /// theoretical arrival time tells until when a bucket is not full, whatever it holds.
    #[must_use]
    pub fn with(&self, quota: Quota, max_tracked: usize) -> Self {
        let table = self.table.table.clone();
        table.max_per_shard.store(max_per_shard(max_tracked), Ordering::Relaxed);
        Self::over(table, quota)
    }

    fn over(table: Arc<Table>, quota: Quota) -> Self {
        let burst = NonZeroU32::new(quota.requests).unwrap_or(NonZeroU32::MIN);
        // Rounded up: a shorter period would refill faster than documented.
        let nanos = quota.window.as_nanos().div_ceil(u128::from(burst.get()));
        let period = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).max(1));
        let cells = Cells::with_period(period).unwrap_or_else(|| Cells::per_second(burst)).allow_burst(burst);
        let since = table.now();
        let table = Shared { table, since };
        let limiter = RateLimiter::new(cells, table.clone(), TokioClock);
        Self { limiter, table, period, quota }
    }

    /// Counts one request of `client`.
    ///
    /// # Errors
    /// How long it has to wait.
    pub fn check(&self, client: ClientKey) -> Result<Standing, TooFast> {
        match self.limiter.check_key(&client) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let grows_in =
                    if remaining < self.quota.requests { whole_seconds(self.period).max(1) } else { 0 };
                Ok(Standing { quota: self.quota, remaining, grows_in })
            }
            Err(not_until) => Err(TooFast { wait: not_until.wait_time_from(TokioClock.now()) }),
        }
    }

    /// Makes `client` pay `cells` more, on credit where it has none left: a failed authentication costs more than a request.
    ///
    /// The debt is bounded, because a request is admitted only once the bucket holds a cell again.
    pub fn penalise(&self, client: ClientKey, cells: u32) {
        let now = self.table.table.now();
        let debt = u64::try_from((self.period * cells).as_nanos()).unwrap_or(u64::MAX);
        let owed = self.table.table.spend(&client, cells, |arrival| {
            let arrival = arrival.map_or(now, |arrival| arrival.as_u64().max(now));
            Ok::<_, ()>(((), Nanos::new(arrival.saturating_add(debt))))
        });
        owed.ok();
    }

    /// What a client that has nothing left is told.
    pub fn spent(&self, too_fast: TooFast) -> Standing {
        Standing { quota: self.quota, remaining: 0, grows_in: whole_seconds(too_fast.wait).max(1) }
    }

    /// The documented limit.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Forgets clients whose buckets are full again and gives their memory back; to be called every few seconds.
    pub fn forget_idle(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }

    /// Clients tracked now.
    pub fn tracked(&self) -> usize {
        self.limiter.len()
    }
}

const SHARDS: usize = 64;
/// How often a full shard looks for clients that it can forget.
const SWEEP: u64 = 1_000_000_000;
/// Networks that a full shard still takes in: all of IPv4's, were there need. Beyond, IPv6's are folded once more.
const NETWORKS: usize = 65_536 / SHARDS;

/// Theoretical arrival times by client, counted from `start`: sharded, so that workers rarely meet; bounded.
struct Table {
    shards: Vec<Mutex<Shard>>,
    max_per_shard: AtomicUsize,
    hasher: RandomState,
    start: Nanos,
    /// What other replicas are to be told.
    recent: Option<Arc<Recent>>,
}

struct Shard {
    arrivals: HashMap<ClientKey, u64, RandomState>,
    swept: u64,
}

impl Table {
    fn new(max_tracked: usize, start: Nanos, recent: Option<Arc<Recent>>) -> Self {
        // Seeded at random: an attacker cannot choose addresses that collide.
        let hasher = RandomState::default();
        let empty = || Shard { arrivals: HashMap::with_hasher(hasher.clone()), swept: 0 };
        let shards = (0..SHARDS).map(|_| Mutex::new(empty())).collect();
        Self { shards, max_per_shard: max_per_shard(max_tracked).into(), hasher, start, recent }
    }

    /// On the scale of arrival times.
    fn now(&self) -> u64 {
        TokioClock.now().as_u64().saturating_sub(self.start.as_u64())
    }

    fn shard(&self, key: &ClientKey) -> MutexGuard<'_, Shard> {
        // The high bits choose the shard, because the map inside uses the low ones.
        let shard = usize::try_from(self.hasher.hash_one(key) >> 58).unwrap_or_default();
        self.shards[shard % SHARDS].lock()
    }
}

fn max_per_shard(max_tracked: usize) -> usize {
    max_tracked.div_ceil(SHARDS).max(1)
}

impl Shard {
    /// Whether it has more than `most`, also without those whose buckets are full again by `now`.
    fn is_full(&mut self, most: usize, now: u64) -> bool {
        if self.arrivals.len() >= most && now >= self.swept + SWEEP {
            self.swept = now;
            self.arrivals.retain(|_, arrival| *arrival > now);
        }
        self.arrivals.len() >= most
    }
}

/// The table as a limiter sees it, which counts from the moment it was made.
#[derive(Clone)]
struct Shared {
    table: Arc<Table>,
    /// That moment, in the table's time.
    since: u64,
}

impl StateStore for Shared {
    type Key = ClientKey;

    fn measure_and_replace<T, F, E>(&self, key: &ClientKey, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // What lies before that moment is over: a bucket that was full by then is full.
        self.table.spend(key, 1, |arrival| {
            let arrival = arrival.map(|arrival| Nanos::new(arrival.as_u64().saturating_sub(self.since)));
            let (outcome, next) = measure(arrival)?;
            Ok((outcome, Nanos::new(next.as_u64().saturating_add(self.since))))
        })
    }
}

impl Table {
    /// Takes `cells` of `key`, or of its network, as far as `measure` permits.
    fn spend<T, F, E>(&self, key: &ClientKey, cells: u32, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut key = *key;
        let mut networks = key.networks();
        let max_per_shard = self.max_per_shard.load(Ordering::Relaxed);
        let mut most = max_per_shard;
        loop {
            let mut shard = self.shard(&key);
            if let Some(arrival) = shard.arrivals.get_mut(&key) {
                let (outcome, next) = measure(Some(Nanos::new(*arrival)))?;
                *arrival = next.as_u64();
                drop(shard);
                self.note(key, cells);
                return Ok(outcome);
            }
            if shard.arrivals.len() >= most
                && shard.is_full(most, self.now())
                && let Some(network) = networks.next()
            {
                (key, most) = (network, max_per_shard + NETWORKS);
                continue;
            }
            let (outcome, next) = measure(None)?;
            shard.arrivals.insert(key, next.as_u64());
            drop(shard);
            self.note(key, cells);
            return Ok(outcome);
        }
    }

    fn note(&self, key: ClientKey, cells: u32) {
        if let Some(recent) = &self.recent {
            recent.add(key, cells, self.now());
        }
    }

    /// The next arrival of `key` is no earlier than this.
    fn delay(&self, key: ClientKey, arrival: u64) {
        let mut shard = self.shard(&key);
        let room = shard.arrivals.len() < self.max_per_shard.load(Ordering::Relaxed);
        match shard.arrivals.get_mut(&key) {
            Some(known) => *known = arrival.max(*known),
            None if room => drop(shard.arrivals.insert(key, arrival)),
            // Its network would have to pay, and bystanders with it.
            None => {}
        }
    }
}

impl ShrinkableKeyedStateStore<ClientKey> for Shared {
    fn retain_recent(&self, drop_below: Nanos) {
        let drop_below = drop_below.as_u64().saturating_add(self.since);
        for shard in &self.table.shards {
            shard.lock().arrivals.retain(|_, arrival| *arrival > drop_below);
        }
    }

    fn shrink_to_fit(&self) {
        for shard in &self.table.shards {
            let arrivals = &mut shard.lock().arrivals;
            // Only where it pays: a steady number of clients is not moved about every few seconds.
            if arrivals.capacity() > 64 && arrivals.capacity() > arrivals.len() * 4 {
                arrivals.shrink_to_fit();
            }
        }
    }

    fn len(&self) -> usize {
        self.table.shards.iter().map(|shard| shard.lock().arrivals.len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// tokio's clock, which tests pause.
#[derive(Debug, Clone, Copy)]
struct TokioClock;

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(Timestamp::this_turn().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::sleep;

    fn limits(requests: u32, seconds: u64, max_tracked: usize) -> ClientLimits {
        ClientLimits::new(Quota { requests, window: Duration::from_secs(seconds) }, max_tracked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_its_burst_and_then_what_flows_back() {
        let limits = limits(1000, 10, 1000);
        let client = ClientKey(7);
        for left in (0..1000).rev() {
            assert_eq!(limits.check(client).map(|standing| standing.remaining), Ok(left));
        }
        assert_eq!(limits.check(client), Err(TooFast { wait: Duration::from_millis(10) }));
        sleep(Duration::from_millis(10)).await;
        assert!(limits.check(client).is_ok());
        assert!(limits.check(client).is_err());
        assert!(limits.check(ClientKey(8)).is_ok(), "others are not touched");
    }

    #[tokio::test(start_paused = true)]
    async fn another_limit_is_no_amnesty_and_no_sentence() {
        let (greedy, idle) = (ClientKey(7), ClientKey(8));
        let mut limits = limits(1000, 10, 1000);
        limits.check(idle).ok();
        sleep(Duration::from_secs(3600)).await;
        for _ in 0..1000 {
            limits.check(greedy).ok();
        }
        for requests in [500, 2000, 1000] {
            limits = limits.with(Quota { requests, window: Duration::from_secs(10) }, 1000);
            assert!(limits.check(greedy).is_err(), "its bucket is empty under {requests} too");
            assert_eq!(limits.check(idle).map(|standing| standing.remaining), Ok(requests - 1));
            sleep(Duration::from_secs(1)).await;
            for _ in 0..requests / 10 {
                assert!(limits.check(greedy).is_ok(), "what flows back flows back by {requests}");
            }
        }
        assert!(limits.check(greedy).is_err());
        assert_eq!(limits.tracked(), 2);
        sleep(Duration::from_secs(11)).await;
        limits.forget_idle();
        assert_eq!(limits.tracked(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn guessing_keys_costs_more() {
        let limits = limits(100, 10, 1000);
        let client = ClientKey(7);
        let mut guesses = 0;
        for _ in 0..1000 {
            if limits.check(client).is_ok() {
                guesses += 1;
                limits.penalise(client, 9);
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert!((18..=22).contains(&guesses), "ten at once and one per second: {guesses}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_addresses_is_bounded_and_forgotten() {
        let limits = limits(10, 10, 640);
        for address in 0..100_000u64 {
            limits.check(ClientKey(0x2001_0db8_0000_0000 + address)).ok();
        }
        assert!(limits.tracked() <= 640 + SHARDS, "{}", limits.tracked());
        assert!(
            limits.check(ClientKey(0x2001_0db8_ffff_ffff)).is_err(),
            "the attacker's network shares one bucket"
        );
        assert!(limits.check(ClientKey(0x2a00_0000_0000_0001)).is_ok(), "a bystander elsewhere is served");
        // A second later most have recovered and are forgotten, so a bystander next to the attacker is served too.
        sleep(Duration::from_secs(2)).await;
        assert!(limits.check(ClientKey(0x2001_0db8_ffff_ffff)).is_ok());
        sleep(Duration::from_secs(30)).await;
        limits.forget_idle();
        assert_eq!(limits.tracked(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn networks_are_bounded_too() {
        let limits = limits(10, 10, 640);
        for network in 0..300_000u64 {
            limits.check(ClientKey((0x2001_0000 + network) << 32)).ok();
        }
        assert!(limits.tracked() <= 640 + 65_536 + 2 * SHARDS, "{}", limits.tracked());
    }
}
