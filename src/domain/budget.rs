//! A budget: what may still be sent, and exactly when more may.
//!
//! Four things hold requests back, and all of them only ever let more through as time passes, so that the first moment at
//! which a request fits is known: what was spent (a [`WindowRing`], or a [`TokenBucket`]), what others on the same account
//! have spent as far as upstream's own count shows it, the gate that a 429 shuts, and the slow start after it.
//!
//! Pure: the caller says what time it is.

use crate::domain::quota::{Algorithm, Plan};
use crate::domain::ramp;
use crate::domain::token_bucket::TokenBucket;
use crate::domain::window::WindowRing;

/// Nanoseconds on the caller's monotonic scale.
type Nanos = u64;

/// One budget.
#[derive(Debug, Clone)]
pub struct Budget {
    plan: Plan,
    count: Count,
    /// Of a slow start.
    step: Nanos,
    gate: Gate,
    foreign: Foreign,
    /// Charged, and not answered yet.
    in_flight: u64,
}

/// How a budget looks to a caller at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests that would be admitted now.
    pub remaining: u32,
    /// When `remaining` grows next; `None` while nothing is spent.
    pub grows_at: Option<Nanos>,
    /// A 429 of upstream's has shut the gate.
    pub shut: bool,
}

/// What is asked of a budget: one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// So many others are served before.
    pub ahead: u32,
    /// So much of the budget is not for this caller.
    pub held_back: u32,
}

/// How a budget stands where it is shared, for a replica that follows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The gate: until when it is shut, and how many have passed since.
    pub gate: (Nanos, u64),
    /// The estimate of what others have spent.
    pub foreign: Foreign,
    /// Charged by all replicas, and not answered yet.
    pub in_flight: u64,
    /// When a token bucket is full again.
    pub full_at: Nanos,
}

/// Upstream's own count, as an answer told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// What it has left.
    pub remaining: u32,
    /// When that grows.
    pub reset: Nanos,
}

#[derive(Debug, Clone)]
enum Count {
    Window(WindowRing),
    TokenBucket(TokenBucket),
}

/// Nothing passes before `until`, and then a slow start.
#[derive(Debug, Clone, Copy, Default)]
struct Gate {
    until: Nanos,
    /// Charged since it opened.
    passed: u64,
}

/// What others on the account have spent: an estimate, which each answer replaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Foreign {
    /// How many.
    pub amount: u64,
    /// From here on upstream gives it back, who knows how fast: one request at a time may go and see. Its answer replaces the
    /// estimate; without one, the next may go.
    pub lapses: Nanos,
    /// When the one that is under way was charged.
    pub probed: Option<Nanos>,
    /// Here the last of it has lapsed upstream too.
    pub expires: Nanos,
    /// What the answer before made of it.
    pub before: u64,
    /// The latest charge whose answer was heard: an older one has older news.
    pub heard: Nanos,
}

impl Budget {
    /// One of which nothing is spent.
    pub fn new(plan: Plan) -> Self {
        let count = match plan.algorithm {
            Algorithm::Window => Count::Window(WindowRing::new(plan.quota)),
            Algorithm::TokenBucket => Count::TokenBucket(TokenBucket::new(plan.quota)),
        };
        let step = slow_start(plan);
        Self { plan, count, step, gate: Gate::default(), foreign: Foreign::default(), in_flight: 0 }
    }

    /// A budget of another plan that holds what this one has spent, its gate and its estimate.
    #[must_use]
    pub fn replan(&self, now: Nanos, plan: Plan) -> Self {
        let mut next =
            Self { gate: self.gate, foreign: self.foreign, in_flight: self.in_flight, ..Self::new(plan) };
        next.recall(now, self.clone().spent(now));
        next
    }

    /// Stands as the one that it follows does.
    pub fn follow(&mut self, now: Nanos, standing: &Standing) {
        self.advance(now);
        (self.gate.until, self.gate.passed) = standing.gate;
        (self.foreign, self.in_flight) = (standing.foreign, standing.in_flight);
        if let Count::TokenBucket(bucket) = &mut self.count {
            bucket.resume(standing.full_at);
        }
    }

