//! A clock that passes as soon as nothing else is left to do, the same way each time.

use std::future::Future;
use std::time::Duration;

use metorial_proxy::time::Timestamp;
use tokio::runtime::LocalOptions;

/// Runs `simulate` on it.
pub(crate) fn on_a_virtual_clock<F: Future>(seed: u64, simulate: impl FnOnce() -> F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime =
        runtime.enable_all().start_paused(true).build_local(LocalOptions::default()).expect("a runtime");
    // The proxy's own jitter.
    fastrand::seed(seed);
    runtime.block_on(async {
        // So that windows and sub-windows begin where they do in every other run.
        let hour = 3_600_000_000_000;
        tokio::time::advance(Duration::from_nanos(hour - Timestamp::now().0 % hour)).await;
        simulate().await
    })
}
