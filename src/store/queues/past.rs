//! What was spent before this process began.
//!
//! Nobody here knows, but upstream does: its first answer tells what it has left (see
//! [`Budget::observe`](crate::domain::budget::Budget::observe)). So until that answer one request asks alone, and the others wait
//! for it; a second in all, so that an upstream that hangs or tells nothing holds nobody up for long. Then they go on slowly.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::time::{Instant, timeout_at};

/// How long requests wait for the first answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the past is known.
#[derive(Debug)]
pub(super) struct Past {
    known: AtomicBool,
    /// When the first one asked.
    asked: OnceLock<Instant>,
    /// Patience has ended.
    overdue: AtomicBool,
    /// One permit: to ask. Closed once the past is known.
    asking: Semaphore,
}

impl Default for Past {
    fn default() -> Self {
        let (known, overdue) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { known, asked: OnceLock::new(), overdue, asking: Semaphore::new(1) }
    }
}

/// How a request may go on while the past is not known.
#[derive(Debug)]
pub enum Opening<'q> {
    /// As any other: it is known.
    Known,
    /// It is the one that asks.
    First(First<'q>),
    /// There is no answer in time. The first who learns so has to see to it that all go on slowly.
    Overdue {
        /// It is the first.
        first: bool,
    },
}

/// The right to be the one that asks; dropped without an answer, another asks.
#[derive(Debug)]
pub struct First<'q> {
    past: &'q Past,
    _permit: SemaphorePermit<'q>,
}

impl Past {
    /// Waits until the past is known, or this one is the one to ask, or for long enough.
    pub(super) async fn ask(&self, deadline: Instant) -> Opening<'_> {
        match self.known.load(Ordering::Relaxed) {
            true => Opening::Known,
            // Boxed: soon nobody waits here any more.
            false => Box::pin(self.wait(deadline)).await,
        }
    }

    async fn wait(&self, deadline: Instant) -> Opening<'_> {
        let due = *self.asked.get_or_init(Instant::now) + PATIENCE;
        match timeout_at(deadline.min(due), self.asking.acquire()).await {
            Ok(Ok(permit)) => Opening::First(First { past: self, _permit: permit }),
            Ok(Err(_)) => Opening::Known,
            Err(_) => Opening::Overdue { first: !self.overdue.swap(true, Ordering::Relaxed) },
        }
    }
}

impl Opening<'_> {
    /// Upstream has answered this one.
    pub fn answered(self) {
        if let Self::First(first) = self {
            first.answered();
        }
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
        let Opening::First(first) = past.ask(deadline).await else { panic!("not the first") };
        let others = TaskTracker::new();
        for _ in 0..10 {
            let past = past.clone();
            others.spawn(async move { assert!(matches!(past.ask(deadline).await, Opening::Known)) });
        }
        tokio::task::yield_now().await;
        first.answered();
        others.close();
        others.wait().await;
        assert!(matches!(past.ask(deadline).await, Opening::Known));
        assert_eq!(Instant::now(), started);
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_one_that_asks_fails_another_asks_and_nobody_waits_for_longer_than_a_second_in_all() {
        let past = Past::default();
        let started = Instant::now();
        let deadline = started + Duration::from_secs(20);
        drop(past.ask(deadline).await);
        let first = past.ask(deadline).await;
        assert!(matches!(first, Opening::First(_)));
        for expected in [true, false] {
            assert!(matches!(past.ask(deadline).await, Opening::Overdue { first } if first == expected));
            assert_eq!(started.elapsed(), PATIENCE);
        }
    }
}
