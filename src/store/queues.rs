//! Those who wait for a budget, and who of them is next.
//!
//! Two lanes: clients below their fair share, and those above it. In each, whoever's turn it is waits for the budget's next
//! slot, and all others wait for the turn, which goes round from client to client (deficit round robin at one request
//! each), so that ten requests of one client and one of another are served one by one in turns. A caller that leaves frees its
//! place, and its turn, at once.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::limits::BudgetId;
use crate::domain::client_ip::ClientKey;
use crate::domain::shares::Shares;
use crate::time::Timestamp;

/// Clients whose share of one budget is counted apart.
const MAX_CLIENTS: usize = 8192;

/// The queue before each budget: environments that share a budget stand in one.
#[derive(Debug, Default)]
pub struct Queues(Mutex<HashMap<BudgetId, Arc<Queue>>>);

impl Queues {
    /// The queue before a budget that counts over `window`.
    pub fn of(&self, budget: BudgetId, window: Duration) -> Arc<Queue> {
        lock(&self.0).entry(budget).or_insert_with(|| Arc::new(Queue::new(window))).clone()
    }
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
    refusals: AtomicU32,
}

impl Queue {
    /// The queue before a budget that counts over `window`; [`Queues`] gives each budget one.
    pub fn new(window: Duration) -> Self {
        let window = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self {
            below: Arc::default(),
            above: Arc::default(),
            shares: Mutex::new(Shares::new(window, MAX_CLIENTS)),
            refusals: AtomicU32::new(0),
        }
    }

    /// `client` asks for some of the budget: it is active from now on.
    pub fn touch(&self, client: ClientKey) {
        lock(&self.shares).touch(Timestamp::now().0, client);
    }

    /// What of a budget of `cap` is held back from `client`.
    pub fn held_back(&self, client: ClientKey, cap: u32, reserve: f32) -> u32 {
        lock(&self.shares).held_back(Timestamp::now().0, client, cap, reserve)
    }

    /// `client` spent one.
    pub fn spend(&self, client: ClientKey) {
        lock(&self.shares).spend(Timestamp::now().0, client);
    }

    /// How many stand before somebody who comes to this lane now: those above their share stand behind everybody.
    pub fn waiting(&self, lane: Lane) -> u32 {
        match lane {
            Lane::Below => self.below.waiting(),
            Lane::Above => self.below.waiting() + self.above.waiting(),
        }
    }

    /// How many wait, in both lanes.
    pub fn len(&self) -> usize {
        self.waiting(Lane::Above) as usize
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
        Turns::enter(turns, client, bounds.per_client)
    }

