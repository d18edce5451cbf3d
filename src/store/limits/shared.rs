//! Budgets that replicas share through a Redis or Valkey server.
//!
//! The server keeps one account per budget and decides every draw (`exchange.lua`); a replica keeps a mirror of it, which says
//! how long a refused request has to wait, and a [promise](crate::domain::promise): what it may spend while it cannot ask. One
//! exchange is under way at a time; whatever comes up meanwhile goes with the next, so that a busy replica asks less often than
//! it sends.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use super::{BudgetId, BudgetView, Charge, Draw, EGRESS, LimitStore, Refused};
use crate::domain::budget::{Snapshot, Wanted};
use crate::domain::quota::Plan;
use crate::domain::ratelimit::Observation;
use crate::store::link::{Link, Names};
use crate::time::{Timestamp, sleep};

mod clock;
mod exchange;
mod ledger;
mod message;

use clock::Clock;
use ledger::Ledger;
use message::Drawn;

/// Nanoseconds on the server's clock.
type Nanos = u64;

/// How often a draw that only promises to others stand in the way of is tried again, and after what pause first; they are asked
/// to give them back, which takes them one exchange.
const TRIES: u32 = 7;
const PAUSE: Duration = Duration::from_millis(1);
/// Where the wait cannot be known, for so long.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How a replica shares.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `store.prefix`
    pub prefix: String,
    /// `store.timeout`
    pub timeout: Duration,
    /// `store.min_replicas`
    pub min_replicas: u32,
    /// `upstream.egress_group`
    pub egress_group: String,
}

/// Budgets of all replicas.
pub struct SharedLimits<L>(Arc<Inner<L>>);

struct Inner<L> {
    link: L,
    names: Names,
    settings: Settings,
    /// Of this process, and of no other.
    replica: String,
    // Held for some microseconds, never over an await.
    state: Mutex<State>,
    /// There is something to tell or to ask.
    wake: Notify,
    /// Held by whoever speaks to the server: one exchange at a time, or a promise could be renewed behind its back.
    speaking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    ledgers: Vec<Ledger>,
    pending: Vec<Pending>,
    clock: Clock,
    /// The life of the server's data that this replica is part of; empty before it is.
    epoch: String,
    /// The data is to be told anew.
    restoring: bool,
    /// Since when there has been no word of the server; never before the first attempt.
    cut_off: Option<Timestamp>,
    /// Not to be told with the next draw only.
    urgent: bool,
    /// When all budgets are to be heard of again.
    due: Timestamp,
    /// This replica has said that it is no more.
    left: bool,
}

/// A draw on its way.
#[derive(Debug)]
struct Pending {
    draw: Draw,
    answer: oneshot::Sender<(Drawn, Charge)>,
}

/// The answer to a draw, for as long as it is waited for.
struct Answer<'l, L: Link> {
    limits: &'l SharedLimits<L>,
    receiver: oneshot::Receiver<(Drawn, Charge)>,
}

impl<L: Link> Answer<'_, L> {
    async fn heard(mut self) -> Result<(Drawn, Charge), oneshot::error::RecvError> {
        (&mut self.receiver).await
    }
}

impl<L: Link> Drop for Answer<'_, L> {
    /// Whoever waited may have left before its turn came to take what was drawn for it.
    fn drop(&mut self) {
        // First of all: whatever comes later is given back by who sends it.
        self.receiver.close();
        if let Ok((Drawn::Yes, charge)) = self.receiver.try_recv() {
            self.limits.refund(charge);
        }
    }
}

impl<L> Clone for SharedLimits<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L: Link> SharedLimits<L> {
    /// Budgets behind `link`. Until [`run`](Self::run) runs, nothing is asked.
    pub fn new(link: L, settings: Settings) -> Self {
        let state = State {
            ledgers: Vec::new(),
            pending: Vec::new(),
            clock: Clock::default(),
            epoch: String::new(),
            restoring: false,
            cut_off: None,
            urgent: false,
            due: Timestamp::default(),
            left: false,
        };
        Self(Arc::new(Inner {
            link,
            names: Names::new(&settings.prefix),
            settings,
            replica: format!("{:016x}", fastrand::u64(..)),
            state: Mutex::new(state),
            wake: Notify::new(),
            speaking: tokio::sync::Mutex::default(),
        }))
    }

    /// For how long there has been no word of the server.
    pub fn cut_off(&self) -> Option<Duration> {
        self.lock().cut_off.map(|since| Timestamp::now().since(since))
    }

