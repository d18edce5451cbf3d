//! How often upstream has said 429 in a row, as far as that is known of one budget.
//!
//! What was sent before the gate shut and is refused after it belongs to the same refusal: ten requests in flight are not ten
//! refusals in a row. And what was sent before it and is answered says nothing of how it is now.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::time::Timestamp;

/// 429s in a row.
#[derive(Debug, Default)]
pub struct Refusals {
    state: Mutex<State>,
    /// There are some. Beside the lock: most answers find none.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    in_a_row: u32,
    /// When the last one came.
    last: Timestamp,
}

impl Refusals {
    /// Notes a 429 for what was sent at `sent`. How many there were in a row before it; `None` for one that is part of the last.
    pub fn refused(&self, sent: Timestamp, now: Timestamp) -> Option<u32> {
        let mut state = self.lock();
        if state.in_a_row > 0 && sent <= state.last {
            return None;
        }
        let before = state.in_a_row;
        *state = State { in_a_row: before.saturating_add(1), last: now };
        self.any.store(true, Ordering::Relaxed);
        Some(before)
    }

    /// Notes an answer that was no 429 to what was sent at `sent`.
    pub fn answered(&self, sent: Timestamp) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        if sent > state.last {
            state.in_a_row = 0;
            self.any.store(false, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_flight_together_is_one_refusal() {
        let refusals = Refusals::default();
        let at = Timestamp;
        assert_eq!(refusals.refused(at(1), at(10)), Some(0));
        assert_eq!(refusals.refused(at(2), at(11)), None);
        refusals.answered(at(3));
        assert_eq!(refusals.refused(at(20), at(30)), Some(1), "an answer from before the first is no relief");
        refusals.answered(at(31));
        assert_eq!(refusals.refused(at(40), at(41)), Some(0));
    }
}
