//! How upstream is doing, as the last answers showed: for `/status`, never for readiness.

use std::sync::atomic::{AtomicBool, Ordering};

/// Shared by everything that talks to upstream.
#[derive(Debug)]
pub struct UpstreamHealth {
    healthy: AtomicBool,
}

impl Default for UpstreamHealth {
    fn default() -> Self {
        Self { healthy: AtomicBool::new(true) }
    }
}

impl UpstreamHealth {
    /// The last request to upstream was answered, or failed.
    pub fn set_healthy(&self, healthy: bool) {
        set(&self.healthy, healthy);
    }

    /// Whether the last request was answered.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }
}

/// Writes only what changes: the cache line stays shared among the workers.
fn set(flag: &AtomicBool, value: bool) {
    if flag.load(Ordering::Relaxed) != value {
        flag.store(value, Ordering::Relaxed);
    }
}
