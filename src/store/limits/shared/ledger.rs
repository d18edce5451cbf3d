//! What one replica knows of one shared budget, and what it has still to tell.
//!
//! All times are nanoseconds on the server's clock. Nothing here waits or speaks to anybody.

use std::collections::VecDeque;
use std::time::Duration;

use super::Nanos;
use crate::domain::budget::{Budget, Snapshot, Standing, Told, Wanted};
use crate::domain::promise::Promise;
use crate::domain::quota::{Plan, RingPlan};
use crate::domain::ratelimit::Observation;

/// No sooner does it pay to look again: whoever waits must not turn in circles.
const SOON: Nanos = 1_000_000;

/// One budget as this replica sees it.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) name: String,
    pub(super) users: Vec<String>,
    /// Where all who drew from it draw from now, those still under way too.
    pub(super) moved: Option<usize>,
    /// What all replicas have spent, as far as it is known here.
    pub(super) mirror: Budget,
    /// How many lapsed in the mirrors before this one.
    lapsed_before: u64,
    pub(super) promise: Promise,
    /// A message is under way that may have renewed the promise: what lapses before this moment is not counted twice.
    resumes: Option<Nanos>,
    pub(super) blind: Blind,
    /// The last whole account of the budget, and what this replica has drawn and moved since: all there is if the server loses
    /// its data.
    base: Budget,
    drawn: Vec<(Nanos, u32)>,
    moved_since: Vec<(Nanos, Nanos)>,
    /// The account is to be told, because the server may not know it.
    pub(super) recount: bool,
    /// To be told with the next message.
    pub(super) news: News,
    pub(super) in_flight: u32,
    /// Counts exchanges: one that goes back means lost data.
    pub(super) version: u64,
    /// How many share it.
    pub(super) replicas: u32,
    /// What others were told to leave for one that has need of it.
    pub(super) recalled: Option<u64>,
}

/// A promise, and from when on what lapses counts towards it.
pub(super) type Promised = (Promise, Option<Nanos>);

/// How requests ended, and what upstream said.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Charges that upstream may have counted later: from when to when.
    pub(super) moves: Vec<(Nanos, Nanos)>,
    pub(super) refunds: Vec<Nanos>,
    pub(super) settled: Vec<Nanos>,
    /// With the moment of the charge whose answer said it, and how many had lapsed when it did.
    pub(super) observed: Vec<(Observation, Nanos, u64)>,
    /// For how long from that moment upstream wants nothing.
    pub(super) shut: Option<(Nanos, Duration)>,
    /// The whole account was told.
    pub(super) recount: bool,
}

/// So much of each is kept to be told: while nobody hears it, older news lose their worth.
const NEWS: usize = 4096;

fn bound<T>(news: &mut Vec<T>) {
    news.drain(..news.len().saturating_sub(NEWS));
}

impl News {
    fn bound(&mut self) {
        bound(&mut self.moves);
        bound(&mut self.refunds);
        bound(&mut self.settled);
        bound(&mut self.observed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.moves.is_empty()
            && self.refunds.is_empty()
            && self.settled.is_empty()
            && self.observed.is_empty()
            && self.shut.is_none()
            && !self.recount
    }
}

/// How the server says that a budget stands.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) version: u64,
    pub(super) used: u64,
    pub(super) promise: f64,
    pub(super) share: f64,
    pub(super) replicas: u32,
    pub(super) standing: Standing,
    /// The last serial of ours that it knows.
    pub(super) applied: u64,
    /// Everything that was spent, where it tells.
    pub(super) whole: Option<Vec<(Nanos, u32)>>,
}

impl Ledger {
    /// One of which nothing is known: alone with so many others it has a share of all of it.
    pub(super) fn new(name: &str, plan: Plan, replicas: u32) -> Self {
        let amount = f64::from(plan.quota.requests / replicas.max(1));
        let share = 1.0 / f64::from(replicas.max(1));
        Self {
            name: name.to_owned(),
            users: Vec::new(),
            moved: None,
            mirror: Budget::new(plan),
            lapsed_before: 0,
            promise: Promise { amount, share, ..Promise::default() },
            resumes: None,
            blind: Blind::new(plan),
            base: Budget::new(plan),
            drawn: Vec::new(),
            moved_since: Vec::new(),
            recount: false,
            news: News::default(),
            in_flight: 0,
            version: 0,
            replicas,
            recalled: None,
        }
    }

