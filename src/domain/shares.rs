//! Fair shares of a budget: who was active in the last window, and how much of what is left is held back from whom.
//!
//! While two or more clients were active, a client above its fair share (the budget divided by the active) leaves some for
//! whoever comes next: as much as it is above its share, and at most the reserve. So one greedy client cannot take the last fifth,
//! and a crowd that asks for a little more or less than its share each, as crowds do, loses nothing by it. A lone client, and
//! a sidecar, gets everything.
//!
//! Counted in eighths of the window, the oldest whole, in bounded memory: beyond the bound clients share the count of their
//! wider network.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::domain::client_ip::ClientKey;

type Nanos = u64;

/// Parts of a window that are counted apart.
const PARTS: u64 = 8;
/// Parts that count at any moment.
const KEPT: usize = PARTS as usize + 1;

/// What each client spent of one budget in the last window.
#[derive(Debug)]
pub struct Shares {
    part: Nanos,
    max_clients: usize,
    clients: HashMap<ClientKey, Spend, RandomState>,
    /// Clients by the part in which they were last seen.
    seen: [u32; KEPT],
    newest: u64,
}

/// The rule that a budget is shared by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// The budget.
    pub requests: u32,
    /// The most that is held back, as a share of it.
    pub reserve: f32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Spend {
    /// Spent per part; the slot of part `i` is `i % KEPT`.
    parts: [u32; KEPT],
    /// The part in which it was last seen.
    seen: u64,
}

impl Spend {
    /// Lets lapse what is older than a window.
    fn advance(&mut self, part: u64) {
        let steps = part.saturating_sub(self.seen).min(KEPT as u64);
        for at in (part + 1 - steps)..=part {
            self.parts[slot(at)] = 0;
        }
        self.seen = self.seen.max(part);
    }

    /// What will count in `part`, which is not before the one in which it was seen.
    fn sum(&self, part: u64) -> u32 {
        let kept = part.saturating_sub(PARTS)..=self.seen;
        kept.fold(0, |sum, at| sum.saturating_add(self.parts[slot(at)]))
    }
}

fn slot(part: u64) -> usize {
    usize::try_from(part % KEPT as u64).unwrap_or_default()
}

impl Shares {
    /// Counts over `window` nanoseconds, at most `max_clients` clients apart.
    pub fn new(window: Nanos, max_clients: usize) -> Self {
        let part = (window / PARTS).max(1);
        Self { part, max_clients, clients: HashMap::default(), seen: [0; KEPT], newest: 0 }
    }

    /// Counts over another window from now on. What a client spent in the last one it spent just now.
    pub fn count_over(&mut self, now: Nanos, window: Nanos) {
        let mut next = Self::new(window, self.max_clients);
        if next.part == self.part {
            return;
        }
        let current = self.advance(now);
        for (client, spend) in &self.clients {
            let (part, spent) = next.of(now, *client);
            spent.parts[slot(part)] = spend.sum(current);
        }
        *self = next;
    }

    /// Clients active in the last window.
    pub fn active(&self) -> u32 {
        u32::try_from(self.clients.len()).unwrap_or(u32::MAX)
    }

    /// `client` asks: it is active from now on. What is held back from it.
    pub fn ask(&mut self, now: Nanos, client: ClientKey, rule: Rule) -> u32 {
        let (part, spend) = self.of(now, client);
        let spend = *spend;
        rule.held_back(self.active(), || spend.sum(part))
    }

    /// `client` spent one.
    pub fn spend(&mut self, now: Nanos, client: ClientKey) {
        let (part, spend) = self.of(now, client);
        let spent = &mut spend.parts[slot(part)];
        *spent = spent.saturating_add(1);
    }

    /// What `client` spent at `spent_at` was given back.
    pub fn refund(&mut self, spent_at: Nanos, client: ClientKey) {
        let part = spent_at / self.part;
        let counted = self.counted_as(client);
        if let Some(spend) = counted.and_then(|client| self.clients.get_mut(&client))
            && (spend.seen.saturating_sub(PARTS)..=spend.seen).contains(&part)
        {
            let spent = &mut spend.parts[slot(part)];
            *spent = spent.saturating_sub(1);
        }
    }

