//! Four replicas on one budget while the network between them and their Redis server breaks, on a virtual clock: what the API
//! would have to refuse, how much of what it grants is used, and how often the server is asked.
//!
//! Prints a table of schemes and outages, each over all seeds; fails where the shared scheme trips the API once, or leaves more
//! than it may. `cargo bench --bench replicas -- [SEEDS]`, by default 12. Needs `redis-server`.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark prints, and must not go on when it fails"
)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metorial_proxy::domain::quota::Quota;
use mimalloc::MiMalloc;
use partitions::{Outage, Outcome, Scenario, Scheme, Spread};

#[path = "../tests/support/partitions.rs"]
mod partitions;
#[path = "../tests/support/redis.rs"]
#[expect(dead_code, reason = "other tests need the rest")]
mod redis_server;
#[path = "../tests/support/virtual_clock.rs"]
mod virtual_clock;
#[path = "../tests/support/virtual_redis.rs"]
#[expect(dead_code, reason = "other tests need the rest")]
mod virtual_redis;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const WINDOW: Duration = Duration::from_secs(20);
const SCENARIO: Scenario = Scenario {
    scheme: Scheme::Shared,
    quota: Quota { requests: 200, window: WINDOW },
    load: 3.0,
    spread: Spread::Even,
    outage: Outage::None,
    lasts: Duration::ZERO,
    tells: true,
    windows: 8,
    seed: 0,
};

const SCHEMES: [(&str, Scheme); 3] =
    [("shared", Scheme::Shared), ("N/4 each", Scheme::Split), ("N each", Scheme::Alone)];

const OUTAGES: [(&str, Outage, u64); 10] = [
    ("none", Outage::None, 0),
    ("server gone 1 s", Outage::Server, 1),
    ("server gone 60 s", Outage::Server, 60),
    ("server empty after 10 s", Outage::DataLost, 10),
    ("1 of 4 cut off 1 s", Outage::Some(1), 1),
    ("1 of 4 cut off 60 s", Outage::Some(1), 60),
    ("2 of 4 cut off 60 s", Outage::Some(2), 60),
    ("3 of 4 cut off 60 s", Outage::Some(3), 60),
    ("the busiest killed", Outage::Killed, 0),
    ("one fault after another", Outage::Random, 0),
];

/// One line of the table.
struct Row {
    scheme: (&'static str, Scheme),
    outage: &'static str,
    scenario: Scenario,
    outcomes: Vec<Outcome>,
}

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let given = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let seeds: u64 = given.unwrap_or(12);
    let mut rows = Vec::new();
    for scheme in SCHEMES {
        for (outage, kind, seconds) in OUTAGES {
            // Without a server nothing of it breaks.
            if scheme.1 != Scheme::Shared && kind != Outage::None {
                continue;
            }
            for spread in [Spread::Even, Spread::Skewed] {
                let lasts = Duration::from_secs(seconds);
                let scenario = Scenario { scheme: scheme.1, outage: kind, lasts, spread, ..SCENARIO };
                rows.push(Row { scheme, outage, scenario, outcomes: Vec::new() });
            }
        }
    }
    simulate(&mut rows, seeds);
    println!("200 / 20 s, four replicas, three times the budget asked, trailing upstream; {seeds} seeds");
    println!("| scheme | outage | asked | upstream 429s (worst) | used % (least) | exchanges per call |");
    println!("|---|---|---|---|---|---|");
    let mut good = true;
    for Row { scheme, outage, scenario, outcomes } in &rows {
        let worst = outcomes.iter().map(|outcome| outcome.tripped).max().unwrap_or_default();
        let least = outcomes.iter().map(Outcome::share).fold(1.0, f64::min);
        let calls: f64 = outcomes.iter().map(Outcome::exchanges_per_call).sum();
        println!(
            "| {} | {outage} | {:?} | {worst} | {:.1} | {:.2} |",
            scheme.0,
            scenario.spread,
            least * 100.0,
            calls / outcomes.len() as f64
        );
        let enough = if scenario.outage == Outage::None { 0.95 } else { 0.80 };
        good &= scheme.1 != Scheme::Shared || (worst == 0 && least >= enough);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs every row with every seed, on all cores.
fn simulate(rows: &mut [Row], seeds: u64) {
    let next = AtomicUsize::new(0);
    let scenarios: Vec<Scenario> = rows.iter().map(|row| row.scenario).collect();
    let outcomes = Mutex::new(Vec::new());
    let runs = scenarios.len() * usize::try_from(seeds).expect("few");
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let run = next.fetch_add(1, Ordering::Relaxed);
                    if run >= runs {
                        return;
                    }
                    let (row, seed) = (run % scenarios.len(), (run / scenarios.len()) as u64);
                    let outcome = partitions::run(Scenario { seed, ..scenarios[row] });
                    outcomes.lock().expect("unpoisoned").push((row, outcome));
                }
            });
        }
    });
    for (row, outcome) in outcomes.into_inner().expect("unpoisoned") {
        rows[row].outcomes.push(outcome);
    }
}
