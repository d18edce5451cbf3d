use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::domain::quota::Quota;

const SECOND: Nanos = 1_000_000_000;

fn budget(requests: u32, seconds: u64) -> Budget {
    Budget::new(Plan::window(Quota { requests, window: Duration::from_secs(seconds) }))
}

/// One request behind `n - 1` others.
fn nth(n: u32) -> Wanted {
    Wanted { ahead: n - 1, held_back: 0 }
}

fn take(budget: &mut Budget, now: Nanos) -> Result<(), Nanos> {
    budget.check(now, nth(1)).map(|()| budget.charge(now))
}

/// So many that were charged and answered at once.
fn spend(budget: &mut Budget, now: Nanos, n: u32) {
    for _ in 0..n {
        budget.charge(now);
        budget.settle(now, now);
    }
}

fn remaining(budget: &mut Budget, now: Nanos) -> u32 {
    budget.snapshot(now, 0).remaining
}

#[test]
fn the_wait_for_more_than_ever_fits_is_that_of_as_many_windows() {
    let mut budget = budget(10, 600);
    assert_eq!(budget.check(SECOND, nth(10)), Ok(()));
    assert_eq!(budget.check(SECOND, nth(11)), Err((1 + 602) * SECOND));
    spend(&mut budget, SECOND, 10);
    assert_eq!(budget.check(2 * SECOND, nth(10)), Err(603 * SECOND));
    assert_eq!(budget.check(2 * SECOND, nth(11)), Err((603 + 602) * SECOND));
    assert_eq!(budget.check(2 * SECOND, nth(21)), Err((603 + 2 * 602) * SECOND));
}

#[test]
fn a_snapshot_tells_what_is_left_and_when_it_grows() {
    let mut budget = budget(100, 600);
    assert_eq!(budget.snapshot(SECOND, 0), Snapshot { remaining: 100, grows_at: None, shut: false });
    spend(&mut budget, SECOND, 1);
    spend(&mut budget, 9 * SECOND, 2);
    assert_eq!(
        budget.snapshot(10 * SECOND, 0),
        Snapshot { remaining: 97, grows_at: Some(603 * SECOND), shut: false }
    );
    assert_eq!(
        budget.snapshot(10 * SECOND, 97),
        Snapshot { remaining: 0, grows_at: Some(603 * SECOND), shut: false }
    );
    assert_eq!(
        budget.snapshot(10 * SECOND, 98),
        Snapshot { remaining: 0, grows_at: Some(611 * SECOND), shut: false }
    );
    assert_eq!(
        budget.snapshot(603 * SECOND, 0),
        Snapshot { remaining: 98, grows_at: Some(611 * SECOND), shut: false }
    );
    assert_eq!(budget.snapshot(9_000 * SECOND, 0), Snapshot { remaining: 100, grows_at: None, shut: false });
}

#[test]
fn a_shut_gate_admits_nothing_until_it_opens() {
    let mut budget = budget(100, 600);
    budget.penalise(30 * SECOND);
    assert_eq!(budget.check(SECOND, nth(1)), Err(30 * SECOND));
    assert_eq!(
        budget.snapshot(SECOND, 0),
        Snapshot { remaining: 0, grows_at: Some(30 * SECOND), shut: true }
    );
    budget.penalise(10 * SECOND);
    assert_eq!(budget.check(29 * SECOND, nth(1)), Err(30 * SECOND), "an earlier hint never opens it sooner");
    assert_eq!(budget.check(30 * SECOND, nth(1)), Ok(()));
}