    /// What is held back from `client`: nothing from a lone client or one below its fair share.
    ///
    /// A client that was not active in the last window spent nothing; this makes nobody active.
    pub fn held_back(&mut self, now: Nanos, client: ClientKey, rule: Rule) -> u32 {
        let part = self.advance(now);
        rule.held_back(self.active(), || self.spent(client, part))
    }

    /// What is held back from `client` now and from which moments on how much less, were nothing more spent or asked.
    pub fn steps(&mut self, now: Nanos, client: ClientKey, rule: Rule) -> Vec<(Nanos, u32)> {
        let current = self.advance(now);
        let mut steps: Vec<(Nanos, u32)> = Vec::new();
        for part in current..=current + KEPT as u64 {
            let held_back = rule.held_back(self.active_in(part), || self.spent(client, part));
            if steps.last().is_none_or(|(_, before)| held_back < *before) {
                steps.push((now.max(part * self.part), held_back));
            }
        }
        steps
    }

    /// What `client`, or the network it is counted with, has spent as it counts in `part`.
    fn spent(&self, client: ClientKey, part: u64) -> u32 {
        let counted = self.counted_as(client).and_then(|client| self.clients.get(&client));
        counted.map_or(0, |spend| spend.sum(part))
    }

    /// `client`, or the network that it is counted with.
    fn counted_as(&self, client: ClientKey) -> Option<ClientKey> {
        std::iter::once(client).chain(client.networks()).find(|client| self.clients.contains_key(client))
    }

    /// How many of those known now are still active in `part`.
    fn active_in(&self, part: u64) -> u32 {
        let kept = part.saturating_sub(PARTS)..=self.newest;
        kept.fold(0, |sum, at| sum.saturating_add(self.seen[slot(at)]))
    }

    /// Once per part: who was not seen for a window is no longer active.
    fn advance(&mut self, now: Nanos) -> u64 {
        let part = now / self.part;
        if part > self.newest {
            self.clients.retain(|_, spend| spend.seen + PARTS >= part);
            let steps = (part - self.newest).min(KEPT as u64);
            for at in (part + 1 - steps)..=part {
                self.seen[slot(at)] = 0;
            }
            self.newest = part;
        }
        self.newest
    }

    fn of(&mut self, now: Nanos, client: ClientKey) -> (u64, &mut Spend) {
        let part = self.advance(now);
        let client = match self.clients.contains_key(&client) || self.clients.len() < self.max_clients {
            true => client,
            false => self.counted_as(client).or_else(|| client.networks().last()).unwrap_or(client),
        };
        let spend = self.clients.entry(client).or_insert_with(|| {
            self.seen[slot(part)] += 1;
            Spend { seen: part, ..Spend::default() }
        });
        if spend.seen < part {
            self.seen[slot(spend.seen)] -= 1;
            self.seen[slot(part)] += 1;
            spend.advance(part);
        }
        (part, spend)
    }
}

