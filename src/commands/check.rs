//! `check`: every error of a configuration at once.

use std::path::Path;
use std::process::ExitCode;

use metorial_proxy::config::{Config, Loaded};
use metorial_proxy::server::Server;
use metorial_proxy::telemetry::logging;

use super::{REFUSED, answer, load, refuse_one, say, told};

pub(super) fn run(file: Option<&Path>) -> ExitCode {
    let Loaded { config, warnings, .. } = match load(file) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if let Err(error) = logging::parse(&config.telemetry.log) {
        return refuse_one(&format!("telemetry.log: {error}"));
    }
    let faults = Server::faults(&config);
    if !faults.is_empty() {
        faults.iter().for_each(|fault| say(&format!("  {fault}")));
        return ExitCode::from(REFUSED);
    }
    let mut text = String::new();
    for warning in &warnings {
        text += &format!("{}\n", told::warning(warning));
    }
    for doubt in Server::doubts(&config) {
        text += &format!("warning: server.tls: {doubt}\n");
    }
    answer(&(text + &summary(&config)))
}

/// What was understood, without a key in it.
fn summary(config: &Config) -> String {
    let listen: Vec<String> = config.server.listen.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "configuration is good: {} -> {}://{}{}, admin {}\n",
        listen.join(", "),
        config.upstream.scheme,
        config.upstream.authority,
        config.upstream.base_path,
        config.server.admin,
    );
    for environment in &config.environments {
        let opened = environment.access.opened();
        let callers = match (environment.publishable_keys.len(), environment.keyless) {
            (_, true) => "callers without a key".to_owned(),
            (1, false) => "1 publishable key".to_owned(),
            (count, false) => format!("{count} publishable keys"),
        };
        text.push_str(&format!(
            "environment {}: {} requests per {}, {callers}, {} routes of the built-in table open\n",
            environment.name,
            environment.limit.requests,
            humantime::format_duration(environment.limit.window),
            opened.len(),
        ));
    }
    text
}
