//! Budgets in this process, all under one lock, so that a draw from several is one step.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::{BudgetId, BudgetView, Charge, Draw, LimitStore, Refused};
use crate::domain::budget::{Budget, Snapshot, Told, Wanted};
use crate::domain::quota::Plan;
use crate::domain::ratelimit::Observation;
use crate::time::Timestamp;

/// Budgets of a single replica.
#[derive(Debug, Default)]
pub struct MemoryLimits {
    // Held for some tens of nanoseconds, never over an await: two budgets under two locks would take longer.
    budgets: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    users: Vec<String>,
    budget: Budget,
    /// Where all who drew from it draw from now. Those still under way that know it by this place draw from there too: a
    /// reload that changes a secret lets nobody spend twice.
    moved: Option<usize>,
}

/// What a budget has spent, to be kept while the process is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentBudget {
    /// Its identity.
    pub name: String,
    /// The environments that draw from it.
    pub users: Vec<String>,
    /// What it was made from.
    pub plan: Plan,
    /// How many, and how long ago, oldest first.
    pub spent: Vec<(Duration, u32)>,
    /// How long its gate is still shut.
    pub gate: Duration,
}

impl MemoryLimits {
    /// What every budget has spent, where it has.
    pub fn spent(&self) -> Vec<SpentBudget> {
        let now = Timestamp::now();
        let mut entries = self.lock();
        let entries = entries.iter_mut().filter(|entry| entry.moved.is_none());
        let spent = entries.map(|Entry { name, users, budget, .. }| {
            let spent = budget.spent(now.0);
            SpentBudget {
                name: name.clone(),
                users: users.clone(),
                plan: budget.plan(),
                spent: spent.into_iter().map(|(at, n)| (now.since(Timestamp(at)), n)).collect(),
                gate: Timestamp(budget.gate()).since(now),
            }
        });
        spent.filter(|budget| !budget.spent.is_empty() || !budget.gate.is_zero()).collect()
    }

    /// Budgets as they were `ago`; to be called before any of them is asked for.
    pub fn recall(&self, spent: Vec<SpentBudget>, ago: Duration) {
        let now = Timestamp::now();
        let entries = spent.into_iter().map(|SpentBudget { name, users, plan, spent, gate }| {
            let mut budget = Budget::new(plan);
            budget.recall(now.0, spent.into_iter().map(|(age, n)| (now.before(age + ago).0, n)));
            let gate = gate.saturating_sub(ago);
            if !gate.is_zero() {
                budget.penalise((now + gate).0);
            }
            Entry { name, users, budget, moved: None }
        });
        self.lock().extend(entries);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        // A budget is valid after every step, so a panic elsewhere leaves it usable.
        self.budgets.lock()
    }

    fn with<T>(&self, budget: BudgetId, with: impl FnOnce(&mut Budget) -> T) -> T {
        with(in_force(&mut self.lock(), budget))
    }
}

/// The budget that is drawn from by those who know it by `id`.
fn in_force(entries: &mut [Entry], id: BudgetId) -> &mut Budget {
    let at = entries[id.0].moved.unwrap_or(id.0);
    &mut entries[at].budget
}

impl LimitStore for MemoryLimits {
    fn budget(&self, name: &str, users: &[&str], plan: Plan) -> BudgetId {
        let now = Timestamp::now();
        let mut entries = self.lock();
        let known: Vec<String> = users.iter().map(|user| (*user).to_owned()).collect();
        let at = entries.iter().position(|entry| entry.name == name).unwrap_or_else(|| {
            let budget = Budget::new(plan);
            entries.push(Entry { name: name.to_owned(), users: Vec::new(), budget, moved: None });
            entries.len() - 1
        });
        // Where its users have drawn from others until now, it goes on from the one of which most is spent.
        let mut in_flight = entries[at].budget.hand_over();
        let mut most = entries[at].budget.clone();
        let mut left = vec![at];
        for (from, entry) in entries.iter_mut().enumerate().filter(|(from, _)| *from != at) {
            let before = entry.users.len();
            entry.users.retain(|user| !known.contains(user));
            if entry.users.len() == before {
                continue;
            }
            if spent(&mut entry.budget, now) > spent(&mut most, now) {
                most = entry.budget.clone();
            }
            if entry.users.is_empty() {
                in_flight += entry.budget.hand_over();
                left.push(from);
            }
        }
        for (from, entry) in entries.iter_mut().enumerate() {
            if left.contains(&from) || entry.moved.is_some_and(|to| left.contains(&to)) {
                entry.moved = Some(at);
            }
        }
        let budget = if most.plan() == plan { most } else { most.replan(now.0, plan) };
        let entry = &mut entries[at];
        (entry.budget, entry.users, entry.moved) = (budget.taking_over(in_flight), known, None);
        BudgetId(at)
    }