#[test]
fn after_the_gate_it_starts_slowly_and_says_when() {
    let mut budget = budget(100, 600);
    budget.penalise(30 * SECOND);
    let mut passed = Vec::new();
    for second in 30..38 {
        let mut now = 0;
        while take(&mut budget, second * SECOND).is_ok() {
            now += 1;
        }
        passed.push(now);
    }
    assert_eq!(passed, [1, 2, 4, 8, 16, 32, 37, 0]);

    let mut budget = self::budget(100, 600);
    budget.penalise(30 * SECOND);
    assert_eq!(take(&mut budget, 30 * SECOND), Ok(()));
    assert_eq!(take(&mut budget, 30 * SECOND), Err(31 * SECOND));
    assert_eq!(budget.check(30 * SECOND, nth(3)), Err(32 * SECOND));
    assert_eq!(
        budget.snapshot(31 * SECOND, 0),
        Snapshot { remaining: 2, grows_at: Some(32 * SECOND), shut: false }
    );
    budget.refund(30 * SECOND);
    assert_eq!(take(&mut budget, 30 * SECOND), Ok(()), "what was never sent gives its place to another");
    budget.penalise(50 * SECOND);
    assert_eq!(budget.check(50 * SECOND, nth(2)), Err(51 * SECOND), "another 429 begins it anew");
}

#[test]
fn what_others_spent_on_the_account_counts_until_it_lapses() {
    let mut budget = budget(100, 600);
    spend(&mut budget, SECOND, 10);
    let told = |remaining, reset: u64| Told { remaining, reset: reset * SECOND };
    budget.observe(2 * SECOND, SECOND, told(60, 50));
    assert_eq!(remaining(&mut budget, 2 * SECOND), 60);
    budget.observe(3 * SECOND, SECOND, told(85, 50));
    assert_eq!(remaining(&mut budget, 3 * SECOND), 85, "a later answer re-estimates");
    assert_eq!(remaining(&mut budget, 50 * SECOND), 86, "at the reset one may go and see");
    assert_eq!(remaining(&mut budget, 51 * SECOND), 86, "and no more, as long as none does;");
    budget.charge(51 * SECOND);
    assert_eq!(
        remaining(&mut budget, 53 * SECOND),
        85,
        "nor another before its answer is there, however long it takes;"
    );
    budget.settle(51 * SECOND, 53 * SECOND);
    assert_eq!(remaining(&mut budget, 53 * SECOND), 86, "without news the next may go,");
    budget.observe(53 * SECOND, 53 * SECOND, told(99, 60));
    assert_eq!(
        remaining(&mut budget, 53 * SECOND),
        89,
        "and a generous answer ends it: our own spend is all that counts"
    );
    budget.observe(54 * SECOND, 2 * SECOND, told(0, 60));
    assert_eq!(remaining(&mut budget, 54 * SECOND), 89, "an answer that was overtaken is old news");
    budget.observe(54 * SECOND, 54 * SECOND, told(0, 9_000_000));
    assert_eq!(budget.check(54 * SECOND, nth(1)), Err(603 * SECOND), "our own lapses first");
    assert_eq!(budget.check(54 * SECOND, nth(12)), Err(654 * SECOND), "and no estimate outlives the window");
}

#[test]
fn what_is_in_flight_is_no_alibi_for_others_once_two_answers_agree() {
    let mut budget = budget(100, 600);
    let told = |remaining| Told { remaining, reset: 60 * SECOND };
    for _ in 0..12 {
        budget.charge(SECOND);
    }
    // Twenty were spent by others; ten of ours have not arrived.
    budget.settle(SECOND, SECOND);
    budget.observe(SECOND, SECOND, told(100 - 20 - 1));
    assert_eq!(remaining(&mut budget, SECOND), 79, "so much is certain");
    budget.settle(SECOND, SECOND);
    budget.observe(SECOND, SECOND, told(100 - 20 - 2));
    assert_eq!(remaining(&mut budget, SECOND), 68, "and so much is likely");
}

#[test]
fn a_limit_of_the_operators_own_is_not_taken_for_what_others_spent() {
    // Ours counts over a second, upstream's over ten minutes: what lapsed here is still spent there.
    let mut budget = budget(10, 1);
    let at = 500 * SECOND;
    budget.observe(at, at, Told { remaining: 4000, reset: at + 600 * SECOND });
    assert_eq!(remaining(&mut budget, at), 10);
    budget.observe(at, at, Told { remaining: 4, reset: at + 600 * SECOND });
    assert_eq!(remaining(&mut budget, at), 4, "but never more than upstream has left");
}

