use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SECOND: Nanos = 1_000_000_000;

fn ring(requests: u32, seconds: u64) -> WindowRing {
    WindowRing::new(Quota { requests, window: Duration::from_secs(seconds) })
}

/// Takes one if it fits, as a budget does.
fn take(ring: &mut WindowRing, now: Nanos) -> Result<(), Nanos> {
    let now = ring.advance(now);
    let fits = ring.fits_at(1);
    if fits > now {
        return Err(fits);
    }
    ring.charge(now, 1);
    Ok(())
}

#[test]
fn the_whole_quota_is_there_at_once_and_then_comes_back_when_it_was_spent() {
    let mut ring = ring(100, 600);
    for _ in 0..100 {
        assert_eq!(take(&mut ring, 5 * SECOND), Ok(()));
    }
    let free_at = take(&mut ring, 6 * SECOND).expect_err("spent");
    assert_eq!(free_at, (5 + 602) * SECOND);
    ring.advance(free_at - 1);
    assert_eq!(ring.used(), 100);
    ring.advance(free_at);
    assert_eq!(ring.used(), 0);
}

#[test]
fn the_wait_for_several_counts_what_lapses_by_then() {
    let mut ring = ring(100, 600);
    for at in 0..100 {
        assert_eq!(take(&mut ring, at * SECOND), Ok(()));
    }
    assert_eq!(ring.fits_at(1), 602 * SECOND);
    assert_eq!(ring.fits_at(10), 611 * SECOND);
    assert_eq!(ring.next_lapse(), Some(602 * SECOND));
}

#[test]
fn a_refund_gives_back_to_the_sub_window_that_was_charged() {
    let mut ring = ring(2, 600);
    ring.charge(SECOND, 1);
    ring.charge(9 * SECOND, 1);
    ring.refund(SECOND, 1);
    assert_eq!((ring.used(), ring.next_lapse()), (1, Some(611 * SECOND)));
    ring.refund(SECOND, 1);
    assert_eq!(ring.used(), 1, "nothing is given back twice");
    ring.advance(10 * SECOND);
    ring.refund(9 * SECOND + 603 * SECOND, 1);
    assert_eq!(ring.used(), 1, "a refund from the future touches the present only");
}

#[test]
fn what_is_answered_within_the_guard_stays_where_it_was_charged_and_what_takes_longer_moves() {
    let mut ring = ring(1000, 10);
    ring.charge(SECOND, 1);
    ring.settle(SECOND, SECOND + SECOND / 20);
    assert_eq!(ring.next_lapse(), Some(SECOND + 403 * SECOND / 40));
    ring.settle(SECOND, 3 * SECOND);
    assert_eq!(ring.used(), 1);
    assert_eq!(ring.next_lapse(), Some(3 * SECOND - SECOND / 20 + 403 * SECOND / 40));
    ring.advance(100 * SECOND);
    assert_eq!(ring.used(), 0);
    ring.settle(3 * SECOND, 100 * SECOND);
    assert_eq!(ring.used(), 1, "upstream may have counted it only just now");
}

#[test]
fn a_clock_that_steps_back_frees_nothing() {
    let mut ring = ring(1, 600);
    assert_eq!(take(&mut ring, 1000 * SECOND), Ok(()));
    assert!(take(&mut ring, 10 * SECOND).is_err());
    assert!(take(&mut ring, 1000 * SECOND).is_err());
}

#[test]
fn what_was_spent_can_be_read_back() {
    let mut ring = ring(100, 600);
    ring.charge(SECOND, 3);
    ring.charge(90 * SECOND, 2);
    let spent: Vec<_> = ring.spent().collect();
    assert_eq!(spent, [(2 * SECOND - 1, 3), (91 * SECOND - 1, 2)]);
    let mut copy = WindowRing::new(Quota { requests: 100, window: Duration::from_secs(600) });
    spent.into_iter().for_each(|(at, n)| copy.charge(at, n));
    assert_eq!((copy.used(), copy.next_lapse()), (ring.used(), ring.next_lapse()));
    ring.advance(10_000 * SECOND);
    assert_eq!(ring.spent().count(), 0);
}

proptest! {
    /// Whatever happens, what fits later was told to fit then, and not before.
    #[test]
    fn a_wait_is_exact(
        acts in proptest::collection::vec((0u64..SECOND, any::<bool>(), 0u64..20), 1..300),
        requests in 1u32..50,
        seconds in 1u64..8,
    ) {
        let mut ring = ring(requests, seconds);
        let mut now = 0;
        let mut charged: Vec<Nanos> = Vec::new();
        for (wait, refund, late) in acts {
            now += wait;
            match take(&mut ring, now) {
                Ok(()) => charged.push(now),
                Err(until) => {
                    prop_assert!(until > now);
                    prop_assert!(take(&mut ring.clone(), until - 1).is_err());
                    prop_assert!(take(&mut ring.clone(), until).is_ok());
                }
            }
            match charged.pop() {
                Some(at) if refund => ring.refund(at, 1),
                Some(at) => ring.settle(at, now + late * SECOND / 10),
                None => {}
            }
            prop_assert_eq!(ring.spent().map(|(_, n)| u64::from(n)).sum::<u64>(), ring.used());
        }
    }
}
