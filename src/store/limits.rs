//! Budgets: what may still be sent to the API.
//!
//! Every upstream request draws on the environment's budget and the egress budget in one step: if one refuses, neither is
//! charged. What was drawn is given back, or settled: either way exactly once.

use std::future::Future;
use std::time::Duration;

use crate::domain::budget::Snapshot;
use crate::domain::quota::{Plan, Quota};
use crate::domain::ratelimit::Observation;
use crate::time::Timestamp;

mod any;
mod memory;
mod shared;

pub use any::Limits;
pub use memory::{MemoryLimits, SpentBudget};
pub use shared::{Settings, SharedLimits};

/// The budget of our own address: what every request draws on.
pub const EGRESS: &str = "egress";

/// A budget's place in its store; cheap to pass around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BudgetId(pub usize);

/// What is asked for: one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The environment's budget and the egress budget.
    pub budgets: [BudgetId; 2],
    /// So many others are served before: a refusal says when this one's turn would come.
    pub ahead: u32,
    /// So much of the environment's budget is not for this caller.
    pub held_back: u32,
}

/// What was drawn: to be refunded or settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// From which budgets.
    pub budgets: [BudgetId; 2],
    /// When.
    pub at: Timestamp,
    /// What the store knows it by, where that is not `at`.
    pub mark: u64,
}

/// Nothing was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The budget that refuses longest.
    pub budget: BudgetId,
    /// The first moment at which the draw would succeed, were nothing else drawn.
    pub until: Timestamp,
    /// It is shut because upstream said 429, not because it is spent.
    pub gate: bool,
}

/// How a budget stands, for `/status` and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetView {
    /// Its identity.
    pub name: String,
    /// How much in how long.
    pub quota: Quota,
    /// What is left and when it grows.
    pub snapshot: Snapshot,
    /// Until upstream's 429 allows requests again; zero when it does.
    pub gate: Duration,
}

/// A store of budgets.
///
/// What must be known before a request goes on is async, because a shared store has to be asked. What only has to be told
/// returns at once: nobody waits for it, and it is called from where nothing can be awaited.
pub trait LimitStore: Send + Sync + 'static {
    /// Finds or makes the budget `name`, from which `users` (environments) draw. What it has spent survives; a changed plan
    /// takes it over. One that is new by its name, as after the rotation of a secret, begins with what its users spent
    /// elsewhere: a fresh one would be an amnesty. In this process alone, where nobody is left behind, the place
    /// that one had leads to the new one: requests still under way draw from there.
    fn budget(&self, name: &str, users: &[&str], plan: Plan) -> BudgetId;

    /// Draws one request from both budgets, or from neither.
    fn acquire(&self, draw: Draw) -> impl Future<Output = Result<Charge, Refused>> + Send;

    /// Gives back a charge whose request surely was never written.
    fn refund(&self, charge: Charge);

    /// A charge's request was answered, with what upstream said of its count, or nobody will ever know. `true` where more is
    /// left than was thought.
    fn settle(&self, charge: Charge, observation: Option<Observation>) -> bool;

    /// Shuts a budget for `wait`: upstream said 429.
    fn penalise(&self, budget: BudgetId, wait: Duration) -> impl Future<Output = ()> + Send;

    /// How a budget stands for a caller from whom `held_back` is held back, as far as this process knows without asking.
    fn snapshot(&self, budget: BudgetId, held_back: u32) -> Snapshot;

    /// The first moment at which it would have one for such a caller behind `ahead` others, were nothing more drawn.
    fn fits_at(&self, budget: BudgetId, ahead: u32, held_back: u32) -> Timestamp;

    /// Every budget.
    fn views(&self) -> Vec<BudgetView>;
}

#[cfg(test)]
pub mod contract;
