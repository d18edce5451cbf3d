//! Gauges of things that come and go: whoever holds a [`Held`] is counted, however it ends.

use prometheus_client::metrics::gauge::Gauge;

/// How many there are at this moment.
#[derive(Debug, Clone, Default)]
pub struct Level(pub(super) Gauge);

impl Level {
    /// One more, until the returned value is dropped.
    pub fn hold(&self) -> Held {
        self.0.inc();
        Held(self.0.clone())
    }

    /// One more, until it leaves: for who holds this anyway.
    pub fn enter(&self) {
        self.0.inc();
    }

    /// One that had entered is gone.
    pub fn leave(&self) {
        self.0.dec();
    }

    /// How many are held.
    pub fn get(&self) -> u64 {
        u64::try_from(self.0.get()).unwrap_or(0)
    }
}

/// One of those a [`Level`] counts.
#[derive(Debug)]
#[must_use = "what is dropped is no longer counted"]
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_no_longer_counted() {
        let level = Level::default();
        let first = level.hold();
        let second = level.clone().hold();
        assert_eq!(level.get(), 2);
        drop(first);
        assert_eq!(level.get(), 1);
        drop(second);
        assert_eq!(level.get(), 0);
    }
}
