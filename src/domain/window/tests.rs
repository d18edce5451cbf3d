use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::domain::quota::Quota;

const SECOND: Nanos = 1_000_000_000;

fn ring(requests: u32, seconds: u64) -> WindowRing {
    WindowRing::new(RingPlan::of(Quota { requests, window: Duration::from_secs(seconds) }))
}

fn take(ring: &mut WindowRing, now: Nanos) -> Result<(), Nanos> {
    ring.check(now, 1).map(|()| ring.charge(now, 1))
}

#[test]
fn the_whole_budget_is_there_at_once_and_then_comes_back_when_it_was_spent() {
    let mut ring = ring(100, 600);
    for _ in 0..100 {
        assert_eq!(take(&mut ring, 5 * SECOND), Ok(()));
    }
    let free_at = take(&mut ring, 6 * SECOND).expect_err("spent");
    assert_eq!(free_at, (5 + 602) * SECOND);
    assert_eq!(ring.check(free_at - 1, 1), Err(free_at));
    assert_eq!(ring.check(free_at, 100), Ok(()));
}

#[test]
fn the_wait_for_several_counts_what_lapses_by_then() {
    let mut ring = ring(100, 600);
    for at in 0..100 {
        assert_eq!(take(&mut ring, at * SECOND), Ok(()));
    }
    assert_eq!(ring.check(100 * SECOND, 1), Err(602 * SECOND));
    assert_eq!(ring.check(100 * SECOND, 10), Err(611 * SECOND));
}

#[test]
fn the_wait_for_more_than_ever_fits_is_that_of_as_many_windows() {
    let mut ring = ring(10, 600);
    assert_eq!(ring.check(SECOND, 10), Ok(()));
    assert_eq!(ring.check(SECOND, 11), Err((1 + 602) * SECOND));
    for _ in 0..10 {
        assert_eq!(take(&mut ring, SECOND), Ok(()));
    }
    assert_eq!(ring.check(2 * SECOND, 10), Err(603 * SECOND));
    assert_eq!(ring.check(2 * SECOND, 11), Err((603 + 602) * SECOND));
    assert_eq!(ring.check(2 * SECOND, 21), Err((603 + 2 * 602) * SECOND));
}

#[test]
fn a_snapshot_tells_what_is_left_and_when_it_grows() {
    let mut ring = ring(100, 600);
    assert_eq!(ring.snapshot(SECOND, 0), Snapshot { remaining: 100, grows_at: None });
    ring.charge(SECOND, 1);
    ring.charge(9 * SECOND, 2);
    assert_eq!(ring.snapshot(10 * SECOND, 0), Snapshot { remaining: 97, grows_at: Some(603 * SECOND) });
    assert_eq!(ring.snapshot(603 * SECOND, 0), Snapshot { remaining: 98, grows_at: Some(611 * SECOND) });
    assert_eq!(ring.snapshot(9_000 * SECOND, 0), Snapshot { remaining: 100, grows_at: None });
}

#[test]
fn a_shut_gate_admits_nothing_until_it_opens() {
    let mut ring = ring(100, 600);
    ring.penalise(30 * SECOND);
    assert_eq!(ring.check(SECOND, 1), Err(30 * SECOND));
    assert_eq!(ring.snapshot(SECOND, 0), Snapshot { remaining: 0, grows_at: Some(30 * SECOND) });
    ring.penalise(10 * SECOND);
    assert_eq!(ring.check(29 * SECOND, 1), Err(30 * SECOND), "an earlier hint never opens it sooner");
    assert_eq!(ring.check(30 * SECOND, 1), Ok(()));
}

#[test]
fn a_refund_gives_back_to_the_sub_window_that_was_charged() {
    let mut ring = ring(2, 600);
    ring.charge(SECOND, 1);
    ring.charge(9 * SECOND, 1);
    ring.refund(SECOND, 1);
    assert_eq!(ring.snapshot(10 * SECOND, 0), Snapshot { remaining: 1, grows_at: Some(611 * SECOND) });
    ring.refund(SECOND, 1);
    assert_eq!(ring.spent(), 1, "nothing is given back twice");
    ring.refund(9 * SECOND + 603 * SECOND, 1);
    assert_eq!(ring.spent(), 1, "a refund from the future touches the present only");
}