#[test]
fn another_plan_keeps_what_was_spent() {
    let quota = |requests, seconds| Quota { requests, window: Duration::from_secs(seconds) };
    for algorithm in [Algorithm::Window, Algorithm::TokenBucket] {
        let mut budget = budget(100, 600);
        spend(&mut budget, SECOND, 60);
        budget.penalise(20 * SECOND);
        let now = 30 * SECOND;
        let mut next = budget.replan(now, Plan { quota: quota(80, 300), algorithm });
        // A bucket has refilled since by thirty seconds' worth.
        let refilled = if algorithm == Algorithm::TokenBucket { 7 } else { 0 };
        assert_eq!(remaining(&mut next, now), 20 + refilled);
        assert_eq!(next.gate(), 20 * SECOND);
        let mut back = next.replan(now, Plan::window(quota(100, 600)));
        assert!((40..=60).contains(&remaining(&mut back, now + 10 * SECOND)));
    }
}

#[derive(Debug, Clone)]
enum Act {
    Wait(u64),
    /// So much is held back from who asks.
    Acquire(u32),
    Refund,
    /// The oldest that is in flight is answered, and was counted at this share of the time since its charge.
    Answer {
        counted: u64,
        remaining: u32,
        reset: u64,
    },
    Penalise(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0u64..SECOND).prop_map(Act::Wait),
        10 => Just(Act::Acquire(0)),
        2 => (0u32..60).prop_map(Act::Acquire),
        1 => Just(Act::Refund),
        10 => (0u64..=100, 0u32..60, 0u64..9 * SECOND)
            .prop_map(|(counted, remaining, reset)| Act::Answer { counted, remaining, reset }),
        1 => (0u64..2 * SECOND).prop_map(Act::Penalise),
    ];
    proptest::collection::vec(act, 1..500)
}

proptest! {
    /// Whatever is done, and however late upstream counts a request that it answers, it never counts more than the quota in
    /// any window of its own; and a wait that was told is exact.
    #[test]
    fn no_window_upstream_ever_holds_more_than_the_quota(acts in acts(), requests in 1u32..50, seconds in 1u64..8) {
        let mut budget = budget(requests, seconds);
        let window = seconds * SECOND;
        let mut now = SECOND;
        let mut in_flight: std::collections::VecDeque<Nanos> = std::collections::VecDeque::new();
        let mut counted_at: Vec<Nanos> = Vec::new();
        for act in acts {
            match act {
                Act::Wait(nanos) => now += nanos,
                Act::Acquire(held_back) => match budget.check(now, Wanted { ahead: 0, held_back }) {
                    Ok(()) => {
                        budget.charge(now);
                        in_flight.push_back(now);
                    }
                    Err(until) => {
                        prop_assert!(until > now);
                        if budget.foreign.probed.is_some() {
                            continue; // When its answer comes nobody knows.
                        }
                        let wanted = Wanted { ahead: 0, held_back };
                        prop_assert_eq!(budget.clone().check(until, wanted), Ok(()), "served when told");
                        prop_assert!(budget.clone().check(until - 1, wanted).is_err(), "and not before");
                    }
                },
                Act::Refund => {
                    if let Some(at) = in_flight.pop_back() {
                        budget.refund(at);
                    }
                }
                Act::Answer { counted, remaining, reset } => {
                    if let Some(at) = in_flight.pop_front() {
                        counted_at.push(at + (now - at) / 100 * counted);
                        budget.settle(at, now);
                        budget.observe(now, at, Told { remaining, reset: now + reset });
                    }
                }
                Act::Penalise(nanos) => budget.penalise(now + nanos),
            }
            // What is answered in the end was counted; what is still in flight may be from now on.
            while in_flight.front().is_some_and(|at| at + window / 2 < now) {
                let at = in_flight.pop_front().expect("it is there");
                counted_at.push(now);
                budget.settle(at, now);
            }
        }
        counted_at.extend(in_flight);
        counted_at.sort_unstable();
        for (first, at) in counted_at.iter().enumerate() {
            let in_window = counted_at[first..].iter().take_while(|other| **other < at + window).count();
            prop_assert!(in_window <= requests as usize, "{in_window} of {requests}");
        }
    }
}
