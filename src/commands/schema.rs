//! `schema`: the JSON schema of the configuration file, for editors.

use std::process::ExitCode;

use metorial_proxy::config;

use super::print;

pub(super) fn run() -> ExitCode {
    print(&format!("{:#}\n", config::schema()));
    ExitCode::SUCCESS
}
