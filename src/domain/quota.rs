//! How much in how long: the documented limits, and what a window ring makes of them.

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

/// A quota cut into sub-windows.
///
/// The ring counts the oldest sub-window whole and keeps `guard` more, so that arrivals that are delayed by up to
/// `guard × sub_window` still find no more than `cap` in any window upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlan {
    /// The quota as documented: what callers are told.
    pub quota: Quota,
    /// Length of one sub-window.
    pub sub_window: Duration,
    /// Sub-windows kept beyond the window.
    pub guard: u32,
    /// What the ring hands out at most; `requests` less what is held back against jitter.
    pub cap: u32,
}

/// Windows up to this length are tight: network jitter is a notable share of them.
const TIGHT: Duration = Duration::from_secs(60);

impl RingPlan {
    /// The plan for `quota`.
    ///
    /// | quota | sub-window | guard | cap |
    /// |---|---|---|---|
    /// | 5000 or 100 in 600 s | 1 s | 1 s | all |
    /// | 1000 in 10 s | 25 ms | 50 ms | 990 |
    /// | any other | T/400 within 1 ms … 1 s | 50 ms for T ≤ 60 s, else 1 s | 99 % for T ≤ 60 s, else all |
    pub fn of(quota: Quota) -> Self {
        let sub_window = (quota.window / 400).clamp(Duration::from_millis(1), Duration::from_secs(1));
        let tight = quota.window <= TIGHT;
        let guard = if tight { Duration::from_millis(50) } else { Duration::from_secs(1) };
        let guard = u32::try_from(guard.as_nanos().div_ceil(sub_window.as_nanos())).unwrap_or(u32::MAX);
        let held_back = if tight { quota.requests.div_ceil(100) } else { 0 };
        // A quota of one must stay usable.
        let cap = (quota.requests - held_back.min(quota.requests)).max(1);
        Self { quota, sub_window, guard, cap }
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
            (plan.sub_window.as_millis(), plan.guard, plan.cap, plan.sub_windows())
        };
        assert_eq!(plan(5000, 600), (1000, 1, 5000, 602));
        assert_eq!(plan(100, 600), (1000, 1, 100, 602));
        assert_eq!(plan(1000, 10), (25, 2, 990, 403));
        assert_eq!(plan(40, 4), (10, 5, 39, 406));
        assert_eq!(plan(1, 1), (2, 20, 1, 421));
    }
}