    async fn acquire(&self, draw: Draw) -> Result<Charge, Refused> {
        let Draw { budgets, ahead, held_back } = draw;
        let mut entries = self.lock();
        let at = Timestamp::this_turn();
        let mut refused: Option<Refused> = None;
        for (id, held_back) in budgets.into_iter().zip([held_back, 0]) {
            let budget = in_force(&mut entries, id);
            if let Err(until) = budget.check(at.0, Wanted { ahead, held_back }) {
                let until = Timestamp(until);
                if refused.is_none_or(|refused| refused.until < until) {
                    refused = Some(Refused { budget: id, until, gate: budget.gate() > at.0 });
                }
            }
        }
        match refused {
            Some(refused) => Err(refused),
            None => {
                for id in budgets {
                    in_force(&mut entries, id).charge(at.0);
                }
                Ok(Charge { budgets, at, mark: 0 })
            }
        }
    }

    fn refund(&self, charge: Charge) {
        let mut entries = self.lock();
        for id in charge.budgets {
            in_force(&mut entries, id).refund(charge.at.0);
        }
    }

    fn settle(&self, charge: Charge, observation: Option<Observation>) -> bool {
        let mut entries = self.lock();
        let now = Timestamp::this_turn();
        let mut more = false;
        for id in charge.budgets {
            more |= in_force(&mut entries, id).settle(charge.at.0, now.0);
        }
        let Some(Observation { remaining, reset }) = observation else { return more };
        // Upstream speaks of the key, not of our address.
        let budget = in_force(&mut entries, charge.budgets[0]);
        let told = Told { remaining, reset: (now + reset).0 };
        budget.observe(now.0, charge.at.0, told) || more
    }

    async fn penalise(&self, budget: BudgetId, wait: Duration) {
        let until = Timestamp::now() + wait;
        self.with(budget, |budget| budget.penalise(until.0));
    }

    fn snapshot(&self, budget: BudgetId, held_back: u32) -> Snapshot {
        let now = Timestamp::this_turn();
        self.with(budget, |budget| budget.snapshot(now.0, held_back))
    }

    fn fits_at(&self, budget: BudgetId, ahead: u32, held_back: u32) -> Timestamp {
        let now = Timestamp::now();
        self.with(budget, |budget| Timestamp(budget.fits_at(now.0, Wanted { ahead, held_back })))
    }

    fn views(&self) -> Vec<BudgetView> {
        let now = Timestamp::now();
        let mut entries = self.lock();
        let views = entries.iter_mut().map(|entry| BudgetView {
            name: entry.name.clone(),
            quota: entry.budget.plan().quota,
            snapshot: entry.budget.snapshot(now.0, 0),
            gate: Timestamp(entry.budget.gate()).since(now),
        });
        views.collect()
    }
}

fn spent(budget: &mut Budget, now: Timestamp) -> u64 {
    budget.spent(now.0).into_iter().map(|(_, n)| u64::from(n)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::contract::suite;
    use super::MemoryLimits;

    mod window {
        use super::*;
        suite!(MemoryLimits::default(), Window);
        suite!(MemoryLimits::default(), Window; what_is_under_way_while_its_budget_gets_another_name_counts_there);
    }

    mod token_bucket {
        use super::*;
        suite!(MemoryLimits::default(), TokenBucket);
        suite!(MemoryLimits::default(), TokenBucket; what_is_under_way_while_its_budget_gets_another_name_counts_there);
    }
}
