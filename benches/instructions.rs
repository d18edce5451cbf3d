//! How many instructions the hot paths take, counted by valgrind: the same on every run, however busy the machine is.
//! `benches/instructions` runs it and holds the counts against those in `instructions.toml`.

#![expect(
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark that measures something else must not go on; the macros make public items"
)]

use std::hint::black_box;

use bytes::Bytes;
use gungraun::prelude::*;
use limits::{PLENTY, Spending, ready};
use metorial_proxy::domain::client_ip::ClientKey;
use metorial_proxy::domain::page_key::{PageKey, Parts};
use metorial_proxy::domain::quota::{Plan, Quota};
use metorial_proxy::domain::secret_guard::SecretGuard;
use metorial_proxy::exchange::Arrival;
use metorial_proxy::pipeline::Pipeline as Layers;
use metorial_proxy::store::clients::ClientLimits;
use metorial_proxy::store::limits::{Draw, EGRESS, LimitStore, MemoryLimits};
use mimalloc::MiMalloc;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

#[path = "setup/limits.rs"]
mod limits;
#[path = "setup/pages.rs"]
mod pages;
#[path = "setup/pipeline.rs"]
mod pipeline;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Of each, so that what happens now and then is part of the count. `benches/instructions` divides by it.
const TIMES: usize = 100;

/// A pipeline that has warmed up, and the requests for it.
struct Requests {
    runtime: LocalRuntime,
    layers: Layers,
    arrivals: Vec<Arrival>,
}

fn requests(name: &str) -> Requests {
    let runtime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
    let case = pipeline::cases().into_iter().find(|case| case.name == name).expect("a case");
    let layers = case.pipeline(&runtime);
    let arrivals = |times| (0..times).map(|_| case.arrival()).collect::<Vec<_>>();
    let mut requests = Requests { runtime, layers, arrivals: arrivals(TIMES) };
    requests.serve();
    requests.arrivals = arrivals(TIMES);
    requests
}

impl Requests {
    fn serve(&mut self) {
        let arrivals = std::mem::take(&mut self.arrivals);
        self.runtime.block_on(async {
            for arrival in arrivals {
                pipeline::serve(&self.layers, arrival).await;
            }
        });
    }
}

#[library_benchmark(setup = requests)]
#[bench::hit_2k("hit, 2 KB")]
#[bench::hit_20k("hit, 20 KB")]
#[bench::pass_through_2k("pass through, 2 KB")]
#[bench::unauthorized("401")]
#[bench::forbidden("403")]
#[bench::limited("429 by client IP")]
fn request(mut requests: Requests) -> Requests {
    requests.serve();
    requests
}

fn one_client() -> ClientLimits {
    let limits = ClientLimits::new(PLENTY, 1_000_000);
    assert!(limits.check(ClientKey(7)).is_ok());
    limits
}

#[library_benchmark]
#[bench::check(one_client())]
fn client_limit(limits: ClientLimits) -> ClientLimits {
    for _ in 0..TIMES {
        assert!(limits.check(black_box(ClientKey(7))).is_ok());
    }
    limits
}

#[library_benchmark]
#[bench::check_charge_and_settle(Spending::new(Plan::window(Quota::PRODUCTION)))]
fn ring(mut spending: Spending) -> Spending {
    for _ in 0..TIMES {
        assert!(spending.take());
    }
    spending
}

#[library_benchmark]
#[bench::acquire_and_settle(MemoryLimits::default())]
fn two_budgets(limits: MemoryLimits) -> MemoryLimits {
    let budget = |name| limits.budget(name, &[], Plan::window(PLENTY));
    let budgets = [budget("production"), budget(EGRESS)];
    let draw = Draw { budgets, ahead: 0, held_back: 0 };
    for _ in 0..TIMES {
        let charge = ready(limits.acquire(black_box(draw)));
        assert!(charge.is_ok());
        // Nothing was heard of upstream's own count.
        charge.ok().map(|charge| black_box(limits.settle(charge, None)));
    }
    limits
}

#[library_benchmark]
#[bench::no_query("")]
#[bench::five_parameters("limit=20&order=desc&status[0]=active&status[1]=new&search=web%20search")]
fn page_key(query: &str) {
    for _ in 0..TIMES {
        black_box(PageKey::of(&Parts {
            environment: "production",
            generation: 3,
            path: "/providers",
            query: black_box(query),
            fields: &[Some(b"2026-01-01-magnetar"), Some(b"application/json")],
        }));
    }
}

fn guarded(length: usize) -> (SecretGuard, Bytes) {
    (SecretGuard::new([pages::SECRET]).expect("a guard"), pages::json(length, "").into())
}

#[library_benchmark(setup = guarded)]
#[bench::json_2k(2_000)]
#[bench::json_20k(20_000)]
fn guard((guard, body): (SecretGuard, Bytes)) -> SecretGuard {
    for _ in 0..TIMES {
        let mut scan = guard.scan();
        let passed = scan.push(body.clone()).expect("the secret is not there").len();
        assert_eq!(passed + scan.finish().len(), body.len());
    }
    guard
}

library_benchmark_group!(
    name = hot_paths,
    benchmarks = [request, client_limit, ring, two_budgets, page_key, guard]
);

main!(library_benchmark_groups = hot_paths);
