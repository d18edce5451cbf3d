//! What it costs to count: the token buckets of clients, a budget, and a draw from two budgets.

#![expect(clippy::panic, reason = "a benchmark that measures something else must not go on")]

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use metorial_proxy::domain::budget::{Budget, Wanted};
use metorial_proxy::domain::client_ip::ClientKey;
use metorial_proxy::domain::quota::{Plan, Quota};
use metorial_proxy::store::clients::ClientLimits;
use metorial_proxy::store::limits::{Draw, EGRESS, LimitStore, MemoryLimits};
use mimalloc::MiMalloc;
use setup::{PLENTY, Spending, ready};

#[path = "setup/limits.rs"]
mod setup;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .configure_from_args();
    client_limits(&mut criterion);
    budget(&mut criterion);
    memory_limits(&mut criterion);
    criterion.final_summary();
}

fn client_limits(criterion: &mut Criterion) {
    let limits = ClientLimits::new(PLENTY, 1_000_000);
    assert!(limits.check(ClientKey(7)).is_ok());
    criterion.bench_function("client limit/one client", |bencher| {
        bencher.iter(|| limits.check(black_box(ClientKey(7))));
    });

    let mut random = fastrand::Rng::with_seed(1);
    let clients: Vec<ClientKey> = (0..100_000).map(|_| ClientKey(random.u64(..))).collect();
    assert!(clients.iter().all(|client| limits.check(*client).is_ok()));
    assert!(limits.tracked() > 99_000, "{} clients are tracked", limits.tracked());
    let mut next = clients.iter().cycle();
    criterion.bench_function("client limit/100k clients", |bencher| {
        bencher.iter(|| next.next().map(|client| limits.check(*client)));
    });
}

fn budget(criterion: &mut Criterion) {
    let plan = Plan::window(Quota::PRODUCTION);
    let mut spending = Spending::new(plan);
    criterion.bench_function("budget/check, charge and settle", |bencher| bencher.iter(|| spending.take()));

    let Spending { mut budget, now } = spending;
    criterion
        .bench_function("budget/snapshot", |bencher| bencher.iter(|| budget.snapshot(black_box(now), 0)));

    // Spent evenly over the window, the worst case for the search: the last one in a row of all waits longest.
    let mut spent = Budget::new(plan);
    for at in 0..u64::from(plan.quota.requests) {
        spent.charge(at * 120_000_000);
    }
    let end = 600_000_000_000;
    for (name, ahead) in [("next in line", 0), ("last in line", plan.quota.requests - 1)] {
        let wanted = Wanted { ahead, held_back: 0 };
        assert!(spent.check(end, wanted).is_err_and(|until| until > end), "{name}");
        criterion.bench_function(&format!("budget/refusal, {name}"), |bencher| {
            bencher.iter(|| spent.check(black_box(end), wanted));
        });
    }
}

fn memory_limits(criterion: &mut Criterion) {
    let limits = MemoryLimits::default();
    let budget = |name| limits.budget(name, &[], Plan::window(PLENTY));
    let budgets = [budget("production"), budget(EGRESS)];
    let draw = Draw { budgets, ahead: 0, held_back: 0 };
    assert!(ready(limits.acquire(draw)).is_ok());
    criterion.bench_function("memory limits/acquire from two, and settle", |bencher| {
        bencher
            .iter(|| ready(limits.acquire(black_box(draw))).is_ok_and(|charge| limits.settle(charge, None)));
    });
}
