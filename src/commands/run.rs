//! `run`: the proxy until a signal.

use std::path::Path;
use std::process::ExitCode;

use metorial_proxy::config::{Config, Loaded};
use metorial_proxy::edge::activation::Passed;
use metorial_proxy::edge::notify;
use metorial_proxy::server::{Origin, Server};

use super::signals::Signals;
use super::{ended, load, log, refuse_one, refuse_start, runtime, variables};

pub(super) fn run(file: Option<&Path>) -> ExitCode {
    match start(file) {
        Ok(code) | Err(code) => code,
    }
}

fn start(file: Option<&Path>) -> Result<ExitCode, ExitCode> {
    // First of all: there are no threads yet.
    let passed = Passed::from_env().map_err(|error| refuse_one(&format!("LISTEN_FDS: {error}")))?;
    let Loaded { config, warnings, files } = load(file)?;
    let origin = Origin::new(file.map(Path::to_owned), variables(), &files);
    let _log = log(&config.telemetry.log)?;
    for warning in warnings {
        tracing::warn!(key = warning.path, cure = warning.cure, "{}", warning.message);
    }
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(&config, passed, origin));
    // A file that does not let itself be read must not keep the process.
    runtime.shutdown_background();
    ended
}

async fn serve(config: &Config, passed: Passed, origin: Origin) -> Result<ExitCode, ExitCode> {
    let mut signals = Signals::new().map_err(|error| refuse_one(&error))?;
    let server = Server::start_on(config, passed).map_err(|faults| refuse_start(&faults))?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        workers = config.server.workers,
        upstream = %config.upstream.authority,
        environments = config.environments.len(),
        "started"
    );
    server.follow(origin);
    notify::ready();
    let signal = signals.next(|| server.reload()).await;
    tracing::info!(signal, "stopping");
    let drain = server.config().server.drain;
    notify::stopping(drain.deadline);
    let mut hurried = false;
    let hurry = async {
        signals.next(|| tracing::warn!("SIGHUP: the proxy is stopping")).await;
        hurried = true;
    };
    let cut = server.drain(drain.settle, drain.deadline, hurry).await;
    if hurried {
        tracing::warn!(connections = cut, "a second signal: stopped at once");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ended(cut, drain.deadline))
}
