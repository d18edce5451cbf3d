//! The turns of one lane: whose is the next slot.
//!
//! The turn goes round from client to client (deficit round robin at one request each); within a client it is first come,
//! first served. Whoever leaves, however that happens, frees the place and passes the turn on.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::domain::client_ip::ClientKey;
use crate::time::Instant;

/// The turns of one lane.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    /// Places, for those who look without the lock.
    waiting: AtomicU32,
}

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
    /// Since when each place is taken, in the order they were.
    since: BTreeMap<u64, Instant>,
    /// How many there have been.
    entered: u64,
}

impl Turns {
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many turns come before that of a further request of `client`: as the turn goes round, nobody has more of them than
    /// `client` itself has had by then.
    pub(super) fn ahead(&self, client: ClientKey) -> u32 {
        if self.waiting() == 0 {
            return 0;
        }
        let state = self.state.lock();
        let mine = state.places.get(&client).copied().unwrap_or(0);
        let others = state.places.iter().filter(|(other, _)| **other != client);
        mine + others.map(|(_, places)| (*places).min(mine + 1)).sum::<u32>()
    }

    pub(super) fn enter(self: &Arc<Self>, client: ClientKey, per_client: usize) -> Option<Place> {
        let mut state = self.state.lock();
        let mine = state.places.get(&client).copied().unwrap_or(0);
        if mine as usize >= per_client {
            return None;
        }
        state.places.insert(client, mine + 1);
        let number = state.entered;
        state.entered += 1;
        state.since.insert(number, Instant::now());
        self.waiting.fetch_add(1, Ordering::Relaxed);
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
        Some(Place { turns: self.clone(), client, number, turn, waits })
    }

    /// Since when the one waits who has waited longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        if self.waiting() == 0 {
            return None;
        }
        self.state.lock().since.first_key_value().map(|(_, since)| *since)
    }

    /// Gives the turn to the next client's first in line.
    fn pass(self: &Arc<Self>) {
        let mut state = self.state.lock();
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

    #[cfg(test)]
    pub(super) fn is_forgotten(&self) -> bool {
        let state = self.state.lock();
        !state.taken
            && state.round.is_empty()
            && state.lines.is_empty()
            && state.places.is_empty()
            && state.since.is_empty()
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
pub(super) struct Place {
    turns: Arc<Turns>,
    client: ClientKey,
    number: u64,
    turn: Option<Turn>,
    /// Where the turn comes from.
    waits: Option<oneshot::Receiver<Turn>>,
}

impl Place {
    /// Waits until it is this one's turn.
    pub(super) async fn turn(&mut self) {
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
        let mut state = self.turns.state.lock();
        self.turns.waiting.fetch_sub(1, Ordering::Relaxed);
        state.since.remove(&self.number);
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