    /// Another plan, and what was spent elsewhere by those who draw from this budget now: nothing of it is forgotten.
    pub(super) fn take_over(&mut self, now: Nanos, mirror: &Budget, plan: Plan) {
        let lapsed = self.lapsed(now);
        self.promise = self.promise.renewed(lapsed, 0);
        self.mirror = if mirror.plan() == plan { mirror.clone() } else { mirror.replan(now, plan) };
        self.lapsed_before = lapsed.saturating_sub(self.mirror.lapsed(now));
        self.promise.lapsed = self.lapsed(now);
        self.blind.plan(plan);
        self.recount = true;
        // It knows of them already.
        self.news.refunds.clear();
        self.news.moves.clear();
        self.rebase(self.mirror.clone());
    }

    /// The first moment at which the draw would fit, as far as is known here: others can only have spent more.
    pub(super) fn check(&mut self, now: Nanos, wanted: Wanted) -> Result<(), Nanos> {
        self.mirror.check(now, wanted)
    }

    /// What may be spent without asking.
    pub(super) fn left(&mut self, now: Nanos) -> u64 {
        if let Some(resumes) = self.resumes.take_if(|resumes| *resumes <= now) {
            self.promise.lapsed = self.lapsed(resumes);
        }
        let lapsed = if self.resumes.is_some() { self.promise.lapsed } else { self.lapsed(now) };
        self.promise.worth(lapsed).saturating_sub(self.blind.sum(now))
    }

    /// How many have lapsed since this replica began.
    fn lapsed(&mut self, now: Nanos) -> u64 {
        self.lapsed_before + self.mirror.lapsed(now)
    }

    /// When `n` may be spent without asking, where that is not now.
    pub(super) fn left_at(&self, now: Nanos, n: u64) -> Nanos {
        let (mut mirror, mut blind, mut promise) = (self.mirror.clone(), self.blind.clone(), self.promise);
        let mut at = now.saturating_add(SOON);
        if let Some(resumes) = self.resumes {
            at = at.max(resumes);
            promise.lapsed = self.lapsed_before + mirror.lapsed(resumes);
        }
        loop {
            let spent = blind.sum(at);
            if promise.worth(self.lapsed_before + mirror.lapsed(at)).saturating_sub(spent) >= n {
                return at;
            }
            match [mirror.next_lapse(at), blind.next_lapse()].into_iter().flatten().min() {
                Some(next) if next > at => at = next,
                // Never, by itself: whoever waits looks again before long.
                _ => return at.saturating_add(1_000_000_000),
            }
        }
    }

    /// Spends one without asking.
    pub(super) fn spend_blind(&mut self, now: Nanos) {
        self.blind.charge(now);
        self.mirror.charge(now);
        self.in_flight += 1;
    }

    /// Spends one that the server has drawn at `at`.
    pub(super) fn spend(&mut self, at: Nanos) {
        self.mirror.charge(at);
        self.drawn.push((at, 1));
        self.in_flight += 1;
    }

    /// One that was charged at `charged` was surely never sent.
    pub(super) fn refund(&mut self, charged: Nanos, blind: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.mirror.refund(charged);
        if !blind || !self.blind.take(charged) {
            self.news.refunds.push(charged);
        }
    }