impl Rule {
    /// From a client that has `spent` so much, while so many are `active`.
    fn held_back(&self, active: u32, spent: impl FnOnce() -> u32) -> u32 {
        if active < 2 {
            return 0;
        }
        let above = spent().saturating_add(1).saturating_sub(self.requests.div_ceil(active));
        // A share of a u32, never negative: the cast rounds down and saturates.
        above.min((self.requests as f32 * self.reserve.clamp(0.0, 1.0)) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;
    const GREEDY: ClientKey = ClientKey(1);
    const OTHER: ClientKey = ClientKey(2);
    const RULE: Rule = Rule { requests: 100, reserve: 0.2 };

    fn shares() -> Shares {
        Shares::new(600 * SECOND, 1000)
    }

    fn spend(shares: &mut Shares, now: Nanos, client: ClientKey, n: u32) {
        for _ in 0..n {
            shares.spend(now, client);
        }
    }

    #[test]
    fn a_lone_client_gets_everything() {
        let mut shares = shares();
        for _ in 0..100 {
            assert_eq!(shares.ask(SECOND, GREEDY, RULE), 0);
            shares.spend(SECOND, GREEDY);
        }
    }

    #[test]
    fn above_its_fair_share_a_client_leaves_as_much_as_it_is_above_and_at_most_the_reserve() {
        let mut shares = shares();
        shares.ask(SECOND, OTHER, RULE);
        for _ in 0..50 {
            assert_eq!(shares.ask(SECOND, GREEDY, RULE), 0);
            shares.spend(SECOND, GREEDY);
        }
        assert_eq!(shares.held_back(SECOND, GREEDY, RULE), 1);
        spend(&mut shares, SECOND, GREEDY, 30);
        assert_eq!(shares.held_back(SECOND, GREEDY, RULE), 20);
        assert_eq!(shares.held_back(SECOND, OTHER, RULE), 0);
        assert_eq!(shares.held_back(SECOND, GREEDY, Rule { reserve: 0.0, ..RULE }), 0);
        for _ in 0..80 {
            shares.refund(SECOND, GREEDY);
        }
        assert_eq!(shares.held_back(SECOND, GREEDY, RULE), 0, "what was given back was not spent");
    }

    #[test]
    fn what_is_older_than_a_window_is_forgotten_and_so_is_who_left() {
        let mut shares = shares();
        shares.ask(SECOND, OTHER, RULE);
        spend(&mut shares, SECOND, GREEDY, 80);
        assert_eq!(shares.held_back(500 * SECOND, GREEDY, RULE), 20);
        shares.ask(700 * SECOND, OTHER, RULE);
        assert_eq!(shares.held_back(700 * SECOND, GREEDY, RULE), 0, "spent too long ago");
        assert_eq!(shares.active(), 1);
        shares.ask(1500 * SECOND, GREEDY, RULE);
        assert_eq!(shares.active(), 1);
    }

    #[test]
    fn when_less_is_held_back_is_known_beforehand() {
        let mut shares = shares();
        shares.ask(10 * SECOND, OTHER, RULE);
        spend(&mut shares, 400 * SECOND, GREEDY, 65);
        spend(&mut shares, 460 * SECOND, GREEDY, 15);
        // The other is forgotten nine parts of 75 s after the one it was seen in.
        assert_eq!(shares.steps(500 * SECOND, GREEDY, RULE), [(500 * SECOND, 20), (675 * SECOND, 0)]);
        shares.ask(500 * SECOND, OTHER, RULE);
        let steps = shares.steps(500 * SECOND, GREEDY, RULE);
        assert_eq!(steps, [(500 * SECOND, 20), (1050 * SECOND, 0)]);
        for (at, held_back) in steps {
            assert_eq!(shares.held_back(at, GREEDY, RULE), held_back);
        }
    }

    #[test]
    fn what_was_spent_is_counted_over_another_window_too() {
        let mut shares = shares();
        shares.ask(SECOND, OTHER, RULE);
        spend(&mut shares, SECOND, GREEDY, 80);
        shares.count_over(2 * SECOND, 10 * SECOND);
        assert_eq!((shares.active(), shares.held_back(2 * SECOND, GREEDY, RULE)), (2, 20));
        shares.ask(14 * SECOND, OTHER, RULE);
        assert_eq!(shares.held_back(14 * SECOND, GREEDY, RULE), 0);
        shares.count_over(15 * SECOND, 600 * SECOND);
        assert_eq!(shares.active(), 1);
    }

    #[test]
    fn a_crowd_is_counted_in_bounded_memory() {
        let mut shares = Shares::new(600 * SECOND, 100);
        for client in 0..100_000 {
            shares.spend(SECOND, ClientKey(0x2001_0db8_0000_0000 + client));
            shares.spend(SECOND, ClientKey(0x2001_0000_0000_0000 + (client << 32)));
        }
        assert!(shares.active() <= 103, "{}", shares.active());
        assert_eq!(shares.seen.iter().sum::<u32>(), shares.active());
    }
}
