//! `metorial-proxy`: argv → logging → configuration → server. The only exit.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

mod commands;

/// Faster than glibc's for the many small, short-lived pieces of a request.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // clap prints help and faults itself, and ends with 0 or 2.
    commands::Cli::parse().run()
}
