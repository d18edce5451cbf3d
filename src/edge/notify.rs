//! What the service manager is told (`NOTIFY_SOCKET`, sd_notify(3)); where there is none, nothing happens.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::deadlines::TICK;
use crate::time::Instant;

/// Beyond the drain's deadline: for the last answers of the admin port and the state file.
const FAREWELL: Duration = Duration::from_secs(10);

/// Callers are served: on start, and when a reload is over, whatever came of it.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being loaded anew; [`ready`] has to follow.
pub fn reloading() {
    let mut state = vec![NotifyState::Reloading];
    // Without it systemd could not tell this reload from an earlier one.
    state.extend(NotifyState::monotonic_usec_now().ok());
    tell(&state);
}

/// The proxy drains, which may last until `deadline` whatever the manager would allow.
pub fn stopping(deadline: Duration) {
    let most = u32::try_from((deadline + FAREWELL).as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(most)]);
}

/// Tells that the process is alive for as long as each worker is, where the manager wants to know (`WATCHDOG_USEC`).
/// Once it is not `ready` any more, workers end one by one, and the drain's own deadline sees to the rest.
pub async fn watchdog(beats: Vec<Beat>, ready: Arc<AtomicBool>, stop: CancellationToken) {
    let Some(within) = sd_notify::watchdog_enabled().filter(|within| !within.is_zero()) else { return };
    let mut due = tokio::time::interval(within / 2);
    let mut pulse = Pulse::new(beats, within / 2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = due.tick() => {}
        }
        if pulse.is_felt() || !ready.load(Ordering::Relaxed) {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a worker does not move: the service manager is not told that all is well");
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    static WARNED: Once = Once::new();
    if let Err(error) = sd_notify::notify(state) {
        // The watchdog would say so for ever.
        WARNED.call_once(|| {
            tracing::warn!(%error, "the service manager cannot be told how we are (NOTIFY_SOCKET)");
        });
    }
}

/// Counted up by a worker, every [`TICK`].
pub type Beat = Arc<AtomicU64>;

/// Whether every worker moves.
struct Pulse {
    beats: Vec<(Beat, u64, Instant)>,
    patience: Duration,
}

impl Pulse {
    fn new(beats: Vec<Beat>, patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            beats: beats.into_iter().map(|beat| (beat, 0, now)).collect(),
            patience: patience.max(TICK * 4),
        }
    }

    fn is_felt(&mut self) -> bool {
        let now = Instant::now();
        for (beat, last, moved) in &mut self.beats {
            let count = beat.load(Ordering::Relaxed);
            if *last != count {
                (*last, *moved) = (count, now);
            }
        }
        self.beats.iter().all(|(_, _, moved)| now.duration_since(*moved) <= self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn one_worker_that_hangs_is_enough() {
        let beats = vec![Beat::default(), Beat::default()];
        let mut pulse = Pulse::new(beats.clone(), Duration::from_secs(5));
        for seconds in 1..=10 {
            sleep(Duration::from_secs(1)).await;
            beats[0].fetch_add(4, Ordering::Relaxed);
            assert_eq!(pulse.is_felt(), seconds <= 5, "{seconds}");
        }
        beats[1].fetch_add(1, Ordering::Relaxed);
        assert!(pulse.is_felt(), "it moves again");
    }
}
