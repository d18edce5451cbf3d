//! Budgets in this process or shared, as the configuration says.

use std::time::Duration;

use super::{BudgetId, BudgetView, Charge, Draw, LimitStore, MemoryLimits, Refused, SharedLimits};
use crate::domain::budget::Snapshot;
use crate::domain::quota::Plan;
use crate::domain::ratelimit::Observation;
use crate::store::link::Link;
use crate::time::Timestamp;

/// One or the other.
pub enum Limits<L> {
    /// Of a single replica.
    Memory(MemoryLimits),
    /// Of all replicas.
    Shared(SharedLimits<L>),
}

impl<L: Link> Limits<L> {
    /// For how long this replica has been on its own, where it is to share.
    pub fn cut_off(&self) -> Option<Duration> {
        match self {
            Self::Memory(_) => None,
            Self::Shared(limits) => limits.cut_off(),
        }
    }
}

/// The same call to either.
macro_rules! either {
    ($self:ident, $limits:ident => $call:expr) => {
        match $self {
            Self::Memory($limits) => $call,
            Self::Shared($limits) => $call,
        }
    };
}

impl<L: Link> LimitStore for Limits<L> {
    fn budget(&self, name: &str, users: &[&str], plan: Plan) -> BudgetId {
        either!(self, limits => limits.budget(name, users, plan))
    }

    async fn acquire(&self, draw: Draw) -> Result<Charge, Refused> {
        match self {
            Self::Memory(limits) => limits.acquire(draw).await,
            // Boxed: a draw that need not ask anybody would hold room for it.
            Self::Shared(limits) => Box::pin(limits.acquire(draw)).await,
        }
    }

    fn refund(&self, charge: Charge) {
        either!(self, limits => limits.refund(charge));
    }

    fn settle(&self, charge: Charge, observation: Option<Observation>) -> bool {
        either!(self, limits => limits.settle(charge, observation))
    }

    async fn penalise(&self, budget: BudgetId, wait: Duration) {
        either!(self, limits => limits.penalise(budget, wait).await);
    }

    fn snapshot(&self, budget: BudgetId, held_back: u32) -> Snapshot {
        either!(self, limits => limits.snapshot(budget, held_back))
    }

    fn fits_at(&self, budget: BudgetId, ahead: u32, held_back: u32) -> Timestamp {
        either!(self, limits => limits.fits_at(budget, ahead, held_back))
    }

    fn views(&self) -> Vec<BudgetView> {
        either!(self, limits => limits.views())
    }
}
