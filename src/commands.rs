//! What can be typed. Exit codes: 0 done, 1 failed while running, 2 refused to start.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use metorial_proxy::config::{self, Fault, Loaded, Sources, Variables};
use metorial_proxy::telemetry::logging::{self, LogGuard};

mod check;
mod demo;
mod explain;
mod health;
mod mock;
mod run;
mod schema;
mod signals;

/// A reverse proxy for the Metorial API: it holds the secret key, so that frontends hold only publishable ones.
#[derive(Debug, Parser)]
#[command(name = "metorial-proxy", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigFile,
}

const EXAMPLES: &str = "\
Examples:
  metorial-proxy demo                                    everything on this machine, no key needed
  METORIAL_SECRET_KEY=metorial_sk_… METORIAL_PUBLISHABLE_KEYS=metorial_pk_… metorial-proxy
  metorial-proxy run --config /etc/metorial-proxy.toml
  metorial-proxy check --config /etc/metorial-proxy.toml
  metorial-proxy explain --key metorial_pk_… GET '/provider-deployments?limit=2'
  metorial-proxy mock --listen 127.0.0.1:4010 --limit 100/600s";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (the default); without a file, environment variables alone configure it
    Run(ConfigFile),
    /// Check the configuration; print every error at once with its key path and cure
    Check(ConfigFile),
    /// Say what would happen to a request, and why; nothing is sent
    Explain(explain::Options),
    /// Print the JSON schema of the configuration file
    Schema,
    /// Ask /readyz of a running proxy; exit 0 when it is ready, else 1
    Health {
        /// Its admin address [default: METORIAL_PROXY_ADMIN, else 127.0.0.1:9090]
        #[arg(long, value_name = "ADDR")]
        admin: Option<SocketAddr>,
    },
    /// Run a stand-in Metorial API: the real one's shapes, limits and errors
    Mock(mock::Options),
    /// Run stand-in API, proxy and admin port in one process; no key and no network needed
    Demo(demo::Options),
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file [default: METORIAL_PROXY_CONFIG, else environment variables alone]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Cli {
    pub(crate) fn run(self) -> ExitCode {
        match self.command {
            None => run::run(self.config.config.as_deref()),
            Some(Command::Run(file)) => run::run(file.config.as_deref()),
            Some(Command::Check(file)) => check::run(file.config.as_deref()),
            Some(Command::Explain(options)) => explain::run(&options),
            Some(Command::Schema) => schema::run(),
            Some(Command::Health { admin }) => health::run(admin),
            Some(Command::Mock(options)) => mock::run(options),
            Some(Command::Demo(options)) => demo::run(&options),
        }
    }
}

/// Refused to start.
const REFUSED: u8 = 2;

fn variables() -> Variables {
    std::env::vars_os().collect()
}

fn load(file: Option<&std::path::Path>) -> Result<Loaded, ExitCode> {
    config::load(&Sources { file, env: &variables() }).map_err(|faults| refuse(&faults))
}

/// One line per fault on stderr.
fn refuse(faults: &[Fault]) -> ExitCode {
    let count = match faults.len() {
        1 => "1 error in the configuration".to_owned(),
        count => format!("{count} errors in the configuration"),
    };
    say(&format!("metorial-proxy: {count}"));
    for fault in faults {
        say(&format!("  {fault}"));
    }
    ExitCode::from(REFUSED)
}

fn refuse_one(fault: &dyn std::fmt::Display) -> ExitCode {
    say(&format!("metorial-proxy: {fault}"));
    ExitCode::from(REFUSED)
}

fn log(filter: &str) -> Result<LogGuard, ExitCode> {
    // A panic is a line of the log like any other, so that whoever parses it can.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    logging::init(filter).map_err(|error| refuse_one(&format!("telemetry.log: {error}")))
}

/// A runtime for what is not a worker: signals, the admin port, the stand-in API.
fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| refuse_one(&format!("no runtime: {error}")))
}

/// To stderr. Where nobody reads it there is nobody to tell.
fn say(line: &str) {
    writeln!(std::io::stderr().lock(), "{line}").ok();
}

/// To stdout.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).ok();
}

/// How a run ended.
fn ended(cut: usize, deadline: Duration) -> ExitCode {
    if cut > 0 {
        tracing::warn!(
            connections = cut,
            deadline_seconds = deadline.as_secs_f64(),
            "cut at the drain deadline"
        );
    }
    tracing::info!("stopped");
    ExitCode::SUCCESS
}
