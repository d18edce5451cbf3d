//! One clock for everything: [`tokio::time`], which tests pause and advance.
//!
//! `std::time::Instant` and `SystemTime::now` are banned by clippy. Windows and deadlines are monotonic, because a
//! wall clock steps (NTP, a resumed VM) and a stepped window is an amnesty. The wall clock serves only where a protocol
//! asks for a date ([`unix_now`]).

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::LazyLock;
use std::task::Poll;
use std::time::Duration;

use tokio::time::error::Elapsed;
pub use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

mod timers;

pub use timers::Timers;

/// As [`timeout_at`], for what is most often there at once: a timer is made only where there is something to wait for.
///
/// # Errors
/// It was not there by `deadline`.
pub async fn ready_by<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => timeout_at(deadline, future).await,
    }
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::None) };
}

/// What is known of the turn that a task has on this thread.
#[derive(Debug, Clone, Copy)]
enum Turn {
    None,
    Unasked,
    Since(Instant, Timestamp),
}

/// Polls a task: until that is over, [`this_turn`] asks the clock once.
pub fn turn<T>(poll: impl FnOnce() -> T) -> T {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            TURN.set(Turn::None);
        }
    }
    TURN.set(Turn::Unasked);
    let _over = Over;
    poll()
}

/// The present moment, to whom it makes no difference what came to pass since the task that is polled asked first.
///
/// A pass-through would ask 15 times, once in each part that it passes, and that is a fiftieth of its time. So within a
/// [`turn`] there is one moment, some microseconds of work long; elsewhere this asks the clock.
pub fn this_turn() -> Instant {
    match TURN.get() {
        Turn::None => Instant::now(),
        Turn::Unasked => look(),
        Turn::Since(moment, _) => moment,
    }
}

/// Asks the clock, and lets the [`turn`] go on from there.
pub fn look() -> Instant {
    let now = Instant::now();
    if !matches!(TURN.get(), Turn::None) {
        TURN.set(Turn::Since(now, Timestamp::of(now)));
    }
    now
}

/// Nanoseconds of monotonic time, from well before the process began; 584 years fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

/// How long before the process the scale begins: what was spent in a window before it has a place too.
const BEFORE: u64 = 2 * 24 * 3600 * 1_000_000_000;

impl Timestamp {
    /// The present moment.
    pub fn now() -> Self {
        Self::of(Instant::now())
    }

    /// See [`this_turn`].
    pub fn this_turn() -> Self {
        let now = this_turn();
        match TURN.get() {
            Turn::Since(_, moment) => moment,
            Turn::None | Turn::Unasked => Self::of(now),
        }
    }

    /// `instant` on this scale.
    pub fn of(instant: Instant) -> Self {
        match instant.checked_duration_since(*EPOCH) {
            Some(since) => Self(BEFORE.saturating_add(nanos(since))),
            // Another runtime's paused clock may be behind.
            None => Self(BEFORE.saturating_sub(nanos(EPOCH.saturating_duration_since(instant)))),
        }
    }

    /// How long from `earlier` to here; zero where `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// `duration` earlier; not before the scale begins.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// Back to an instant that timers understand.
    pub fn to_instant(self) -> Instant {
        match self.0.checked_sub(BEFORE) {
            Some(after) => *EPOCH + Duration::from_nanos(after),
            None => EPOCH.checked_sub(Duration::from_nanos(BEFORE - self.0)).unwrap_or(*EPOCH),
        }
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

/// When the process first asked.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// Wall-clock seconds since 1970, for HTTP dates and epoch resets. Never for measuring.
pub fn unix_now() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the one place where a protocol's date is read")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `duration` in whole seconds, rounded up: what `Retry-After` and `t` promise must not come too early.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_is_there_at_once_needs_no_timer() {
        // There is no runtime here to make one.
        let there = ready_by(Instant::now(), ready(1)).now_or_never();
        assert!(matches!(there, Some(Ok(1))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_one_moment_until_somebody_looks() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        // The clock goes on as soon as this is polled.
        let pass = || assert!(tokio::time::advance(second).now_or_never().is_none());
        turn(|| {
            assert_eq!(this_turn(), start);
            pass();
            assert_eq!(this_turn(), start);
            assert_eq!(look(), start + second);
            pass();
            assert_eq!(this_turn(), start + second);
        });
        assert_eq!(this_turn(), start + second * 2);
        look();
        pass();
        assert_eq!(this_turn(), start + second * 3, "there is no turn to look for");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_yet_is_waited_for_until_then() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert!(ready_by(start + second * 2, sleep(second)).await.is_ok());
        assert_eq!(start.elapsed(), second);
        assert!(ready_by(start + second * 2, pending::<()>()).await.is_err());
        assert_eq!(start.elapsed(), second * 2);
    }
}
