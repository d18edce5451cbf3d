//! The token bucket: governor's GCRA with burst = limit and refill = limit / window, for those who ask for it.
//!
//! It smooths nothing and forgets sooner than the API does: up to `2N - 1` pass in one window, and an API that counts over
//! a trailing window refuses them. [`WindowRing`](crate::domain::window::WindowRing) is what does not.
//!
//! governor decides what a request costs; what it cannot say (how much is left, when it would grow, a refund) is read off
//! and written to the one number it keeps, the theoretical arrival time (TAT).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos as GovernorNanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota as Cells, RateLimiter};

use crate::domain::quota::Quota;

type Nanos = u64;

/// A bucket of tokens.
#[derive(Debug)]
pub struct TokenBucket {
    limiter: RateLimiter<NotKeyed, Tat, Told, NoOpMiddleware<GovernorNanos>>,
    tat: Tat,
    clock: Told,
    quota: Quota,
    /// Between two tokens.
    period: Nanos,
    /// Tokens taken since it was made, less those put back.
    charged: u64,
}

impl TokenBucket {
    /// A full one.
    pub fn new(quota: Quota) -> Self {
        let burst = NonZeroU32::new(quota.requests).unwrap_or(NonZeroU32::MIN);
        // Rounded up: a shorter period would refill faster than documented.
        let period = quota.window.as_nanos().div_ceil(u128::from(burst.get()));
        let period = u64::try_from(period).unwrap_or(u64::MAX).max(1);
        let cells = Cells::with_period(Duration::from_nanos(period));
        let cells = cells.unwrap_or_else(|| Cells::per_second(burst)).allow_burst(burst);
        let (tat, clock) = (Tat::default(), Told::default());
        let limiter = RateLimiter::new(cells, tat.clone(), clock.clone());
        Self { limiter, tat, clock, quota, period, charged: 0 }
    }

    /// Takes note of the time; returns `now`, never earlier than the latest seen.
    pub fn advance(&mut self, now: Nanos) -> Nanos {
        self.clock.0.fetch_max(now, Ordering::Relaxed).max(now)
    }

    /// Tokens that are missing.
    pub fn used(&self) -> u64 {
        self.debt().div_ceil(self.period)
    }

    /// Takes `n` tokens, now.
    pub fn charge(&mut self, n: u32) {
        let Some(wanted) = NonZeroU32::new(n) else { return };
        self.charged += u64::from(n);
        let taken = self.limiter.check_n(wanted);
        if !matches!(taken, Ok(Ok(()))) {
            // Beyond what it holds, which no draw asks for: what was spent before has a place all the same.
            let owed = self.period.saturating_mul(u64::from(n));
            self.tat.0.store(self.now().saturating_add(self.debt()).saturating_add(owed), Ordering::Relaxed);
        }
    }

    /// Puts `n` tokens back.
    pub fn refund(&mut self, n: u32) {
        let given = self.period.saturating_mul(u64::from(n));
        self.charged = self.charged.saturating_sub(u64::from(n));
        self.tat.0.store(self.tat.get().saturating_sub(given), Ordering::Relaxed);
    }

    /// Tokens that have flowed back since it was made.
    pub fn lapsed(&self) -> u64 {
        self.charged.saturating_sub(self.used())
    }

    /// Makes it full at `full_at`, as another that stands so.
    pub fn resume(&mut self, full_at: Nanos) {
        self.tat.0.store(full_at, Ordering::Relaxed);
        self.charged = self.used();
    }

    /// The first moment at which `n` tokens are there; `n` is at most the quota.
    pub fn fits_at(&self, n: u64) -> Nanos {
        let spare = u64::from(self.quota.requests).saturating_sub(n).saturating_mul(self.period);
        self.tat.get().saturating_sub(spare)
    }

    /// When the next token is there.
    pub fn next_lapse(&self) -> Option<Nanos> {
        let others = self.used().checked_sub(1)?.saturating_mul(self.period);
        Some(self.tat.get().saturating_sub(others))
    }

    /// From an empty bucket to a full one.
    pub fn reach(&self) -> Nanos {
        self.period.saturating_mul(u64::from(self.quota.requests))
    }

    fn now(&self) -> Nanos {
        self.clock.0.load(Ordering::Relaxed)
    }

    fn debt(&self) -> Nanos {
        self.tat.get().saturating_sub(self.now())
    }
}

impl Clone for TokenBucket {
    fn clone(&self) -> Self {
        let copy = Self::new(self.quota);
        copy.tat.0.store(self.tat.get(), Ordering::Relaxed);
        copy.clock.0.store(self.now(), Ordering::Relaxed);
        Self { charged: self.charged, ..copy }
    }
}

/// The theoretical arrival time, as governor and we both hold it. Whoever has the bucket has it alone.
#[derive(Debug, Clone, Default)]
struct Tat(Arc<AtomicU64>);

impl Tat {
    fn get(&self) -> Nanos {
        self.0.load(Ordering::Relaxed)
    }
}

impl StateStore for Tat {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, measure: F) -> Result<T, E>
    where
        F: Fn(Option<GovernorNanos>) -> Result<(T, GovernorNanos), E>,
    {
        let (outcome, next) = measure(Some(GovernorNanos::new(self.get())))?;
        self.0.store(next.as_u64(), Ordering::Relaxed);
        Ok(outcome)
    }
}

/// The time it was told last.
#[derive(Debug, Clone, Default)]
struct Told(Arc<AtomicU64>);

impl Clock for Told {
    type Instant = GovernorNanos;

    fn now(&self) -> GovernorNanos {
        GovernorNanos::new(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn the_whole_bucket_is_there_at_once_and_then_a_token_at_a_time() {
        let mut bucket = TokenBucket::new(Quota { requests: 100, window: Duration::from_secs(600) });
        bucket.advance(5 * SECOND);
        bucket.charge(100);
        assert_eq!(
            (bucket.used(), bucket.fits_at(1), bucket.next_lapse()),
            (100, 11 * SECOND, Some(11 * SECOND))
        );
        bucket.advance(11 * SECOND);
        assert_eq!(bucket.used(), 99);
        bucket.charge(1);
        assert_eq!(bucket.fits_at(100), 611 * SECOND);
        bucket.refund(50);
        assert_eq!((bucket.used(), bucket.fits_at(50)), (50, 11 * SECOND));
    }

    proptest! {
        /// What we say of the bucket is what governor does.
        #[test]
        fn what_fits_by_our_arithmetic_fits_by_governors(
            requests in 1u32..50,
            acts in proptest::collection::vec((0u64..2 * SECOND, 1u32..8), 1..200),
        ) {
            let mut bucket = TokenBucket::new(Quota { requests, window: Duration::from_secs(7) });
            let mut now = SECOND;
            for (wait, n) in acts {
                now += wait;
                bucket.advance(now);
                let n = n.min(requests);
                let fits = bucket.fits_at(u64::from(n)) <= now;
                prop_assert_eq!(fits, bucket.used() + u64::from(n) <= u64::from(requests));
                let theirs = bucket.clone().limiter.check_n(NonZeroU32::new(n).expect("not zero"));
                prop_assert_eq!(fits, matches!(theirs, Ok(Ok(()))));
                if fits {
                    bucket.charge(n);
                }
            }
        }
    }
}
