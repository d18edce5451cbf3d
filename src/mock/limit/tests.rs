use proptest::prelude::*;

use super::*;

const ALL: [Algorithm; 4] = [Algorithm::Trailing, Algorithm::Aligned, Algorithm::Lazy, Algorithm::Bucket];

fn at(seconds: f64) -> Timestamp {
    Timestamp::default() + Duration::from_secs_f64(seconds)
}

/// Three in ten seconds; each step is (second, allowed, remaining, seconds until more).
fn check(algorithm: Algorithm, steps: &[(f64, bool, u32, f64)]) {
    let quota = Quota { requests: 3, window: Duration::from_secs(10) };
    let mut counter = Counter::new(algorithm);
    for &(second, allowed, remaining, reset) in steps {
        let verdict = counter.take(at(second), quota);
        let seen =
            (verdict.allowed, verdict.remaining, (verdict.reset.as_secs_f64() * 100.0).round() / 100.0);
        assert_eq!(seen, (allowed, remaining, reset), "{algorithm:?} at {second} s");
    }
}

#[test]
fn the_trailing_log_counts_exactly_and_does_not_record_what_it_refuses() {
    check(
        Algorithm::Trailing,
        &[
            (1.0, true, 2, 10.0),
            (2.0, true, 1, 9.0),
            (9.0, true, 0, 2.0),
            (10.0, false, 0, 1.0),
            (10.9, false, 0, 0.1),
            (11.0, true, 0, 1.0),
            (11.5, false, 0, 0.5),
            (12.0, true, 0, 7.0),
            (40.0, true, 2, 10.0),
        ],
    );
}

#[test]
fn aligned_windows_begin_at_multiples_of_their_length() {
    check(
        Algorithm::Aligned,
        &[
            (9.0, true, 2, 1.0),
            (9.5, true, 1, 0.5),
            (9.9, true, 0, 0.1),
            (9.95, false, 0, 0.05),
            (10.0, true, 2, 10.0),
            (35.0, true, 2, 5.0),
        ],
    );
}

#[test]
fn lazy_windows_begin_with_a_request() {
    check(
        Algorithm::Lazy,
        &[
            (9.0, true, 2, 10.0),
            (18.0, true, 1, 1.0),
            (18.9, true, 0, 0.1),
            (18.95, false, 0, 0.05),
            (19.0, true, 2, 10.0),
            (31.0, true, 2, 10.0),
        ],
    );
}

#[test]
fn a_bucket_refills_evenly_and_never_beyond_its_depth() {
    check(
        Algorithm::Bucket,
        &[
            (0.0, true, 2, 3.33),
            (0.0, true, 1, 3.33),
            (0.0, true, 0, 3.33),
            (1.0, false, 0, 2.33),
            (3.4, true, 0, 3.27),
            (100.0, true, 2, 3.33),
        ],
    );
}

#[test]
fn algorithms_and_quotas_are_read_from_text() {
    for (text, algorithm) in ["trailing", "aligned", "lazy", "bucket"].into_iter().zip(ALL) {
        assert_eq!(text.parse(), Ok(algorithm));
    }
    assert!("sliding".parse::<Algorithm>().is_err());
    for (text, requests, seconds) in [("100/600s", 100, 600), ("1000/10s", 1000, 10), ("100/10m", 100, 600)] {
        assert_eq!(parse_quota(text), Ok(Quota { requests, window: Duration::from_secs(seconds) }));
    }
    for text in ["", "100", "100/", "/10s", "0/10s", "1/0s", "-1/10s", "1/10", "x/10s"] {
        assert!(parse_quota(text).is_err(), "{text:?}");
    }
}

#[test]
fn callers_are_counted_apart_and_the_idle_ones_are_forgotten() {
    let quota = Quota { requests: 1, window: Duration::from_secs(10) };
    let mut limiters = Limiters::new(quota, Algorithm::Trailing);
    assert!(limiters.take(&0, at(0.0)).allowed);
    assert!(limiters.take(&1, at(0.0)).allowed);
    assert!(!limiters.take(&0, at(1.0)).allowed);
    for caller in 2..MAX_CALLERS + 500 {
        limiters.take(&caller, at(2.0));
        assert!(limiters.counters.len() <= MAX_CALLERS);
    }
}

proptest! {
    /// Whatever the pace: the trailing log holds its quota in every window, the others twice theirs.
    #[test]
    fn no_window_holds_more_than_its_algorithm_promises(gaps in prop::collection::vec(0u64..3000, 1..200)) {
        let quota = Quota { requests: 5, window: Duration::from_secs(10) };
        for algorithm in ALL {
            let mut counter = Counter::new(algorithm);
            let mut now = Timestamp(7);
            let mut passed = Vec::new();
            for gap in &gaps {
                now = now + Duration::from_millis(*gap);
                if counter.take(now, quota).allowed {
                    passed.push(now);
                }
            }
            let promise = if algorithm == Algorithm::Trailing { 5 } else { 10 };
            for first in &passed {
                let held = passed.iter().filter(|at| *at >= first && at.since(*first) < quota.window).count();
                prop_assert!(held <= promise, "{algorithm:?}: {held}");
            }
        }
    }

    /// A refusal's reset is no lie: the next request passes once it is over.
    #[test]
    fn after_the_reset_there_is_room(gaps in prop::collection::vec(0u64..3000, 1..100)) {
        let quota = Quota { requests: 4, window: Duration::from_secs(7) };
        for algorithm in ALL {
            let mut counter = Counter::new(algorithm);
            let mut now = Timestamp(3);
            for gap in &gaps {
                now = now + Duration::from_millis(*gap);
                let verdict = counter.take(now, quota);
                if !verdict.allowed {
                    prop_assert_eq!(verdict.remaining, 0);
                    now = now + verdict.reset;
                    prop_assert!(counter.take(now, quota).allowed, "{:?}", algorithm);
                }
            }
        }
    }
}