    /// What others have spent, by the latest estimate.
    pub fn foreign(&self) -> u64 {
        self.foreign.amount
    }

    /// Spent within the window at `now`.
    pub fn used(&mut self, now: Nanos) -> u64 {
        self.advance(now);
        self.count.used()
    }

    /// How many have lapsed by `now` since it was made.
    pub fn lapsed(&mut self, now: Nanos) -> u64 {
        self.advance(now);
        match &self.count {
            Count::Window(ring) => ring.lapsed(),
            Count::TokenBucket(bucket) => bucket.lapsed(),
        }
    }

    /// When the next of what was spent lapses.
    pub fn next_lapse(&mut self, now: Nanos) -> Option<Nanos> {
        self.advance(now);
        self.count.next_lapse()
    }

    /// How long what was spent counts.
    pub fn reach(&self) -> Nanos {
        self.count.reach()
    }

    /// Another budget settles from now on what is under way here: so many.
    pub fn hand_over(&mut self) -> u64 {
        std::mem::take(&mut self.in_flight)
    }

    /// The same, which settles so many that are under way, and no others.
    #[must_use]
    pub fn taking_over(self, in_flight: u64) -> Self {
        Self { in_flight, ..self }
    }

    /// What it was made from.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Whether `wanted` would be admitted at `now`; nothing is charged.
    ///
    /// # Errors
    /// The moment from which it would be, if nobody else asked.
    pub fn check(&mut self, now: Nanos, wanted: Wanted) -> Result<(), Nanos> {
        let now = self.advance(now);
        let free = self.free(now).saturating_sub(self.spared(wanted));
        if free.min(self.gate.room(self.step, now)) > u64::from(wanted.ahead) {
            return Ok(());
        }
        Err(self.fits_at(now, wanted))
    }

    /// Charges one to `now`. To be called after [`check`](Self::check) said yes, in the same step.
    pub fn charge(&mut self, now: Nanos) {
        let now = self.advance(now);
        self.count.charge(now, 1);
        self.in_flight += 1;
        if self.gate.until > 0 {
            self.gate.passed += 1;
        }
        if self.foreign.amount > 0 && now >= self.foreign.lapses {
            self.foreign.probed.get_or_insert(now);
        }
    }

