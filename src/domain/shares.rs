//! Fair shares of a budget: who was active in the last window, and how much of what is left is held back from whom.
//!
//! While two or more clients were active, a reserve is held back from those above their fair share, so that one greedy
//! client cannot leave nothing for whoever comes next. A lone client, and a sidecar, gets everything. Counted in eighths
//! of the window, the oldest whole, in bounded memory: beyond the bound clients share the count of their wider network.

use std::collections::HashMap;

use crate::domain::client_ip::ClientKey;

type Nanos = u64;

/// Parts of a window that are counted apart.
const PARTS: usize = 8;

/// What each client spent of one budget in the last window.
#[derive(Debug)]
pub struct Shares {
    part: Nanos,
    max_clients: usize,
    clients: HashMap<ClientKey, Spend>,
    newest: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Spend {
    /// Spent per part; the slot of part `i` is `i % (PARTS + 1)`.
    parts: [u16; PARTS + 1],
    /// The part in which it was last seen.
    seen: u64,
}

impl Spend {
    /// Lets lapse what is older than a window.
    fn advance(&mut self, part: u64) {
        let steps = part.saturating_sub(self.seen).min(PARTS as u64 + 1);
        for at in (part + 1 - steps)..=part {
            self.parts[slot(at)] = 0;
        }
        self.seen = self.seen.max(part);
    }

    fn sum(&self) -> u32 {
        self.parts.iter().map(|spent| u32::from(*spent)).sum()
    }
}

fn slot(part: u64) -> usize {
    usize::try_from(part % (PARTS as u64 + 1)).unwrap_or_default()
}

impl Shares {
    /// Counts over `window` nanoseconds, at most `max_clients` clients apart.
    pub fn new(window: Nanos, max_clients: usize) -> Self {
        Self { part: (window / PARTS as u64).max(1), max_clients, clients: HashMap::new(), newest: 0 }
    }

    /// Clients active in the last window.
    pub fn active(&self) -> usize {
        self.clients.len()
    }

    /// `client` asks: it is active from now on.
    pub fn touch(&mut self, now: Nanos, client: ClientKey) {
        self.of(now, client);
    }

    /// `client` spent one.
    pub fn spend(&mut self, now: Nanos, client: ClientKey) {
        let (part, spend) = self.of(now, client);
        let spent = &mut spend.parts[slot(part)];
        *spent = spent.saturating_add(1);
    }

    /// What of a budget of `cap` is held back from `client`: nothing from a lone client or one below its fair share.
    ///
    /// A client that was not active in the last window spent nothing; asking makes nobody active.
    pub fn held_back(&mut self, now: Nanos, client: ClientKey, cap: u32, reserve: f32) -> u32 {
        let known = [client, client.parent()].into_iter().find(|client| self.clients.contains_key(client));
        let spent = known.map_or(0, |client| self.of(now, client).1.sum());
        let active = u32::try_from(self.clients.len()).unwrap_or(u32::MAX);
        if active < 2 || spent < cap.div_ceil(active) {
            return 0;
        }
        // A share of a u32, never negative: the cast rounds down and saturates.
        (cap as f32 * reserve.clamp(0.0, 1.0)) as u32
    }

    fn of(&mut self, now: Nanos, client: ClientKey) -> (u64, &mut Spend) {
        let part = (now / self.part).max(self.newest);
        if part > self.newest {
            // Once per part: who was not seen for a window is no longer active.
            self.newest = part;
            self.clients.retain(|_, spend| spend.seen + PARTS as u64 >= part);
        }
        let full = self.clients.len() >= self.max_clients;
        let client = if full && !self.clients.contains_key(&client) { client.parent() } else { client };
        let spend = self.clients.entry(client).or_insert(Spend { seen: part, ..Spend::default() });
        spend.advance(part);
        (part, spend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;
    const GREEDY: ClientKey = ClientKey(1);
    const OTHER: ClientKey = ClientKey(2);

    fn shares() -> Shares {
        Shares::new(600 * SECOND, 1000)
    }

    #[test]
    fn a_lone_client_gets_everything() {
        let mut shares = shares();
        for _ in 0..100 {
            assert_eq!(shares.held_back(SECOND, GREEDY, 100, 0.2), 0);
            shares.spend(SECOND, GREEDY);
        }
    }

    #[test]
    fn above_its_fair_share_a_client_leaves_the_reserve() {
        let mut shares = shares();
        shares.touch(SECOND, OTHER);
        for _ in 0..50 {
            assert_eq!(shares.held_back(SECOND, GREEDY, 100, 0.2), 0);
            shares.spend(SECOND, GREEDY);
        }
        assert_eq!(shares.held_back(SECOND, GREEDY, 100, 0.2), 20);
        assert_eq!(shares.held_back(SECOND, OTHER, 100, 0.2), 0);
        assert_eq!(shares.held_back(SECOND, GREEDY, 100, 0.0), 0);
    }

    #[test]
    fn what_is_older_than_a_window_is_forgotten_and_so_is_who_left() {
        let mut shares = shares();
        shares.touch(SECOND, OTHER);
        for _ in 0..60 {
            shares.spend(SECOND, GREEDY);
        }
        assert_eq!(shares.held_back(500 * SECOND, GREEDY, 100, 0.2), 20);
        shares.touch(700 * SECOND, OTHER);
        assert_eq!(shares.held_back(700 * SECOND, GREEDY, 100, 0.2), 0, "spent too long ago");
        assert_eq!(shares.active(), 2);
        shares.touch(1500 * SECOND, GREEDY);
        assert_eq!(shares.active(), 1);
    }

    #[test]
    fn a_crowd_is_counted_in_bounded_memory() {
        let mut shares = Shares::new(600 * SECOND, 100);
        for client in 0..100_000 {
            shares.spend(SECOND, ClientKey(0x2001_0db8_0000_0000 + client));
        }
        assert!(shares.active() <= 101);
    }
}
