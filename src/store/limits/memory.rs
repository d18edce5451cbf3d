//! Budgets in this process: one ring each, all under one lock, so that a draw from several is one step.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{BudgetId, BudgetView, Charge, Draw, LimitStore, Refused};
use crate::domain::quota::RingPlan;
use crate::domain::ratelimit::Observation;
use crate::domain::window::{Snapshot, WindowRing};
use crate::time::Timestamp;

/// Budgets of a single replica.
#[derive(Debug, Default)]
pub struct MemoryLimits {
    // Held for some tens of nanoseconds, never over an await: two budgets under two locks would take longer.
    budgets: Mutex<Vec<Budget>>,
}

#[derive(Debug)]
struct Budget {
    name: String,
    ring: WindowRing,
}

impl MemoryLimits {
    fn lock(&self) -> MutexGuard<'_, Vec<Budget>> {
        // A ring is valid after every step, so a panic elsewhere leaves it usable.
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_ring<T>(&self, budget: BudgetId, with: impl FnOnce(&mut WindowRing) -> T) -> T {
        with(&mut self.lock()[budget.0].ring)
    }
}

impl LimitStore for MemoryLimits {
    fn budget(&self, name: &str, plan: RingPlan) -> BudgetId {
        let mut budgets = self.lock();
        if let Some(at) = budgets.iter().position(|budget| budget.name == name) {
            let budget = &mut budgets[at];
            if *budget.ring.plan() != plan {
                budget.ring = budget.ring.replan(plan);
            }
            return BudgetId(at);
        }
        budgets.push(Budget { name: name.to_owned(), ring: WindowRing::new(plan) });
        BudgetId(budgets.len() - 1)
    }

    async fn acquire(&self, draw: Draw) -> Result<Charge, Refused> {
        let Draw { budgets, ahead, held_back } = draw;
        let mut rings = self.lock();
        let at = Timestamp::now();
        let mut refused: Option<Refused> = None;
        for (budget, held_back) in budgets.into_iter().zip([held_back, 0]) {
            let ring = &mut rings[budget.0].ring;
            let wanted = ahead.saturating_add(1).saturating_add(held_back.min(ring.plan().cap - 1));
            if let Err(until) = ring.check(at.0, wanted) {
                let until = Timestamp(until);
                if refused.is_none_or(|refused| refused.until < until) {
                    refused = Some(Refused { budget, until, gate: ring.gate() > at.0 });
                }
            }
        }
        match refused {
            Some(refused) => Err(refused),
            None => {
                for budget in budgets {
                    rings[budget.0].ring.charge(at.0, 1);
                }
                Ok(Charge { budgets, at })
            }
        }
    }

    async fn refund(&self, charge: Charge) {
        let mut rings = self.lock();
        for budget in charge.budgets {
            rings[budget.0].ring.refund(charge.at.0, 1);
        }
    }

    async fn penalise(&self, budget: BudgetId, wait: Duration) {
        let until = Timestamp::now() + wait;
        self.with_ring(budget, |ring| ring.penalise(until.0));
    }

    async fn observe(&self, budget: BudgetId, observation: Observation) {
        let now = Timestamp::now();
        let reset = now + observation.reset;
        self.with_ring(budget, |ring| ring.observe(now.0, observation.remaining, reset.0));
    }

    fn snapshot(&self, budget: BudgetId, held_back: u32) -> Snapshot {
        let now = Timestamp::now();
        self.with_ring(budget, |ring| ring.snapshot(now.0, held_back))
    }

    fn views(&self) -> Vec<BudgetView> {
        let now = Timestamp::now();
        let mut budgets = self.lock();
        let views = budgets.iter_mut().map(|budget| BudgetView {
            name: budget.name.clone(),
            plan: *budget.ring.plan(),
            snapshot: budget.ring.snapshot(now.0, 0),
            gate: Timestamp(budget.ring.gate()).since(now),
        });
        views.collect()
    }
}

#[cfg(test)]
mod tests {
    super::super::contract::suite!(super::MemoryLimits::default());
}
