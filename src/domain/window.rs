//! The window ring: an exact count of what was spent in any window, in fixed memory.
//!
//! A token bucket of the documented figures admits up to `2N - 1` in one window and so trips a limit that counts over a
//! trailing window. The ring cuts the window into sub-windows and never lets their sum, the oldest counted whole and
//! `guard` more kept against jitter, pass the cap. Its long-run rate is the full limit less one sub-window in `k + 1 + g`.
//!
//! Pure: the caller says what time it is. Times must not run backwards; an earlier one counts as the latest seen.

use crate::domain::quota::RingPlan;

/// Nanoseconds on the caller's monotonic scale.
type Nanos = u64;

/// What was spent, by sub-window.
#[derive(Debug, Clone)]
pub struct WindowRing {
    plan: RingPlan,
    sub_window: Nanos,
    /// Spent per live sub-window; the slot of sub-window `i` is `i % len`.
    spent: Box<[u32]>,
    /// The latest sub-window seen.
    newest: u64,
    /// No sub-window before this one holds anything; kept so that the next free slot is found without a scan.
    oldest: u64,
    sum: u64,
    /// Nothing is handed out before this moment (a 429 from upstream).
    gate: Nanos,
    /// Spent by others on the same account, as upstream's own count shows, and when that estimate lapses.
    foreign: u64,
    foreign_until: Nanos,
}

/// How a ring looks to a caller at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests that would be admitted now.
    pub remaining: u32,
    /// When `remaining` grows next; `None` while nothing is spent.
    pub grows_at: Option<Nanos>,
}

