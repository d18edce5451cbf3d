//! One attempt under way: what it drew is settled, or given back, whatever becomes of it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::Asks;
use crate::domain::ratelimit::Observation;
use crate::store::limits::{Charge, LimitStore};
use crate::time::{Timestamp, sleep};

/// How long a request that was written may still be on its way when nobody waits for its answer any more.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// Holds a charge until it is known what became of its request. Dropped before, the caller has left: then it is given back
/// where not a byte of it was written. Where one may have been, upstream counts it in a while.
pub(super) struct Attempt<'a, L: LimitStore> {
    limits: &'a Arc<L>,
    asks: &'a Asks,
    charge: Option<Charge>,
    /// When the caller's share was charged. A draw takes a while: its own time may be of a part of the window before.
    spent_at: Timestamp,
}

impl<'a, L: LimitStore> Attempt<'a, L> {
    pub(super) fn begin(limits: &'a Arc<L>, asks: &'a Asks, charge: Charge) -> Self {
        let spent_at = asks.handle.queue.spend(asks.client);
        asks.journal.attempt();
        Self { limits, asks, charge: Some(charge), spent_at }
    }

    /// Upstream answered, and said this of its count.
    pub(super) fn answered(mut self, observation: Option<Observation>) {
        self.settle(observation);
    }

    /// It may have been counted, or may yet be; nobody will say.
    pub(super) fn lost(mut self) {
        self.settle_later();
    }

    /// Surely not a byte of it was written.
    pub(super) fn unsent(mut self) {
        self.refund();
    }

    fn settle(&mut self, observation: Option<Observation>) {
        self.asks.journal.written(false);
        if let Some(charge) = self.charge.take()
            && self.limits.settle(charge, observation)
        {
            self.asks.handle.queue.ring();
        }
    }

    fn settle_later(&mut self) {
        self.asks.journal.written(false);
        let Some(charge) = self.charge.take() else { return };
        let (limits, handle) = (self.limits.clone(), self.asks.handle.clone());
        // A task that drain does not wait for: a budget that is gone needs no settling.
        TaskTracker::new().spawn_local(async move {
            sleep(ON_ITS_WAY).await;
            if limits.settle(charge, None) {
                handle.queue.ring();
            }
        });
    }

    fn refund(&mut self) {
        if let Some(charge) = self.charge.take() {
            self.limits.refund(charge);
            self.asks.handle.queue.refund(self.asks.client, self.spent_at);
            self.asks.handle.queue.ring();
        }
    }
}

impl<L: LimitStore> Drop for Attempt<'_, L> {
    fn drop(&mut self) {
        if self.asks.journal.is_written() { self.settle_later() } else { self.refund() }
    }
}
