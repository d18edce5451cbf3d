//! What a request costs on its way through every layer, without a socket: hits, requests that go on, refusals.
//!
//! Built by [`server::pipeline_over`] as a worker's pipeline is; the upstream answers from memory.

#![expect(clippy::expect_used, reason = "a benchmark that measures something else must not go on")]

use std::time::Duration;

use criterion::Criterion;
use metorial_proxy::exchange::Arrival;
use metorial_proxy::pipeline::Pipeline;
use metorial_proxy::time::Instant;
use mimalloc::MiMalloc;
use setup::{Case, serve};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

#[path = "setup/pipeline.rs"]
mod setup;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Requests that are made ready at once, outside what is measured.
const BATCH: u64 = 256;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .sample_size(50)
        .configure_from_args();
    let runtime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
    for case in setup::cases() {
        let pipeline = case.pipeline(&runtime);
        measure(&mut criterion, &runtime, &case, &pipeline);
    }
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, runtime: &LocalRuntime, case: &Case, pipeline: &Pipeline) {
    criterion.bench_function(&format!("pipeline/{}", case.name), |bencher| {
        bencher.iter_custom(|iterations| {
            runtime.block_on(async {
                let mut taken = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let batch: Vec<Arrival> = (0..left.min(BATCH)).map(|_| case.arrival()).collect();
                    left -= batch.len() as u64;
                    let started = Instant::now();
                    for arrival in batch {
                        serve(pipeline, arrival).await;
                    }
                    taken += started.elapsed();
                }
                taken
            })
        });
    });
}
