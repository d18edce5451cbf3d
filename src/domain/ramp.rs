//! The slow start: what may go out again after a stop, 1, 2, 4, … more with each step.
//!
//! By time and not by answers, so that the wait for a place in it is known beforehand and replicas agree on it.

type Nanos = u64;

/// How many may have gone by `now` since it began at `since`: 1 at once, 3 after one step, 7 after two, …
pub(super) fn open(step: Nanos, since: Nanos, now: Nanos) -> u64 {
    let Some(passed) = now.checked_sub(since) else { return 0 };
    (2 << (passed / step.max(1)).min(60)) - 1
}

/// The first moment at which `n` may have gone.
pub(super) fn opens_at(step: Nanos, since: Nanos, n: u64) -> Nanos {
    // The smallest k with 2^(k + 1) - 1 ≥ n.
    let steps = (n.saturating_add(1)).next_power_of_two().trailing_zeros().saturating_sub(1);
    since.saturating_add(step.max(1).saturating_mul(u64::from(steps)))
}

/// When more opens than at `now`.
pub(super) fn next(step: Nanos, since: Nanos, now: Nanos) -> Nanos {
    match now.checked_sub(since) {
        Some(passed) => since.saturating_add((passed / step.max(1) + 1).saturating_mul(step.max(1))),
        None => since,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_with_each_step_and_its_times_are_those_of_its_counts() {
        let counts: Vec<u64> = [99, 100, 109, 110, 120, 130].map(|now| open(10, 100, now)).into();
        assert_eq!(counts, [0, 1, 1, 3, 7, 15]);
        assert_eq!([1, 2, 3, 4, 7, 8].map(|n| opens_at(10, 100, n)), [100, 110, 110, 120, 120, 130]);
        for n in 1..5000 {
            let at = opens_at(10, 100, n);
            assert!(open(10, 100, at) >= n && open(10, 100, at - 1) < n, "{n}");
        }
        assert_eq!([50, 100, 105, 110].map(|now| next(10, 100, now)), [100, 110, 110, 120]);
        assert!(open(1, 0, u64::MAX) > u64::from(u32::MAX));
    }
}
