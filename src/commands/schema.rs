//! `schema`: the JSON schema of the configuration file, for editors.

use std::process::ExitCode;

use metorial_proxy::config;

use super::answer;

pub(super) fn run() -> ExitCode {
    answer(&format!("{:#}\n", config::schema()))
}