    /// Gives back what was charged at `charged` and surely never sent.
    pub fn refund(&mut self, charged: Nanos) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if charged >= self.gate.until {
            self.gate.passed = self.gate.passed.saturating_sub(1);
        }
        if self.foreign.probed == Some(charged) {
            self.foreign.probed = None;
        }
        self.count.refund(charged);
    }

    /// What was charged at `charged` has been answered, or will never be: upstream has counted it by `now`, if ever. `true`
    /// where another waited for that.
    pub fn settle(&mut self, charged: Nanos, now: Nanos) -> bool {
        let now = self.advance(now);
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Count::Window(ring) = &mut self.count {
            ring.settle(charged, now);
        }
        self.foreign.seen(charged)
    }

    /// Shuts the gate until `until`: upstream said 429. An earlier moment than it knows of never opens it sooner.
    pub fn penalise(&mut self, until: Nanos) {
        if until > self.gate.until {
            self.gate = Gate { until, passed: 0 };
        }
    }

    /// When the gate opens, or opened last; zero when it never shut.
    pub fn gate(&self) -> Nanos {
        self.gate.until
    }

    /// Takes note of what the answer to a request charged at `charged` said of upstream's own count. To be called after
    /// [`settle`](Self::settle).
    ///
    /// Where upstream has less left than there is here, others have spent the difference. What is in flight it may have
    /// counted or not: that much is believed only when two answers in a row agree, because answers overtake each other. What
    /// upstream has *spent* is no measure: an operator's window may be shorter than its own. Our own spend is never
    /// forgotten for any of it. `true` where more is left than was thought.
    pub fn observe(&mut self, now: Nanos, charged: Nanos, told: Told) -> bool {
        let now = self.advance(now);
        if charged < self.foreign.heard {
            return false;
        }
        let thought = self.foreign.at(now);
        let left = self.limit().saturating_sub(self.count.used());
        let certain = left.saturating_sub(u64::from(told.remaining));
        let likely = (left + self.in_flight).saturating_sub(u64::from(told.remaining));
        let expires = now.saturating_add(nanos(self.plan.quota.window));
        self.foreign = Foreign {
            amount: certain.max(likely.min(self.foreign.before)),
            lapses: told.reset.clamp(now, expires),
            probed: None,
            expires,
            before: likely,
            heard: charged,
        };
        self.foreign.amount < thought
    }

    /// What is left at `now` for a caller from whom `held_back` is held back, and when that grows.
    pub fn snapshot(&mut self, now: Nanos, held_back: u32) -> Snapshot {
        let now = self.advance(now);
        let wanted = Wanted { ahead: 0, held_back };
        let free = self.free(now).saturating_sub(self.spared(wanted));
        let open = self.gate.room(self.step, now);
        let remaining = u32::try_from(free.min(open)).unwrap_or(u32::MAX);
        let grows_at = if remaining == 0 {
            Some(self.fits_at(now, wanted))
        } else if open < free {
            Some(ramp::next(self.step, self.gate.until, now))
        } else {
            let foreign = self.foreign.shrinks_at(self.step, now, self.foreign.probed);
            [self.count.next_lapse(), foreign].into_iter().flatten().min()
        };
        Snapshot { remaining, grows_at, shut: now < self.gate.until }
    }

    /// The first moment from `now` on at which `wanted` fits, were nothing more spent than by those ahead of it.
    pub fn fits_at(&mut self, now: Nanos, wanted: Wanted) -> Nanos {
        let now = self.advance(now);
        let (limit, spared) = (self.limit(), self.spared(wanted));
        let all = u64::from(wanted.ahead) + 1 + spared;
        // More than ever fit at once: as many whole windows later as it takes.
        let rounds = (all - 1) / limit;
        let n = all - rounds * limit;
        let open = self.gate.opens_at(self.step, n.saturating_sub(spared).max(1));
        let mut first = self.counted_out(now, n, wanted.ahead > 0).max(open).max(now);
        if first == now
            && let Some(probed) = self.foreign.probed
            && self.free(now) < n
        {
            // As soon as its answer is there, and worth a look a step later.
            first = ramp::next(self.step, probed, now);
        }
        first.saturating_add(rounds.saturating_mul(self.count.reach()))
    }

    /// What was spent within the window and when, for whoever takes it over.
    pub fn spent(&mut self, now: Nanos) -> Vec<(Nanos, u32)> {
        self.advance(now);
        match &self.count {
            Count::Window(ring) => ring.spent().collect(),
            Count::TokenBucket(bucket) => {
                let used = u32::try_from(bucket.used()).unwrap_or(u32::MAX);
                if used > 0 { vec![(now, used)] } else { Vec::new() }
            }
        }
    }

    /// Charges what was spent before this budget was there, oldest first; what has lapsed by `now` is left out.
    pub fn recall(&mut self, now: Nanos, spent: impl IntoIterator<Item = (Nanos, u32)>) {
        for (at, n) in spent {
            let at = self.advance(at.min(now));
            self.count.charge(at, n);
        }
        self.advance(now);
    }

    fn limit(&self) -> u64 {
        u64::from(self.plan.quota.requests.max(1))
    }

    /// What of the budget is not for this caller. However much is held back, some moment has room for one.
    fn spared(&self, wanted: Wanted) -> u64 {
        u64::from(wanted.held_back).min(self.limit() - 1)
    }

    fn free(&self, now: Nanos) -> u64 {
        self.limit().saturating_sub(self.count.used() + self.foreign.at(now))
    }

    fn advance(&mut self, now: Nanos) -> Nanos {
        match &mut self.count {
            Count::Window(ring) => ring.advance(now),
            Count::TokenBucket(bucket) => bucket.advance(now),
        }
    }

    /// The first moment at which `n` fit beside what was spent, here and by others.
    ///
    /// Whether others' spend has lapsed is found out by whoever goes first, one after the other. How long their answers take
    /// nobody knows: a step each is assumed where somebody goes first, and where nobody does, it lasts.
    fn counted_out(&mut self, now: Nanos, n: u64, ahead: bool) -> Nanos {
        let goes = match self.foreign.probed {
            None if ahead && self.foreign.amount > 0 => {
                Some(self.counted_out(now, 1, false).max(self.foreign.lapses))
            }
            probed => probed,
        };
        let mut from = now;
        loop {
            let foreign = self.foreign.expected(self.step, from, goes);
            let fewer = self.foreign.shrinks_at(self.step, from, goes);
            let fits = (n + foreign <= self.limit()).then(|| self.count.fits_at(n + foreign).max(from));
            match (fits, fewer) {
                (Some(fits), Some(fewer)) if fits < fewer => return fits,
                (_, Some(fewer)) => from = fewer,
                (fits, None) => return fits.unwrap_or(from),
            }
        }
    }
}

