//! `completions`: what a shell needs to complete commands and options.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, answer};

pub(super) fn run(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "metorial-proxy", &mut script);
    // For bash it spells a name with a hyphen in two ways, and finds no option of any command (clap-rs/clap#6421).
    answer(&String::from_utf8_lossy(&script).replace("metorial__subcmd__proxy", "metorial__proxy"))
}