    /// How many share the budgets, when they were last heard of.
    pub fn replicas(&self) -> u32 {
        self.lock().ledgers.iter().map(|ledger| ledger.replicas).max().unwrap_or(1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl<L> Inner<L> {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every step, so a panic elsewhere leaves it usable.
        self.state.lock()
    }

    fn urge(&self, state: &mut State) {
        state.urgent = true;
        self.wake.notify_one();
    }
}

impl State {
    /// The server's time, as far as it is known.
    fn now(&self) -> Nanos {
        self.clock.now(Timestamp::now())
    }

    fn local(&self, at: Nanos) -> Timestamp {
        self.clock.local(at)
    }

    /// The budget that is drawn from by those who know it by `id`.
    fn ledger(&mut self, id: BudgetId) -> &mut Ledger {
        let at = self.place(id);
        &mut self.ledgers[at]
    }

    fn place(&self, id: BudgetId) -> usize {
        self.ledgers[id.0].moved.unwrap_or(id.0)
    }

    /// What is known here already to have no room: the server has no more.
    fn refusal(&mut self, draw: &Draw) -> Option<Refused> {
        let (now, cut_off) = (self.now(), self.cut_off.is_some());
        let mut refused: Option<(BudgetId, Nanos)> = None;
        for (id, held_back) in draw.budgets.into_iter().zip([draw.held_back, 0]) {
            let ledger = self.ledger(id);
            let wanted = Wanted { ahead: draw.ahead, held_back };
            let mut until = ledger.check(now, wanted).err();
            if cut_off && ledger.left(now) <= u64::from(draw.ahead) {
                until = until.max(Some(ledger.left_at(now, u64::from(draw.ahead) + 1)));
            }
            if let Some(until) = until.filter(|until| refused.is_none_or(|(_, longest)| longest < *until)) {
                refused = Some((id, until));
            }
        }
        let (budget, until) = refused?;
        let gate = self.ledger(budget).mirror.gate() > now;
        Some(Refused { budget, until: self.local(until), gate })
    }

    /// What keeps the draw from being made without asking, if anything does.
    fn alone(&mut self, draw: &Draw) -> Option<Refused> {
        let before = self.cut_off;
        self.cut_off = before.or(Some(Timestamp::now()));
        let refused = self.refusal(draw);
        self.cut_off = before;
        refused
    }

    /// Spends of what was promised. To be called where nothing refuses.
    fn spend_blind(&mut self, draw: &Draw) -> Charge {
        let now = self.now();
        for id in draw.budgets {
            self.ledger(id).spend_blind(now);
        }
        Charge { budgets: draw.budgets, at: self.local(now), mark: 0 }
    }

    /// When the server charged it, or we without it.
    fn charged(&self, charge: &Charge) -> (Nanos, bool) {
        match charge.mark {
            0 => (self.clock.now(charge.at), true),
            mark => (mark, false),
        }
    }
}

impl<L: Link> LimitStore for SharedLimits<L> {
    fn budget(&self, name: &str, users: &[&str], plan: Plan) -> BudgetId {
        let mut state = self.lock();
        let now = state.now();
        let at = state.ledgers.iter().position(|ledger| ledger.name == name).unwrap_or_else(|| {
            state.ledgers.push(Ledger::new(name, plan, self.0.settings.min_replicas));
            state.ledgers.len() - 1
        });
        // Where its users have drawn from others until now, it goes on from the one of which most is spent.
        let mut most = state.ledgers[at].mirror.clone();
        let (mut changed, mut in_flight, mut left) = (most.plan() != plan, 0, vec![at]);
        for (from, ledger) in state.ledgers.iter_mut().enumerate().filter(|(from, _)| *from != at) {
            let before = ledger.users.len();
            ledger.users.retain(|user| !users.contains(&user.as_str()));
            if ledger.users.len() == before {
                continue;
            }
            if ledger.mirror.used(now) > most.used(now) {
                (most, changed) = (ledger.mirror.clone(), true);
            }
            if ledger.users.is_empty() {
                in_flight += std::mem::take(&mut ledger.in_flight);
                left.push(from);
            }
        }
        for (from, ledger) in state.ledgers.iter_mut().enumerate() {
            if left.contains(&from) || ledger.moved.is_some_and(|to| left.contains(&to)) {
                ledger.moved = Some(at);
            }
        }
        let ledger = &mut state.ledgers[at];
        if changed {
            ledger.take_over(now, &most, plan);
        }
        (ledger.users, ledger.moved) = (users.iter().map(|user| (*user).to_owned()).collect(), None);
        ledger.in_flight += in_flight;
        state.due = Timestamp::default();
        self.0.urge(&mut state);
        BudgetId(at)
    }

    async fn acquire(&self, draw: Draw) -> Result<Charge, Refused> {
        let (mut pause, mut tries) = (PAUSE, 0);
        loop {
            let answer = {
                let mut state = self.lock();
                if let Some(refused) = state.refusal(&draw) {
                    return Err(refused);
                }
                if state.cut_off.is_some() {
                    return Ok(state.spend_blind(&draw));
                }
                let (sender, receiver) = oneshot::channel();
                state.pending.push(Pending { draw, answer: sender });
                Answer { limits: self, receiver }
            };
            self.0.wake.notify_one();
            match answer.heard().await {
                Ok((Drawn::Yes, charge)) => return Ok(charge),
                Ok((Drawn::Promised, _)) if tries < TRIES => {
                    Box::pin(sleep(pause)).await;
                    (pause, tries) = (pause * 2, tries + 1);
                }
                // The mirror knows more now: where it still sees room, only others' promises are in the way.
                Ok((Drawn::Promised | Drawn::No, _)) => {
                    let refused = self.lock().refusal(&draw);
                    let until = Timestamp::now() + LOOK_AGAIN;
                    let budget = draw.budgets[0];
                    return Err(refused.unwrap_or(Refused { budget, until, gate: false }));
                }
                // Nobody knows yet: what was promised is there for that.
                Ok((Drawn::Waiting, _)) => {
                    let mut state = self.lock();
                    let Some(alone) = state.alone(&draw) else { return Ok(state.spend_blind(&draw)) };
                    // Of what is promised later than that, the server will know more before long.
                    let until = alone.until.min(Timestamp::now() + LOOK_AGAIN);
                    return Err(state.refusal(&draw).unwrap_or(Refused { until, ..alone }));
                }
                // Nobody says: for that too.
                Err(_) => {
                    let mut state = self.lock();
                    let alone = state.alone(&draw);
                    return match alone {
                        Some(refused) => Err(refused),
                        None => Ok(state.spend_blind(&draw)),
                    };
                }
            }
        }
    }

    fn refund(&self, charge: Charge) {
        let mut state = self.lock();
        let (charged, blind) = state.charged(&charge);
        for id in charge.budgets {
            state.ledger(id).refund(charged, blind);
        }
        self.0.urge(&mut state);
    }

    fn settle(&self, charge: Charge, observation: Option<Observation>) -> bool {
        let mut state = self.lock();
        let (now, (charged, blind)) = (state.now(), state.charged(&charge));
        let mut more = false;
        for id in charge.budgets {
            more |= state.ledger(id).settle(now, charged, blind);
        }
        // Upstream speaks of the key, not of our address.
        if let Some(observation) = observation {
            let ledger = state.ledger(charge.budgets[0]);
            let before = ledger.mirror.foreign();
            more |= ledger.observe(now, charged, observation);
            if before > 0 || ledger.mirror.foreign() > 0 {
                self.0.urge(&mut state);
            }
        }
        more
    }

    async fn penalise(&self, budget: BudgetId, wait: Duration) {
        let mut state = self.lock();
        let now = state.now();
        state.ledger(budget).penalise(now, wait);
        self.0.urge(&mut state);
    }

    fn snapshot(&self, budget: BudgetId, held_back: u32) -> Snapshot {
        let mut state = self.lock();
        let (now, cut_off) = (state.now(), state.cut_off.is_some());
        let snapshot = state.ledger(budget).snapshot(now, held_back, cut_off);
        let grows_at = snapshot.grows_at.map(|at| state.local(at).0);
        Snapshot { grows_at, ..snapshot }
    }

    fn fits_at(&self, budget: BudgetId, ahead: u32, held_back: u32) -> Timestamp {
        let mut state = self.lock();
        let (now, cut_off) = (state.now(), state.cut_off.is_some());
        let ledger = state.ledger(budget);
        let mut at = ledger.mirror.fits_at(now, Wanted { ahead, held_back });
        if cut_off {
            at = at.max(ledger.left_at(now, u64::from(ahead) + 1));
        }
        state.local(at)
    }

    fn views(&self) -> Vec<BudgetView> {
        let mut state = self.lock();
        let (now, cut_off) = (state.now(), state.cut_off.is_some());
        let clock = state.clock;
        let views = state.ledgers.iter_mut().map(|ledger| {
            let snapshot = ledger.snapshot(now, 0, cut_off);
            BudgetView {
                name: ledger.name.clone(),
                quota: ledger.mirror.plan().quota,
                snapshot: Snapshot { grows_at: snapshot.grows_at.map(|at| clock.local(at).0), ..snapshot },
                gate: Duration::from_nanos(ledger.mirror.gate().saturating_sub(now)),
            }
        });
        views.collect()
    }
}

/// How long a replica that is not heard of keeps its part of a budget: it may be dead, or cut off and serving. Within a
/// window nobody can tell; then upstream's own count does, as long as it shows requests that nobody here sent. Of our address
/// upstream tells nothing.
fn hold(name: &str, plan: Plan) -> [Duration; 2] {
    let window = plan.quota.window;
    match name == EGRESS {
        true => [window.max(Duration::from_secs(60)); 2],
        false => [window, window.saturating_mul(20)],
    }
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
