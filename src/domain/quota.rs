//! How much in how long: the documented limits, how a budget counts them, and what a window ring makes of them.

use std::time::Duration;

/// So many requests in any window of such a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests.
    pub requests: u32,
    /// Length of the window.
    pub window: Duration,
}

impl Quota {
    /// Documented for production environments: 5000 in 10 minutes.
    pub const PRODUCTION: Self = Self { requests: 5000, window: Duration::from_secs(600) };
    /// Documented for development environments: 100 in 10 minutes.
    pub const DEVELOPMENT: Self = Self { requests: 100, window: Duration::from_secs(600) };
    /// Documented per IP, ours towards the API and a caller's towards us: 1000 in 10 seconds.
    pub const PER_IP: Self = Self { requests: 1000, window: Duration::from_secs(10) };
}

/// How a budget is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// An exact count over the trailing window: never more than the quota in any window.
    #[default]
    Window,
    /// A bucket as deep as the quota, refilled evenly: up to twice the quota in one window.
    TokenBucket,
}

/// What a budget is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How much in how long.
    pub quota: Quota,
    /// How that is counted.
    pub algorithm: Algorithm,
}

impl Plan {
    /// `quota`, counted over the trailing window.
    pub const fn window(quota: Quota) -> Self {
        Self { quota, algorithm: Algorithm::Window }
    }
}

/// A quota cut into sub-windows.
///
/// The ring counts the oldest sub-window whole and keeps `guard` more, so that arrivals that are delayed by up to
/// `guard × sub_window` still find no more than the quota in any window upstream. What takes longer is moved to when it
/// was answered: see [`WindowRing::settle`](crate::domain::window::WindowRing::settle).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlan {
    /// The quota as documented.
    pub quota: Quota,
    /// Length of one sub-window.
    pub sub_window: Duration,
    /// Sub-windows kept beyond the window.
    pub guard: u32,
}

/// Windows up to this length are tight: a second of guard would be a notable share of them.
const TIGHT: Duration = Duration::from_secs(60);

impl RingPlan {
    /// The plan for `quota`.
    ///
    /// | quota | sub-window | guard |
    /// |---|---|---|
    /// | 5000 or 100 in 600 s | 1 s | 1 s |
    /// | 1000 in 10 s | 25 ms | 50 ms |
    /// | any other | T/400 within 1 ms … 1 s | 50 ms for T ≤ 60 s, else 1 s |
    pub fn of(quota: Quota) -> Self {
        // In whole microseconds, which is as finely as a shared store's clock tells time.
        let sub_window =
            Duration::from_micros(u64::try_from(quota.window.as_micros().div_ceil(400)).unwrap_or(u64::MAX));
        let sub_window = sub_window.clamp(Duration::from_millis(1), Duration::from_secs(1));
        let guard = if quota.window <= TIGHT { Duration::from_millis(50) } else { Duration::from_secs(1) };
        let guard = u32::try_from(guard.as_nanos().div_ceil(sub_window.as_nanos())).unwrap_or(u32::MAX);
        Self { quota, sub_window, guard }
    }

    /// Sub-windows that count at any moment: those a window touches, and the guard.
    pub fn sub_windows(&self) -> usize {
        let touched = self.quota.window.as_nanos().div_ceil(self.sub_window.as_nanos()) + 1;
        usize::try_from(touched).unwrap_or(usize::MAX).saturating_add(self.guard as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plans_are_those_of_the_design() {
        let plan = |requests, seconds| {
            let plan = RingPlan::of(Quota { requests, window: Duration::from_secs(seconds) });
            (plan.sub_window.as_millis(), plan.guard, plan.sub_windows())
        };
        assert_eq!(plan(5000, 600), (1000, 1, 602));
        assert_eq!(plan(100, 600), (1000, 1, 602));
        assert_eq!(plan(1000, 10), (25, 2, 403));
        assert_eq!(plan(40, 4), (10, 5, 406));
        assert_eq!(plan(1, 1), (2, 20, 421));
    }
}
