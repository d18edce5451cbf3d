//! The server's clock as seen from here: how old a page is that another replica made.
//!
//! What a replica knows of the server's time is an answer it gave: it was given before it came, so the server's clock is at
//! least what it said, plus the time since. A page is dated by that lower bound and its age reckoned up to the server's own
//! time when it is read, so that a page is never taken for younger than it is.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::time::Timestamp;

/// Nothing is known yet.
const UNKNOWN: i64 = i64::MIN;

/// What is known of the server's clock.
#[derive(Debug)]
pub(super) struct ServerClock(AtomicI64);

impl Default for ServerClock {
    fn default() -> Self {
        Self(AtomicI64::new(UNKNOWN))
    }
}

impl ServerClock {
    /// The server said that it is `told` (milliseconds since 1970); that came at `now`.
    pub(super) fn heard(&self, told: i64, now: Timestamp) {
        // Whole milliseconds: the difference may be one too large.
        self.0.store(told.saturating_sub(millis(now)).saturating_sub(1), Ordering::Relaxed);
    }

    /// A moment in the server's milliseconds, rather too early than too late.
    pub(super) fn of(&self, moment: Timestamp) -> Option<i64> {
        let ahead = self.0.load(Ordering::Relaxed);
        (ahead != UNKNOWN).then(|| millis(moment).saturating_add(ahead))
    }
}

/// When something was that was dated `dated`, read in an answer to a call made at `asked`, in which the server said that it
/// is `told`. Where that is earlier its clock was set back, and nobody knows how old it is: older than anything, then.
pub(super) fn moment(dated: i64, told: i64, asked: Timestamp) -> Timestamp {
    match u64::try_from(told.saturating_sub(dated)) {
        Ok(age) => asked.before(Duration::from_millis(age)),
        Err(_) => Timestamp::default(),
    }
}

fn millis(moment: Timestamp) -> i64 {
    i64::try_from(moment.0 / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp(1_000_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn a_page_is_never_taken_for_younger_than_it_is() {
        let clock = ServerClock::default();
        assert_eq!(clock.of(at(0)), None, "before the server has said anything");
        // Asked at 0, answered by the server at 30 of our time, which is 7000 of its own, and back here at 100.
        clock.heard(7000, at(100));
        let dated = clock.of(at(200)).expect("known");
        assert!((7000..=7170).contains(&dated), "{dated}");
        // Read by a replica whose clock is another, 1 s later by the server's clock.
        let made = moment(dated, 8170, at(500_000));
        let age = at(500_000).since(made);
        assert!(age >= Duration::from_secs(1) && age <= Duration::from_millis(1170), "{age:?}");
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_page_younger_than_it_is() {
        assert_eq!(moment(8000, 8000, at(5)), at(5));
        assert_eq!(moment(9000, 8000, at(5)), Timestamp::default());
    }

    #[test]
    fn no_page_is_of_the_future_though_milliseconds_are_whole() {
        let clock = ServerClock::default();
        clock.heard(7000, Timestamp(1_000_900_000));
        // 0.2 ms later.
        let dated = clock.of(Timestamp(1_001_100_000)).expect("known");
        assert!(dated <= 7000, "{dated}");
    }
}
