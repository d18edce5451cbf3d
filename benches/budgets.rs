//! Budgets under demand, on a virtual clock: what the API would have to refuse, and how much of what it grants is used, by
//! `algorithm = "window"` and by `"token-bucket"`, against an API that counts in any of four ways.
//!
//! Prints a table; fails where `"window"` trips the API once, or leaves more than 2 % of what a perfect client could use of a
//! trailing window. `cargo bench --bench budgets -- [SEEDS [WINDOWS]]`, by default 24 seeds of 12 windows each.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and must not go on when it fails"
)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use metorial_proxy::domain::quota::{Algorithm, Quota};
use metorial_proxy::mock::Algorithm as Counting;
use mimalloc::MiMalloc;
use simulation::{Demand, Outcome, Scenario};

#[path = "../tests/support/simulation.rs"]
mod simulation;
#[path = "../tests/support/virtual_clock.rs"]
mod virtual_clock;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The least that `"window"` must use of what a perfect client could.
const USED: f64 = 0.98;

const UPSTREAMS: [(Counting, &str); 4] = [
    (Counting::Trailing, "trailing"),
    (Counting::Aligned, "aligned"),
    (Counting::Lazy, "lazy"),
    (Counting::Bucket, "bucket"),
];

/// The documented limits: which one, whether it is our address's, whether the API tells its count.
const LIMITS: [(&str, Quota, bool, bool); 4] = [
    ("1000 / 10 s", Quota::PER_IP, true, false),
    ("100 / 600 s", Quota::DEVELOPMENT, false, false),
    ("5000 / 600 s", Quota::PRODUCTION, false, false),
    ("5000 / 600 s, told", Quota::PRODUCTION, false, true),
];

/// One line of the table: a scenario, over all seeds.
struct Row {
    limit: &'static str,
    upstream: &'static str,
    scenario: Scenario,
    outcomes: Vec<Outcome>,
}

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let given: Vec<u32> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (seeds, windows) = (given.first().copied().unwrap_or(24), given.get(1).copied().unwrap_or(12));
    let mut rows = Vec::new();
    for (limit, quota, egress, tells) in LIMITS {
        for demand in Demand::ALL {
            for (upstream, name) in UPSTREAMS {
                for algorithm in [Algorithm::Window, Algorithm::TokenBucket] {
                    let scenario =
                        Scenario { quota, egress, algorithm, upstream, tells, demand, windows, seed: 0 };
                    rows.push(Row { limit, upstream: name, scenario, outcomes: Vec::new() });
                }
            }
        }
    }
    simulate(&mut rows, u64::from(seeds));
    println!(
        "{seeds} seeds of {windows} windows; 429s: of the worst seed; use: of what a perfect client could use\n"
    );
    println!("{:<20} {:<13} {:<9} {:>14} {:>22}", "limit", "demand", "API", "window", "token-bucket");
    let mut failed = false;
    for pair in rows.chunks_exact(2) {
        let [window, bucket] = pair else { continue };
        let (tripped, used) = (window.tripped(), window.used());
        let enough = window.scenario.upstream != Counting::Trailing || used >= USED;
        failed |= tripped > 0 || !enough;
        // Our address is never counted by a bucket.
        let bucket = match window.scenario.egress {
            true => String::new(),
            false => format!("{:>12} {:>7.1} %", bucket.tripped(), bucket.used() * 100.0),
        };
        println!(
            "{:<20} {:<13} {:<9} {tripped:>6} {:>7.1} % {bucket}",
            window.limit,
            demand(window.scenario.demand),
            window.upstream,
            used * 100.0
        );
    }
    ExitCode::from(u8::from(failed))
}

fn demand(demand: Demand) -> &'static str {
    match demand {
        Demand::Backlog => "backlog 4x",
        Demand::Bursts => "bursts",
        Demand::Poisson => "Poisson 95 %",
    }
}

impl Row {
    /// 429s of the API, in the worst run.
    fn tripped(&self) -> u64 {
        self.outcomes.iter().map(|outcome| outcome.tripped).max().unwrap_or(0)
    }

    fn used(&self) -> f64 {
        let served: u64 = self.outcomes.iter().map(|outcome| outcome.served).sum();
        let possible: u64 = self.outcomes.iter().map(|outcome| outcome.possible).sum();
        Outcome { served, possible, ..Outcome::default() }.share()
    }
}

/// Every row and seed once, one at a time on each core.
fn simulate(rows: &mut [Row], seeds: u64) {
    let runs: Vec<(usize, u64)> =
        (0..rows.len()).flat_map(|row| (0..seeds).map(move |seed| (row, seed))).collect();
    let runs: Vec<(usize, Scenario)> = runs
        .into_iter()
        .map(|(row, seed)| (row, Scenario { seed, ..rows[row].scenario }))
        .filter(|(_, scenario)| !scenario.egress || scenario.algorithm == Algorithm::Window)
        .collect();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((row, scenario)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = simulation::run(*scenario);
            results.lock().expect("unpoisoned").push((*row, outcome));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    for (row, outcome) in results.into_inner().expect("unpoisoned") {
        rows[row].outcomes.push(outcome);
    }
}