    /// One that was charged at `charged` was answered, or will never be; `true` where another waited for that.
    pub(super) fn settle(&mut self, now: Nanos, charged: Nanos, blind: bool) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        let latest = now.saturating_sub(self.blind.guard);
        if latest / self.blind.sub_window > charged / self.blind.sub_window {
            if !blind || !self.blind.take(charged) {
                self.news.moves.push((charged, latest));
                self.moved_since.push((charged, latest));
                bound(&mut self.moved_since);
            } else {
                self.blind.charge(latest);
            }
        }
        if !blind {
            self.news.settled.push(charged);
        }
        self.news.bound();
        self.mirror.settle(charged, now)
    }

    /// What the answer to one that was charged at `charged` said.
    pub(super) fn observe(&mut self, now: Nanos, charged: Nanos, observation: Observation) -> bool {
        let lapsed = self.lapsed(now);
        self.news.observed.push((observation, charged, lapsed));
        let reset = now.saturating_add(super::nanos(observation.reset));
        self.mirror.observe(now, charged, Told { remaining: observation.remaining, reset })
    }

    pub(super) fn penalise(&mut self, now: Nanos, wait: Duration) {
        self.mirror.penalise(now.saturating_add(super::nanos(wait)));
        self.news.shut = Some((now, wait));
    }

    pub(super) fn snapshot(&mut self, now: Nanos, held_back: u32, cut_off: bool) -> Snapshot {
        let mut snapshot = self.mirror.snapshot(now, held_back);
        if cut_off {
            let left = u32::try_from(self.left(now)).unwrap_or(u32::MAX);
            if left < snapshot.remaining {
                snapshot = Snapshot { remaining: left, ..snapshot };
                if left == 0 {
                    snapshot.grows_at = Some(self.left_at(now, 1).max(now));
                }
            }
        }
        snapshot
    }

    /// Binds itself to what is left without the `n` that are to be drawn now, and to no more than its fair share: that much
    /// the message may tell, whether or not it is heard.
    pub(super) fn bind(&mut self, now: Nanos, n: u64, late: Nanos) -> (f64, f64) {
        let blind = self.blind.sum(now);
        self.left(now); // Whatever lapsed while the message before was under way has been left out.
        let lapsed = if self.resumes.is_some() { self.promise.lapsed } else { self.lapsed(now) };
        let promise = self.promise.renewed(lapsed, self.mirror.used(now).saturating_sub(blind));
        let replicas = self.replicas.max(1);
        let free = self.recalled.take().unwrap_or_else(|| u64::from(self.mirror.snapshot(now, 0).remaining));
        // What nobody was asked for yet nobody keeps for it.
        let most = if self.version == 0 { 0 } else { free / u64::from(replicas) };
        let claim = (promise.amount - blind as f64 - n as f64).clamp(0.0, most as f64);
        let share = promise.share.min(1.0 / f64::from(replicas));
        self.promise = Promise { amount: claim + blind as f64, share, ..promise };
        self.resumes = Some(now.saturating_add(late));
        (claim, share)
    }

    /// The server may not know any more that upstream wants nothing.
    pub(super) fn recall_gate(&mut self, now: Nanos) {
        let left = self.mirror.gate().saturating_sub(now);
        if left > 0 {
            self.news.shut.get_or_insert((now, Duration::from_nanos(left)));
        }
    }

    /// What it was promised, to go back to where a message was surely not heeded.
    pub(super) fn promised(&self) -> Promised {
        (self.promise, self.resumes)
    }

    pub(super) fn unbind(&mut self, promised: Promised) {
        (self.promise, self.resumes) = promised;
    }

    /// What is to be told now. What lapsed since upstream said what it has left, it has since then.
    pub(super) fn tell(&mut self, now: Nanos) -> News {
        let lapsed = self.lapsed(now);
        for (observation, _, then) in &mut self.news.observed {
            let since = u32::try_from(lapsed.saturating_sub(*then)).unwrap_or(u32::MAX);
            observation.remaining = observation.remaining.saturating_add(since);
        }
        if self.news.recount {
            // The account that is told with it knows of them already.
            self.news.refunds.clear();
            self.news.moves.clear();
        }
        std::mem::take(&mut self.news)
    }

    /// Everything that is known to be spent.
    pub(super) fn account(&mut self, now: Nanos) -> Vec<(Nanos, u32)> {
        self.recount = false;
        self.news.recount = true;
        self.mirror.spent(now)
    }

    /// The last whole account, for a server that lost its own. What this replica did since is to be told again, step by step:
    /// others do not know of it.
    pub(super) fn last_account(&mut self, now: Nanos) -> Vec<(Nanos, u32)> {
        self.recount = false;
        for (at, n) in std::mem::take(&mut self.drawn) {
            self.blind.owe(at, n);
        }
        self.news.moves.clone_from(&self.moved_since);
        self.base.spent(now)
    }

    fn rebase(&mut self, base: Budget) {
        self.base = base;
        self.drawn.clear();
        self.moved_since.clone_from(&self.news.moves);
    }

    /// Takes over what the server says, at `now` on its clock.
    pub(super) fn learn(&mut self, now: Nanos, account: Account) {
        // Counted there, and in no account that was heard of yet.
        self.drawn.extend(self.blind.confirm(account.applied));
        self.version = account.version;
        self.replicas = account.replicas;
        if let Some(whole) = account.whole.filter(|_| !self.recount) {
            let (mut base, mut mirror) = (Budget::new(self.mirror.plan()), Budget::new(self.mirror.plan()));
            let mut all: Vec<(Nanos, u32)> = whole.iter().copied().chain(self.blind.spent()).collect();
            all.sort_unstable();
            mirror.recall(now, all);
            base.recall(now, whole);
            base.follow(now, &account.standing);
            self.lapsed_before = self.lapsed(now).saturating_sub(mirror.lapsed(now));
            self.mirror = mirror;
            self.rebase(base);
        }
        let known = self.mirror.used(now);
        let others = (account.used + self.blind.sum(now)).saturating_sub(known);
        self.mirror.recall(now, [(now, u32::try_from(others).unwrap_or(u32::MAX))]);
        // What others have in flight is known as it was: it is the server's to say what answers mean for them.
        let in_flight = u64::from(self.in_flight);
        self.mirror.follow(now, &Standing { in_flight, ..account.standing });
        self.promise = Promise {
            amount: account.promise,
            share: account.share,
            lapsed: self.lapsed(now),
            spent: account.used,
            uncertain: account.standing.in_flight,
        };
        self.resumes = None;
    }

    /// The message was not heard, or nobody knows: what may be told twice is told again.
    pub(super) fn not_heard(&mut self, told: News) {
        self.news.moves.extend(told.moves);
        self.news.settled.extend(told.settled);
        self.news.shut = self.news.shut.take().or(told.shut);
        self.recount |= told.recount;
        self.news.bound();
    }

    /// The server's clock differs by this from what was taken for it.
    pub(super) fn shift(&mut self, by: i128) {
        self.blind.shift(by);
    }
}

