//! How upstream is doing, as the last answers showed: for `/status`, never for readiness.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by everything that talks to upstream.
#[derive(Debug)]
pub struct UpstreamHealth {
    healthy: AtomicBool,
    /// A bit for each environment whose secret key was refused; those beyond the 63rd share one.
    refused: AtomicU64,
}

impl Default for UpstreamHealth {
    fn default() -> Self {
        Self { healthy: AtomicBool::new(true), refused: AtomicU64::new(0) }
    }
}

impl UpstreamHealth {
    /// The last request to upstream was answered, or failed.
    pub fn set_healthy(&self, healthy: bool) {
        set(&self.healthy, healthy);
    }

    /// The last answer to environment `index` accepted its secret key, or refused it.
    pub fn set_credentials_ok(&self, index: usize, ok: bool) {
        let bit = 1 << index.min(63);
        let refused = self.refused.load(Ordering::Relaxed) & bit != 0;
        match (ok, refused) {
            (true, true) => drop(self.refused.fetch_and(!bit, Ordering::Relaxed)),
            (false, false) => drop(self.refused.fetch_or(bit, Ordering::Relaxed)),
            (true, false) | (false, true) => {}
        }
    }

    /// Whether the last request was answered.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Whether every secret key was accepted when it was last used.
    pub fn credentials_ok(&self) -> bool {
        self.refused.load(Ordering::Relaxed) == 0
    }
}

/// Writes only what changes: the cache line stays shared among the workers.
fn set(flag: &AtomicBool, value: bool) {
    if flag.load(Ordering::Relaxed) != value {
        flag.store(value, Ordering::Relaxed);
    }
}