impl Count {
    fn used(&self) -> u64 {
        match self {
            Self::Window(ring) => ring.used(),
            Self::TokenBucket(bucket) => bucket.used(),
        }
    }

    fn charge(&mut self, at: Nanos, n: u32) {
        match self {
            Self::Window(ring) => ring.charge(at, n),
            Self::TokenBucket(bucket) => bucket.charge(n),
        }
    }

    fn refund(&mut self, charged: Nanos) {
        match self {
            Self::Window(ring) => ring.refund(charged, 1),
            Self::TokenBucket(bucket) => bucket.refund(1),
        }
    }

    fn fits_at(&mut self, n: u64) -> Nanos {
        match self {
            Self::Window(ring) => ring.fits_at(n),
            Self::TokenBucket(bucket) => bucket.fits_at(n),
        }
    }

    fn next_lapse(&mut self) -> Option<Nanos> {
        match self {
            Self::Window(ring) => ring.next_lapse(),
            Self::TokenBucket(bucket) => bucket.next_lapse(),
        }
    }

    fn reach(&self) -> Nanos {
        match self {
            Self::Window(ring) => ring.reach(),
            Self::TokenBucket(bucket) => bucket.reach(),
        }
    }
}

impl Gate {
    /// How many it lets pass at `now`.
    fn room(&self, step: Nanos, now: Nanos) -> u64 {
        if self.until == 0 { u64::MAX } else { ramp::open(step, self.until, now).saturating_sub(self.passed) }
    }

    /// When it lets `n` more pass.
    fn opens_at(&self, step: Nanos, n: u64) -> Nanos {
        if self.until == 0 { 0 } else { ramp::opens_at(step, self.until, self.passed + n) }
    }
}

impl Foreign {
    /// What is left of it at `now`. Past its lapse there is room for the one that goes to see, and for no second.
    fn at(&self, now: Nanos) -> u64 {
        match now < self.expires {
            true if now >= self.lapses => self.amount.saturating_sub(1),
            true => self.amount,
            false => 0,
        }
    }

    /// What was charged at `charged` has been answered, or will never be. Unless its answer says better, what it used had
    /// lapsed.
    fn seen(&mut self, charged: Nanos) -> bool {
        let probed = self.probed == Some(charged);
        if probed {
            self.probed = None;
            self.amount = self.amount.saturating_sub(1);
        }
        probed
    }

    /// What will be left of it at `at`, where the first to see goes at `goes` and others follow.
    fn expected(&self, step: Nanos, at: Nanos, goes: Option<Nanos>) -> u64 {
        match goes {
            Some(goes) if self.at(at) > 0 && at >= self.lapses => {
                self.amount.saturating_sub(ramp::open(step, goes, at).max(1))
            }
            _ => self.at(at),
        }
    }

    /// When less of it is expected to be left than at `at`.
    fn shrinks_at(&self, step: Nanos, at: Nanos, goes: Option<Nanos>) -> Option<Nanos> {
        if self.expected(step, at, goes) == 0 {
            return None;
        }
        if at < self.lapses {
            return Some(self.lapses);
        }
        Some(goes.map_or(self.expires, |goes| ramp::next(step, goes, at)).min(self.expires))
    }
}

/// The steps of a slow start: a hundredth of the window, so that it is over long before the window is.
pub fn slow_start(plan: Plan) -> Nanos {
    (nanos(plan.quota.window) / 100).clamp(10_000_000, 1_000_000_000)
}

fn nanos(duration: std::time::Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
