//! One attempt under way: what it drew is settled, or given back, whatever becomes of it.

use super::Asks;
use crate::domain::ratelimit::Observation;
use crate::store::limits::{Charge, LimitStore};

/// Holds a charge until it is known what became of its request. Dropped before, the caller has left: then it is given back
/// where not a byte of it was written, and settled where one may have been.
pub(super) struct Attempt<'a, L: LimitStore> {
    limits: &'a L,
    asks: &'a Asks,
    charge: Option<Charge>,
}

impl<'a, L: LimitStore> Attempt<'a, L> {
    pub(super) fn begin(limits: &'a L, asks: &'a Asks, charge: Charge) -> Self {
        asks.handle.queue.spend(asks.client);
        asks.journal.attempt();
        Self { limits, asks, charge: Some(charge) }
    }

    /// Upstream answered, and said this of its count.
    pub(super) fn answered(mut self, observation: Option<Observation>) {
        self.settle(observation);
    }

    /// It may have been counted; nobody will say.
    pub(super) fn lost(mut self) {
        self.settle(None);
    }

    /// Surely not a byte of it was written.
    pub(super) fn unsent(mut self) {
        self.refund();
    }

    fn settle(&mut self, observation: Option<Observation>) {
        if let Some(charge) = self.charge.take()
            && self.limits.settle(charge, observation)
        {
            self.asks.handle.queue.ring();
        }
    }

    fn refund(&mut self) {
        if let Some(charge) = self.charge.take() {
            self.limits.refund(charge);
            self.asks.handle.queue.refund(self.asks.client, charge.at);
            self.asks.handle.queue.ring();
        }
    }
}

impl<L: LimitStore> Drop for Attempt<'_, L> {
    fn drop(&mut self) {
        if self.asks.journal.is_written() { self.settle(None) } else { self.refund() }
    }
}
