//! The window ring: an exact count of what was spent in any window, in fixed memory.
//!
//! A token bucket of the documented figures admits up to `2N - 1` in one window and so trips a limit that counts over a
//! trailing window. The ring cuts the window into sub-windows and never lets their sum, the oldest counted whole and
//! `guard` more kept against jitter, pass the quota. Its long-run rate is the full limit less one sub-window in `k + 1 + g`.
//!
//! Upstream counts a request when it arrives, some time between our charge and its answer. What was answered within the
//! guard needs nothing more; a charge whose answer took longer is moved to that answer, less the guard
//! ([`settle`](WindowRing::settle)). So whatever the network did, what has lapsed here was counted there a window ago.
//!
//! Pure: the caller says what time it is. Times must not run backwards; an earlier one counts as the latest seen.

use crate::domain::quota::{Quota, RingPlan};

/// Nanoseconds on the caller's monotonic scale.
type Nanos = u64;

/// What was spent, by sub-window.
#[derive(Debug, Clone)]
pub struct WindowRing {
    requests: u64,
    sub_window: Nanos,
    guard: Nanos,
    /// Spent per live sub-window; the slot of sub-window `i` is `i % len`.
    spent: Box<[u32]>,
    /// The latest sub-window seen.
    newest: u64,
    /// No sub-window before this one holds anything; kept so that the next free slot is found without a scan.
    oldest: u64,
    sum: u64,
    /// How many have lapsed since the ring was made.
    lapsed: u64,
}

impl WindowRing {
    /// An empty ring.
    pub fn new(quota: Quota) -> Self {
        let plan = RingPlan::of(quota);
        let sub_window = u64::try_from(plan.sub_window.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self {
            requests: u64::from(quota.requests),
            sub_window,
            guard: sub_window.saturating_mul(u64::from(plan.guard)),
            spent: vec![0; plan.sub_windows()].into_boxed_slice(),
            newest: 0,
            oldest: 0,
            sum: 0,
            lapsed: 0,
        }
    }

    /// Lets lapse what is older than the ring; returns `now`, never earlier than the latest seen.
    pub fn advance(&mut self, now: Nanos) -> Nanos {
        let now = now.max(self.newest.saturating_mul(self.sub_window));
        let current = now / self.sub_window;
        if current > self.newest {
            let len = self.spent.len() as u64;
            let steps = (current - self.newest).min(len);
            for sub_window in (current + 1 - steps)..=current {
                let slot = self.slot(sub_window);
                let lapsed = u64::from(std::mem::take(&mut self.spent[slot]));
                self.sum -= lapsed;
                self.lapsed += lapsed;
            }
            self.newest = current;
        }
        now
    }

    /// Spent within the ring's reach.
    pub fn used(&self) -> u64 {
        self.sum
    }

    /// How many have lapsed since the ring was made.
    pub fn lapsed(&self) -> u64 {
        self.lapsed
    }

    /// Charges `n` to `at`; what has lapsed already is left out.
    pub fn charge(&mut self, at: Nanos, n: u32) {
        let sub_window = at / self.sub_window;
        if sub_window > self.newest {
            self.advance(at);
        }
        if !self.is_live(sub_window) {
            return;
        }
        self.oldest = if self.sum == 0 { sub_window } else { self.oldest.min(sub_window) };
        let slot = self.slot(sub_window);
        let n = n.min(u32::MAX - self.spent[slot]);
        self.spent[slot] += n;
        self.sum += u64::from(n);
    }

    /// Gives back `n` that were charged at `charged` and surely never sent.
    pub fn refund(&mut self, charged: Nanos, n: u32) {
        let sub_window = (charged / self.sub_window).min(self.newest);
        if !self.is_live(sub_window) {
            return; // It has lapsed already.
        }
        let slot = self.slot(sub_window);
        let n = n.min(self.spent[slot]);
        self.spent[slot] -= n;
        self.sum -= u64::from(n);
    }

    /// What was charged at `charged` was answered at `answered`: upstream has counted it by then, and perhaps only then.
    ///
    /// Beyond the guard the charge is moved, to lapse a window after that. One that lapsed unanswered comes back.
    pub fn settle(&mut self, charged: Nanos, answered: Nanos) {
        let latest = answered.saturating_sub(self.guard);
        if latest / self.sub_window > charged / self.sub_window {
            self.refund(charged, 1);
            self.charge(latest, 1);
        }
    }

    /// The first moment at which `n` fit, were nothing more spent; `n` is at most the quota.
    pub fn fits_at(&mut self, n: u64) -> Nanos {
        let over = (self.sum + n).saturating_sub(self.requests);
        if over == 0 {
            return self.newest.saturating_mul(self.sub_window);
        }
        let mut freed = 0;
        self.skip_empty();
        for sub_window in self.oldest..=self.newest {
            freed += u64::from(self.spent[self.slot(sub_window)]);
            if freed >= over {
                return self.lapse(sub_window);
            }
        }
        self.lapse(self.newest)
    }

    /// When the first of what was spent lapses.
    pub fn next_lapse(&mut self) -> Option<Nanos> {
        self.skip_empty();
        (self.sum > 0).then(|| self.lapse(self.oldest))
    }

    /// How far the ring reaches back.
    pub fn reach(&self) -> Nanos {
        self.sub_window.saturating_mul(self.spent.len() as u64)
    }

    /// What was spent and when, oldest first. Each at the end of its sub-window: it lapses rather later than sooner.
    pub fn spent(&self) -> impl Iterator<Item = (Nanos, u32)> {
        let reach = (self.newest + 1).saturating_sub(self.spent.len() as u64);
        (reach.max(self.oldest)..=self.newest).filter_map(|sub_window| {
            let spent = self.spent[self.slot(sub_window)];
            (spent > 0).then(|| ((sub_window + 1).saturating_mul(self.sub_window) - 1, spent))
        })
    }

    fn is_live(&self, sub_window: u64) -> bool {
        sub_window <= self.newest && sub_window + (self.spent.len() as u64) > self.newest
    }

    fn slot(&self, sub_window: u64) -> usize {
        // Both fit: the ring's length is a usize, and the remainder is smaller.
        usize::try_from(sub_window % self.spent.len() as u64).unwrap_or_default()
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
