//! The server's clock, as a replica knows it: never ahead of it.

use std::time::Duration;

use super::{Nanos, nanos};
use crate::time::Timestamp;

/// A reading that is later than a new one by less than this was only taken over a faster way.
const JITTER: Duration = Duration::from_millis(100);
/// For so long: clocks drift.
const TRUSTED: Duration = Duration::from_secs(10);

/// What the server's clock said, and when that was heard. Before anything was heard, this process's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    heard: Option<(Timestamp, Nanos)>,
}

impl Clock {
    /// The server's time at `at`.
    pub(super) fn now(&self, at: Timestamp) -> Nanos {
        match self.heard {
            None => at.0,
            Some((heard, server)) => server.saturating_add(at.0).saturating_sub(heard.0),
        }
    }

    /// Back to this process's clock.
    pub(super) fn local(&self, at: Nanos) -> Timestamp {
        match self.heard {
            None => Timestamp(at),
            Some((heard, server)) => Timestamp(at.saturating_add(heard.0).saturating_sub(server)),
        }
    }

    /// Whether the server's time is known at all.
    pub(super) fn is_known(&self) -> bool {
        self.heard.is_some()
    }

    /// The server's clock said `server`, which was heard at `at`: it was read before, so it shows that much now at least.
    ///
    /// How far moments that were noted by what was known before are to be moved: rather too late than too soon, for what was
    /// spent then must not lapse before it does upstream.
    pub(super) fn hear(&mut self, at: Timestamp, server: Nanos) -> i128 {
        let before = self.now(at);
        let (late, jitter) = (before.saturating_sub(server), nanos(JITTER));
        let known = self.heard.filter(|_| before.abs_diff(server) < jitter);
        let slower = late > 0 && known.is_some();
        if slower && known.is_some_and(|(heard, _)| at.since(heard) < TRUSTED) {
            return 0;
        }
        self.heard = Some((at, server));
        let jump = i128::from(server) - i128::from(before);
        match known {
            // Only an answer that took longer: the reading before was the better one.
            Some(_) if slower => 0,
            Some(_) => jump,
            // Another clock, and nobody knows how long its answer took.
            None => jump + i128::from(jitter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Nanos = 1_000_000;

    #[test]
    fn it_goes_with_the_fastest_answer_and_follows_a_server_that_goes_elsewhere() {
        let mut clock = Clock::default();
        assert_eq!(clock.now(Timestamp(7)), 7);
        let at = |millis: u64| Timestamp(millis * MILLI);
        clock.hear(at(1000), 500_010 * MILLI);
        assert_eq!(clock.hear(at(2000), 501_005 * MILLI), 0, "only a slower answer");
        assert_eq!(clock.now(at(2000)), 501_010 * MILLI);
        assert_eq!(clock.local(501_010 * MILLI), at(2000));
        assert_eq!(clock.hear(at(3000), 502_015 * MILLI), 5 * i128::from(MILLI));
        assert_eq!(
            clock.hear(at(4000), 400_000 * MILLI),
            -103_015 * i128::from(MILLI) + i128::from(nanos(JITTER))
        );
        assert_eq!(clock.now(at(4000)), 400_000 * MILLI);
    }

    #[test]
    fn a_slower_answer_sets_it_back_in_the_long_run_and_moves_nothing_that_was_noted() {
        let mut clock = Clock::default();
        let at = |millis: u64| Timestamp(millis * MILLI);
        clock.hear(at(1000), 500_010 * MILLI);
        assert_eq!(clock.hear(at(12_000), 511_002 * MILLI), 0);
        assert_eq!(clock.now(at(12_000)), 511_002 * MILLI);
    }
}