/// What was spent without asking, until the server is known to have counted it.
#[derive(Debug, Clone)]
pub(super) struct Blind {
    entries: VecDeque<Entry>,
    serial: u64,
    pub(super) sub_window: Nanos,
    pub(super) guard: Nanos,
    reach: Nanos,
}

/// So many at about one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) serial: u64,
    pub(super) at: Nanos,
    pub(super) n: u32,
    /// It may have been heard: it changes no more.
    told: bool,
}

impl Blind {
    fn new(plan: Plan) -> Self {
        let mut blind = Self { entries: VecDeque::new(), serial: 0, sub_window: 1, guard: 0, reach: 0 };
        blind.plan(plan);
        blind
    }

    fn plan(&mut self, plan: Plan) {
        let ring = RingPlan::of(plan.quota);
        self.sub_window = super::nanos(ring.sub_window).max(1);
        self.guard = self.sub_window.saturating_mul(u64::from(ring.guard));
        self.reach = self.sub_window.saturating_mul(ring.sub_windows() as u64);
    }

    fn charge(&mut self, at: Nanos) {
        let slot = at / self.sub_window;
        if let Some(entry) =
            self.entries.iter_mut().rev().find(|entry| !entry.told && entry.at / self.sub_window == slot)
        {
            (entry.at, entry.n) = (entry.at.max(at), entry.n + 1);
            return;
        }
        self.owe(at, 1);
    }

    /// A further entry.
    fn owe(&mut self, at: Nanos, n: u32) {
        self.serial += 1;
        self.entries.push_back(Entry { serial: self.serial, at, n, told: false });
    }

    /// Takes one back that was not told yet.
    fn take(&mut self, charged: Nanos) -> bool {
        let slot = charged / self.sub_window;
        let entry = self
            .entries
            .iter_mut()
            .find(|entry| !entry.told && entry.n > 0 && entry.at / self.sub_window == slot);
        entry.map(|entry| entry.n -= 1).is_some()
    }

    /// How many count at `now`.
    pub(super) fn sum(&mut self, now: Nanos) -> u64 {
        let (sub_window, reach) = (self.sub_window, self.reach);
        self.entries.retain(|entry| entry.n > 0 && lapse(entry.at, sub_window, reach) > now);
        self.entries.iter().map(|entry| u64::from(entry.n)).sum()
    }

    fn next_lapse(&self) -> Option<Nanos> {
        self.entries.iter().map(|entry| lapse(entry.at, self.sub_window, self.reach)).min()
    }

    fn spent(&self) -> impl Iterator<Item = (Nanos, u32)> {
        self.entries.iter().map(|entry| (entry.at, entry.n))
    }

    /// Each, to be told; from here on they change no more.
    pub(super) fn tell(&mut self) -> impl Iterator<Item = Entry> {
        self.entries.iter_mut().for_each(|entry| entry.told = true);
        self.entries.iter().copied()
    }

    /// Those that are known to have been counted, which are no longer here.
    fn confirm(&mut self, applied: u64) -> impl Iterator<Item = (Nanos, u32)> {
        let counted = self.entries.partition_point(|entry| entry.serial <= applied);
        self.entries.drain(..counted).map(|entry| (entry.at, entry.n))
    }

    fn shift(&mut self, by: i128) {
        for entry in &mut self.entries {
            entry.at = u64::try_from(i128::from(entry.at) + by).unwrap_or(entry.at);
        }
    }
}

fn lapse(at: Nanos, sub_window: Nanos, reach: Nanos) -> Nanos {
    (at / sub_window).saturating_mul(sub_window).saturating_add(reach)
}