#[test]
fn what_others_spent_on_the_account_counts_until_it_lapses() {
    let mut ring = ring(100, 600);
    for _ in 0..10 {
        ring.charge(SECOND, 1);
    }
    ring.observe(2 * SECOND, 60, 50 * SECOND);
    assert_eq!(ring.snapshot(2 * SECOND, 0).remaining, 60);
    ring.observe(3 * SECOND, 85, 50 * SECOND);
    assert_eq!(ring.snapshot(3 * SECOND, 0).remaining, 85, "a later response re-estimates");
    assert_eq!(ring.snapshot(50 * SECOND, 0).remaining, 90, "and our own spend is never forgotten for it");
    ring.observe(51 * SECOND, 99, 60 * SECOND);
    assert_eq!(ring.snapshot(51 * SECOND, 0).remaining, 90, "a generous answer raises nothing");
}

#[test]
fn a_limit_of_the_operators_own_is_not_taken_for_what_others_spent() {
    // Ours counts over a second, upstream's over ten minutes: what lapsed here is still spent there.
    let mut ring = ring(10, 1);
    let at = 500 * SECOND;
    ring.observe(at, 4000, at + 600 * SECOND);
    assert_eq!(ring.snapshot(at, 0).remaining, 9);
    ring.observe(at, 4, at + 600 * SECOND);
    assert_eq!(ring.snapshot(at, 0).remaining, 4, "but never more than upstream has left");
}

#[test]
fn a_clock_that_steps_back_frees_nothing() {
    let mut ring = ring(1, 600);
    assert_eq!(take(&mut ring, 1000 * SECOND), Ok(()));
    assert!(take(&mut ring, 10 * SECOND).is_err());
    assert!(take(&mut ring, 1000 * SECOND).is_err());
}

#[derive(Debug, Clone)]
enum Act {
    Wait(u64),
    Acquire(u32),
    Refund,
    Penalise(u64),
    Observe { remaining: u32, reset: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0u64..3_000_000_000).prop_map(Act::Wait),
        8 => (1u32..6).prop_map(Act::Acquire),
        2 => Just(Act::Refund),
        1 => (0u64..2_000_000_000).prop_map(Act::Penalise),
        2 => (0u32..60, 0u64..9_000_000_000).prop_map(|(remaining, reset)| Act::Observe { remaining, reset }),
    ];
    proptest::collection::vec(act, 1..400)
}

proptest! {
    /// Whatever is done, no window holds more than the cap, and a wait that was told is exact.
    #[test]
    fn no_window_ever_holds_more_than_the_cap(acts in acts(), requests in 1u32..50, seconds in 1u64..8) {
        let mut ring = ring(requests, seconds);
        let cap = u64::from(ring.plan().cap);
        let window = seconds * SECOND;
        let mut now = 0;
        let mut admitted: Vec<(Nanos, u32)> = Vec::new();
        for act in acts {
            match act {
                Act::Wait(nanos) => now += nanos,
                Act::Acquire(n) => match ring.check(now, n) {
                    Ok(()) => {
                        ring.charge(now, n);
                        admitted.push((now, n));
                    }
                    Err(until) if u64::from(n) <= cap => {
                        prop_assert!(until > now);
                        let mut later = ring.clone();
                        prop_assert_eq!(later.check(until, n), Ok(()), "served when told");
                        let mut earlier = ring.clone();
                        prop_assert!(earlier.check(until - 1, n).is_err(), "and not before");
                    }
                    Err(_) => {}
                },
                Act::Refund => {
                    if let Some((at, n)) = admitted.pop() {
                        ring.refund(at, n);
                    }
                }
                Act::Penalise(nanos) => ring.penalise(now + nanos),
                Act::Observe { remaining, reset } => ring.observe(now, remaining, now + reset),
            }
            let in_window: u64 = admitted.iter().filter(|(at, _)| at + window >= now).map(|(_, n)| u64::from(*n)).sum();
            prop_assert!(in_window <= cap, "{in_window} of {cap}");
        }
    }
}