    /// Notes a 429 from upstream; how many there were in a row before it.
    pub fn refused(&self) -> u32 {
        self.refusals.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes an answer that was none.
    pub fn answered(&self) {
        // Read first: the cache line stays shared among the workers.
        if self.refusals.load(Ordering::Relaxed) > 0 {
            self.refusals.store(0, Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The turns of one lane.
#[derive(Debug, Default)]
struct Turns(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Somebody has the turn.
    taken: bool,
    /// Clients that wait, in the order of their turns.
    round: VecDeque<ClientKey>,
    /// Who waits for the turn, by client, first come first served.
    lines: HashMap<ClientKey, VecDeque<oneshot::Sender<Turn>>>,
    /// Places by client, with those that have the turn.
    places: HashMap<ClientKey, u32>,
    waiting: u32,
}

impl Turns {
    fn waiting(&self) -> u32 {
        lock(&self.0).waiting
    }

    fn enter(self: &Arc<Self>, client: ClientKey, per_client: usize) -> Option<Place> {
        let mut state = lock(&self.0);
        let mine = state.places.get(&client).copied().unwrap_or(0);
        if mine as usize >= per_client {
            return None;
        }
        state.places.insert(client, mine + 1);
        state.waiting += 1;
        let (turn, waits) = if state.taken {
            let (sender, receiver) = oneshot::channel();
            if !state.lines.contains_key(&client) {
                state.round.push_back(client);
            }
            state.lines.entry(client).or_default().push_back(sender);
            (None, Some(receiver))
        } else {
            state.taken = true;
            (Some(Turn(Some(self.clone()))), None)
        };
        Some(Place { turns: self.clone(), client, turn, waits })
    }

    /// Gives the turn to the next client's first in line.
    fn pass(self: &Arc<Self>) {
        let mut state = lock(&self.0);
        while let Some(client) = state.round.pop_front() {
            let Some(mut line) = state.lines.remove(&client) else { continue };
            let next = line.pop_front();
            if !line.is_empty() {
                state.lines.insert(client, line);
                state.round.push_back(client);
            }
            let Some(next) = next else { continue };
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // It has left: its turn must not come back to us by way of its drop.
                Err(mut unwanted) => unwanted.0 = None,
            }
        }
        state.taken = false;
    }
}

/// The right to take the next slot.
#[derive(Debug)]
struct Turn(Option<Arc<Turns>>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass();
        }
    }
}

/// A place in a queue; leaving it, however that happens, frees it and passes the turn on.
#[derive(Debug)]
pub struct Place {
    turns: Arc<Turns>,
    client: ClientKey,
    turn: Option<Turn>,
    /// Where the turn comes from.
    waits: Option<oneshot::Receiver<Turn>>,
}

impl Place {
    /// Waits until it is this one's turn.
    pub async fn turn(&mut self) {
        if let Some(waits) = &mut self.waits {
            // The sender lives in the queue as long as this place does.
            self.turn = waits.await.ok();
            self.waits = None;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // First of all, so that the line below is known to have left it.
        drop(self.waits.take());
        drop(self.turn.take());
        let mut state = lock(&self.turns.0);
        state.waiting -= 1;
        if let Some(mine) = state.places.get_mut(&self.client) {
            *mine -= 1;
            if *mine == 0 {
                state.places.remove(&self.client);
            }
        }
        if let Some(line) = state.lines.get_mut(&self.client) {
            line.retain(|waiting| !waiting.is_closed());
            if line.is_empty() {
                state.lines.remove(&self.client);
                state.round.retain(|client| *client != self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { all: 100, per_client: 50 };

    fn queue() -> Queue {
        Queue::new(Duration::from_secs(600))
    }

    /// Whether it is this place's turn by now.
    async fn has_turn(place: &mut Place) -> bool {
        crate::time::timeout(Duration::ZERO, place.turn()).await.is_ok()
    }

    fn enter(queue: &Queue, client: u64) -> Place {
        queue.enter(ClientKey(client), Lane::Above, BOUNDS).expect("a place")
    }

    #[tokio::test(start_paused = true)]
    async fn the_turn_goes_round_from_client_to_client() {
        let queue = queue();
        let first = enter(&queue, 1);
        let mut waiting: Vec<(u64, Place)> =
            [1, 1, 1, 2, 2, 3].into_iter().map(|client| (client, enter(&queue, client))).collect();
        drop(first);
        let mut served = Vec::new();
        while !waiting.is_empty() {
            for at in 0..waiting.len() {
                if has_turn(&mut waiting[at].1).await {
                    served.push(waiting.remove(at).0);
                    break;
                }
            }
        }
        assert_eq!(served, [1, 2, 3, 1, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_is_forgotten_with_or_without_the_turn() {
        let queue = queue();
        let first = enter(&queue, 1);
        let second = enter(&queue, 2);
        let mut third = enter(&queue, 3);
        drop(second);
        drop(first);
        assert!(has_turn(&mut third).await);
        drop(third);
        assert_eq!(queue.waiting(Lane::Above), 0);
        let state = queue.above.0.lock().expect("unpoisoned");
        assert!(!state.taken && state.round.is_empty() && state.lines.is_empty() && state.places.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_on_its_way_to_one_that_leaves_comes_to_the_next() {
        let queue = queue();
        let first = enter(&queue, 1);
        let second = enter(&queue, 2);
        let mut third = enter(&queue, 3);
        drop(first); // The turn is in the channel to the second now.
        drop(second);
        assert!(has_turn(&mut third).await);
    }

    #[tokio::test]
    async fn queues_are_bounded_in_all_and_per_client() {
        let queue = queue();
        let bounds = Bounds { all: 3, per_client: 2 };
        let enter = |client| queue.enter(ClientKey(client), Lane::Above, bounds);
        let _places = [enter(1), enter(1)];
        assert!(enter(1).is_none());
        let _third = enter(2);
        assert!(enter(3).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn those_below_their_share_do_not_wait_for_those_above() {
        let queue = queue();
        let _above = enter(&queue, 1);
        let mut below = queue.enter(ClientKey(2), Lane::Below, BOUNDS).expect("a place");
        assert!(has_turn(&mut below).await);
        assert_eq!((queue.waiting(Lane::Below), queue.waiting(Lane::Above)), (1, 2));
    }
}
