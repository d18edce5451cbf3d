//! Those who wait for a budget, who of them is next, and who has had how much.
//!
//! Two lanes: clients below their fair share, and those above it. In each, whoever's turn it is waits for the budget's next
//! slot, and all others wait for the turn, which goes round from client to client, so that ten requests of one client and
//! one of another are served one by one in turns.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::limits::{BudgetId, LimitStore};
use super::refusals::Refusals;
use crate::domain::client_ip::ClientKey;
use crate::domain::shares::{Rule, Shares};
use crate::time::{Instant, Timestamp};

mod past;
mod turns;

pub use past::Opening;
use past::Past;
use turns::Turns;

/// Clients whose share of one budget is counted apart.
const MAX_CLIENTS: usize = 8192;

/// The queue before each budget: environments that share a budget stand in one.
#[derive(Debug, Default)]
pub struct Queues {
    queues: Mutex<HashMap<BudgetId, Arc<Queue>>>,
    bell: Arc<Bell>,
}

impl Queues {
    /// The queue before a budget that counts over `window`. One that is new goes on with the queue `before`, where its
    /// environment stood in one.
    pub fn of(&self, budget: BudgetId, window: Duration, before: Option<&Arc<Queue>>) -> Arc<Queue> {
        let make = || before.cloned().unwrap_or_else(|| Arc::new(Queue::new(window, self.bell.clone())));
        let queue = self.queues.lock().entry(budget).or_insert_with(make).clone();
        queue.shares.lock().count_over(Timestamp::now().0, nanos(window));
        queue
    }
}

/// Rings when a wait that was foreseen has changed: something was given back, or a gate has shut.
///
/// One for all queues, because all of them draw on the egress budget.
#[derive(Debug, Default)]
pub struct Bell {
    notify: Notify,
    listening: AtomicU32,
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Below its fair share: the reserve is for these.
    Below,
    /// Above it.
    Above,
}

/// How long a queue may become.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// In all.
    pub all: usize,
    /// From one client.
    pub per_client: usize,
}

/// The queue before one budget.
#[derive(Debug)]
pub struct Queue {
    below: Arc<Turns>,
    above: Arc<Turns>,
    shares: Mutex<Shares>,
    past: Past,
    bell: Arc<Bell>,
    /// 429s that spoke for this budget.
    pub refusals: Refusals,
}

/// A place in a queue; leaving it frees it.
#[derive(Debug)]
pub struct Place {
    inner: turns::Place,
    bell: Arc<Bell>,
}

impl Queue {
    /// The queue before a budget that counts over `window`; [`Queues`] gives each budget one.
    pub fn new(window: Duration, bell: Arc<Bell>) -> Self {
        Self {
            below: Arc::default(),
            above: Arc::default(),
            shares: Mutex::new(Shares::new(nanos(window), MAX_CLIENTS)),
            past: Past::default(),
            bell,
            refusals: Refusals::default(),
        }
    }

    /// Waits while another request asks upstream what was spent before this process began.
    pub async fn opening(&self, deadline: Instant) -> Opening<'_> {
        self.past.ask(deadline).await
    }

    /// `client` asks for some of the budget: it is active from now on. What is held back from it.
    pub fn ask(&self, client: ClientKey, rule: Rule) -> u32 {
        self.shares.lock().ask(Timestamp::this_turn().0, client, rule)
    }

    /// What is held back from `client`.
    pub fn held_back(&self, client: ClientKey, rule: Rule) -> u32 {
        let mut shares = self.shares.lock();
        // As for most: nothing is held back from who is alone.
        if shares.active() < 2 { 0 } else { shares.held_back(Timestamp::this_turn().0, client, rule) }
    }

    /// `client` spent one, and when that was.
    pub fn spend(&self, client: ClientKey) -> Timestamp {
        let now = Timestamp::this_turn();
        self.shares.lock().spend(now.0, client);
        now
    }

    /// What `client` [spent](Self::spend) at `spent_at` was given back.
    pub fn refund(&self, client: ClientKey, spent_at: Timestamp) {
        self.shares.lock().refund(spent_at.0, client);
    }

    /// The first moment at which each of `budgets` has a slot for `client` behind `ahead` others, were nothing more spent or
    /// asked. What is held back from it, from the first of them, shrinks as time passes, which is counted in.
    pub fn next_slot<L: LimitStore>(
        &self,
        limits: &L,
        budgets: &[BudgetId],
        ahead: u32,
        client: ClientKey,
        rule: Rule,
    ) -> Timestamp {
        let steps = self.shares.lock().steps(Timestamp::this_turn().0, client, rule);
        let mut slot = Timestamp::default();
        for (at, (from, held_back)) in steps.iter().enumerate() {
            let held = |budget: usize| if budget == 0 { *held_back } else { 0 };
            let slots = budgets.iter().enumerate();
            let slots = slots.map(|(nth, budget)| limits.fits_at(*budget, ahead, held(nth)));
            slot = slots.max().unwrap_or_default().max(Timestamp(*from));
            if steps.get(at + 1).is_none_or(|(next, _)| slot.0 < *next) {
                break;
            }
        }
        slot
    }

    /// How many are served before `client`, were it to come to this lane now: those above their share stand behind everybody.
    pub fn ahead(&self, client: ClientKey, lane: Lane) -> u32 {
        match lane {
            Lane::Below => self.below.ahead(client),
            Lane::Above => self.below.waiting() + self.above.ahead(client),
        }
    }

    /// How many wait, in both lanes.
    pub fn len(&self) -> usize {
        (self.below.waiting() + self.above.waiting()) as usize
    }

    /// For how long the one has waited who has waited longest, in either lane.
    pub fn oldest(&self) -> Option<Duration> {
        let oldest = [self.below.oldest(), self.above.oldest()].into_iter().flatten().min();
        oldest.map(|since| since.elapsed())
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a place, where there is one.
    pub fn enter(&self, client: ClientKey, lane: Lane, bounds: Bounds) -> Option<Place> {
        if self.len() >= bounds.all {
            return None;
        }
        let turns = match lane {
            Lane::Below => &self.below,
            Lane::Above => &self.above,
        };
        let inner = turns.enter(client, bounds.per_client)?;
        self.bell.listening.fetch_add(1, Ordering::Relaxed);
        Some(Place { inner, bell: self.bell.clone() })
    }

    /// A wait that was foreseen has changed: those whose turn it is look again.
    pub fn ring(&self) {
        if self.bell.listening.load(Ordering::Relaxed) > 0 {
            self.bell.notify.notify_waiters();
        }
    }
}

impl Place {
    /// Waits until it is this one's turn.
    pub async fn turn(&mut self) {
        self.inner.turn().await;
    }

    /// Resolves when the bell rings next.
    pub fn rung(&self) -> Notified<'_> {
        self.bell.notify.notified()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.bell.listening.fetch_sub(1, Ordering::Relaxed);
    }
}

fn nanos(window: Duration) -> u64 {
    u64::try_from(window.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
