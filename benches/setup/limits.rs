//! Limits as the benchmarks use them.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use metorial_proxy::domain::budget::{Budget, Wanted};
use metorial_proxy::domain::quota::{Plan, Quota};

/// So many that no benchmark meets the limit.
pub(crate) const PLENTY: Quota = Quota { requests: u32::MAX, window: Duration::from_secs(1) };
/// Nanoseconds between two requests that keep a production budget nearly spent, and never overdrawn.
const PACE: u64 = 125_000_000;

/// A budget that is drawn from at that pace.
pub(crate) struct Spending {
    /// Nearly spent.
    pub(crate) budget: Budget,
    /// When it was last drawn from.
    pub(crate) now: u64,
}

impl Spending {
    /// After a while.
    pub(crate) fn new(plan: Plan) -> Self {
        let mut spending = Self { budget: Budget::new(plan), now: 0 };
        assert!((0..10_000).all(|_| spending.take()));
        spending
    }

    /// One request; whether there was room for it.
    pub(crate) fn take(&mut self) -> bool {
        self.now += PACE;
        let taken = self.budget.check(self.now, Wanted::default());
        self.budget.charge(self.now);
        self.budget.settle(self.now, self.now);
        taken.is_ok()
    }
}

/// The outcome of a future that never waits.
pub(crate) fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a store in memory never waits"),
    }
}
