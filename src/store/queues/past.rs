//! What was spent before this process began.
//!
//! Nobody here knows, but upstream does: its first answer tells what it has left (see
//! [`Budget::observe`](crate::domain::budget::Budget::observe)). So until that answer one request asks alone, and the others wait
//! for it; at most a second, so that an upstream that hangs or tells nothing holds nobody up for long.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::time::{Instant, timeout_at};

/// How long a request waits for another's answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the past is known.
#[derive(Debug)]
pub(super) struct Past {
    known: AtomicBool,
    /// One permit: to ask. Closed once the past is known.
    asking: Semaphore,
}

impl Default for Past {
    fn default() -> Self {
        Self { known: AtomicBool::new(false), asking: Semaphore::new(1) }
    }
}

/// The right to be the one that asks; dropped without an answer, another asks.
#[derive(Debug)]
pub struct First<'q> {
    past: &'q Past,
    _permit: SemaphorePermit<'q>,
}

impl Past {
    /// Waits until the past is known, or this one is the one to ask, or for long enough.
    pub(super) async fn ask(&self, deadline: Instant) -> Option<First<'_>> {
        if self.known.load(Ordering::Relaxed) {
            return None;
        }
        let due = deadline.min(Instant::now() + PATIENCE);
        let permit = timeout_at(due, self.asking.acquire()).await.ok()?.ok()?;
        Some(First { past: self, _permit: permit })
    }
}

impl First<'_> {
    /// Upstream has answered.
    pub fn answered(self) {
        self.past.known.store(true, Ordering::Relaxed);
        self.past.asking.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_asks_and_all_others_go_on_once_it_knows() {
        let past = Arc::new(Past::default());
        let started = Instant::now();
        let deadline = started + Duration::from_secs(20);
        let first = past.ask(deadline).await.expect("to ask");
        let others = TaskTracker::new();
        for _ in 0..10 {
            let past = past.clone();
            others.spawn(async move { assert!(past.ask(deadline).await.is_none()) });
        }
        tokio::task::yield_now().await;
        first.answered();
        others.close();
        others.wait().await;
        assert!(past.ask(deadline).await.is_none());
        assert_eq!(Instant::now(), started);
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_one_that_asks_fails_another_asks_and_nobody_waits_for_ever() {
        let past = Past::default();
        let deadline = Instant::now() + Duration::from_secs(20);
        drop(past.ask(deadline).await.expect("to ask"));
        let _first = past.ask(deadline).await.expect("to ask");
        let started = Instant::now();
        assert!(past.ask(deadline).await.is_none());
        assert_eq!(started.elapsed(), PATIENCE);
    }
}
