//! What a development budget is good for: twenty clients browse ten lists for ten minutes, with nothing in between, with a
//! plain cache of five seconds, and with this proxy. On a virtual clock; prints a table.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and must not go on when it fails"
)]

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[path = "../tests/support/browsing.rs"]
mod browsing;
#[path = "../tests/support/simulation.rs"]
#[expect(dead_code, reason = "the other half is for the benchmark of the budgets")]
mod simulation;
#[path = "../tests/support/virtual_clock.rs"]
mod virtual_clock;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    println!(
        "{:<14} {:>9} {:>9} {:>10} {:>10} {:>11} {:>10}",
        "", "requests", "answered", "refused", "mean age", "worst age", "API's 429s"
    );
    let ways = [
        ("no proxy", browsing::without(1)),
        ("cache of 5 s", browsing::plainly(1)),
        ("metorial-proxy", browsing::with(1)),
    ];
    for (name, browsed) in &ways {
        println!(
            "{name:<14} {:>9} {:>7.1} % {:>10} {:>8.1} s {:>9} s {:>10}",
            browsed.ages.len() as u64 + browsed.refused,
            browsed.answered() * 100.0,
            browsed.refused,
            browsed.mean_age(),
            browsed.worst_age(),
            browsed.tripped
        );
    }
    let ours = &ways[2].1;
    ExitCode::from(u8::from(ours.answered() < 0.99 || ours.tripped > 0))
}