impl WindowRing {
    /// An empty ring.
    pub fn new(plan: RingPlan) -> Self {
        let sub_window = u64::try_from(plan.sub_window.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self {
            plan,
            sub_window,
            spent: vec![0; plan.sub_windows()].into_boxed_slice(),
            newest: 0,
            oldest: 0,
            sum: 0,
            gate: 0,
            foreign: 0,
            foreign_until: 0,
        }
    }

    /// A ring of another plan that holds what this one has spent, its gate and its estimate.
    #[must_use]
    pub fn replan(&self, plan: RingPlan) -> Self {
        let mut ring = Self::new(plan);
        let reach = (self.newest + 1).saturating_sub(self.spent.len() as u64);
        for sub_window in reach..=self.newest {
            let spent = self.spent[self.slot(sub_window)];
            if spent > 0 {
                // At its end: what was spent lapses rather later than sooner.
                ring.charge((sub_window + 1).saturating_mul(self.sub_window) - 1, spent);
            }
        }
        ring.gate = self.gate;
        ring.foreign = self.foreign;
        ring.foreign_until = self.foreign_until;
        ring
    }

    /// The plan it was made from.
    pub fn plan(&self) -> &RingPlan {
        &self.plan
    }

    /// Whether `n` more would be admitted at `now`; nothing is charged.
    ///
    /// # Errors
    /// The moment from which they would be, if nobody else asked.
    pub fn check(&mut self, now: Nanos, n: u32) -> Result<(), Nanos> {
        let now = self.advance(now);
        if n > self.plan.cap {
            // More than ever fit at once: as many whole rings later as it takes.
            let rounds = u64::from((n - 1) / self.plan.cap);
            let rest = n - u32::try_from(rounds).unwrap_or(u32::MAX).saturating_mul(self.plan.cap);
            let reach = (self.spent.len() as u64).saturating_mul(self.sub_window);
            let first = self.fits_at(rest).max(self.gate).max(now);
            return Err(first.saturating_add(rounds.saturating_mul(reach)));
        }
        if now < self.gate {
            return Err(self.gate.max(self.fits_at(n)));
        }
        if self.used() + u64::from(n) <= u64::from(self.plan.cap) { Ok(()) } else { Err(self.fits_at(n)) }
    }

    /// Charges `n` to `now`. To be called after [`check`](Self::check) said yes, in the same step.
    pub fn charge(&mut self, now: Nanos, n: u32) {
        self.advance(now);
        if self.sum == 0 {
            self.oldest = self.newest;
        }
        let slot = self.slot(self.newest);
        self.spent[slot] = self.spent[slot].saturating_add(n);
        self.sum += u64::from(n);
    }

    /// Gives back `n` that were charged at `charged` and surely never sent.
    pub fn refund(&mut self, charged: Nanos, n: u32) {
        let sub_window = (charged / self.sub_window).min(self.newest);
        if sub_window + (self.spent.len() as u64) <= self.newest {
            return; // It has lapsed already.
        }
        let slot = self.slot(sub_window);
        let n = n.min(self.spent[slot]);
        self.spent[slot] -= n;
        self.sum -= u64::from(n);
    }

    /// Shuts the gate until `until`: upstream said 429.
    pub fn penalise(&mut self, until: Nanos) {
        self.gate = self.gate.max(until);
    }

    /// When the gate opens; zero when it never shut.
    pub fn gate(&self) -> Nanos {
        self.gate
    }

    /// Takes note of upstream's own count: it has `remaining` left, and its window turns over at `reset`.
    ///
    /// Where that is less than is left here, others on the same account have spent the difference. What upstream has
    /// spent is no measure of that: an operator's window may be shorter than its own. The estimate replaces the former
    /// one and lapses at `reset`; our own spend is never forgotten for it.
    pub fn observe(&mut self, now: Nanos, remaining: u32, reset: Nanos) {
        let now = self.advance(now);
        let left = u64::from(self.plan.cap).saturating_sub(self.sum);
        self.foreign = left.saturating_sub(u64::from(remaining));
        self.foreign_until = reset.clamp(now, now.saturating_add(self.window()));
    }

    /// What is left at `now` for a caller from whom `held_back` is held back, and when that grows.
    pub fn snapshot(&mut self, now: Nanos, held_back: u32) -> Snapshot {
        let now = self.advance(now);
        let first = held_back.saturating_add(1).min(self.plan.cap);
        let free = u64::from(self.plan.cap).saturating_sub(self.used()).saturating_sub(u64::from(held_back));
        if now < self.gate {
            return Snapshot { remaining: 0, grows_at: Some(self.fits_at(first).max(self.gate)) };
        }
        let remaining = u32::try_from(free).unwrap_or(u32::MAX);
        let grows_at = if remaining == 0 { Some(self.fits_at(first)) } else { self.next_lapse() };
        Snapshot { remaining, grows_at }
    }

    /// Spent by us within the ring's reach.
    pub fn spent(&self) -> u64 {
        self.sum
    }

    fn used(&self) -> u64 {
        self.sum + self.foreign
    }

    fn window(&self) -> Nanos {
        u64::try_from(self.plan.quota.window.as_nanos()).unwrap_or(u64::MAX)
    }

    fn slot(&self, sub_window: u64) -> usize {
        // Both fit: the ring's length is a usize, and the remainder is smaller.
        usize::try_from(sub_window % self.spent.len() as u64).unwrap_or_default()
    }

    /// Lets lapse what is older than the ring; returns `now`, never earlier than the latest seen.
    fn advance(&mut self, now: Nanos) -> Nanos {
        let now = now.max(self.newest.saturating_mul(self.sub_window));
        let current = now / self.sub_window;
        if current > self.newest {
            let len = self.spent.len() as u64;
            let steps = (current - self.newest).min(len);
            for sub_window in (current + 1 - steps)..=current {
                let slot = self.slot(sub_window);
                self.sum -= u64::from(std::mem::take(&mut self.spent[slot]));
            }
            self.newest = current;
        }
        if self.foreign > 0 && now >= self.foreign_until {
            self.foreign = 0;
        }
        now
    }

    /// The first moment at which `n` fit, were nothing more spent.
    fn fits_at(&mut self, n: u32) -> Nanos {
        let cap = u64::from(self.plan.cap);
        let over = (self.used() + u64::from(n)).saturating_sub(cap);
        if over == 0 {
            return self.newest.saturating_mul(self.sub_window);
        }
        let mut freed = 0;
        let mut lapsed_foreign = self.foreign == 0;
        self.skip_empty();
        for sub_window in self.oldest..=self.newest {
            let lapse = self.lapse(sub_window);
            if !lapsed_foreign && self.foreign_until <= lapse {
                freed += self.foreign;
                lapsed_foreign = true;
                if freed >= over {
                    return self.foreign_until;
                }
            }
            freed += u64::from(self.spent[self.slot(sub_window)]);
            if freed >= over {
                return lapse;
            }
        }
        if lapsed_foreign { self.lapse(self.newest) } else { self.foreign_until }
    }

    fn next_lapse(&mut self) -> Option<Nanos> {
        self.skip_empty();
        let ours = (self.sum > 0).then(|| self.lapse(self.oldest));
        let foreign = (self.foreign > 0).then_some(self.foreign_until);
        match (ours, foreign) {
            (Some(ours), Some(foreign)) => Some(ours.min(foreign)),
            (ours, foreign) => ours.or(foreign),
        }
    }

    /// Moves `oldest` to the oldest sub-window that holds anything; each is passed once, so the cost is amortised.
    fn skip_empty(&mut self) {
        self.oldest = self.oldest.max((self.newest + 1).saturating_sub(self.spent.len() as u64));
        while self.oldest < self.newest && self.spent[self.slot(self.oldest)] == 0 {
            self.oldest += 1;
        }
    }

    /// When what was spent in `sub_window` stops to count.
    fn lapse(&self, sub_window: u64) -> Nanos {
        (sub_window + self.spent.len() as u64).saturating_mul(self.sub_window)
    }
}

#[cfg(test)]
mod tests;
