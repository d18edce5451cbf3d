//! What can be typed. Exit codes: 0 done, 1 failed while running, 2 refused to start.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use metorial_proxy::config::{self, Fault, Loaded, Sources, Variables};
use metorial_proxy::server::StartError;
use metorial_proxy::telemetry::logging::{self, LogGuard};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

mod check;
mod completions;
mod demo;
mod examples;
mod explain;
mod health;
mod mock;
mod run;
mod schema;
mod signals;
mod told;
mod top;

/// A reverse proxy for the Metorial API: it holds the secret key, so that frontends hold only publishable ones.
#[derive(Debug, Parser)]
#[command(name = "metorial-proxy", version, args_conflicts_with_subcommands = true, after_help = examples::ALL)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (the default); without a file, environment variables alone configure it
    #[command(after_help = examples::RUN)]
    Run(ConfigFile),
    /// Check the configuration; print every error at once with its key path and cure
    #[command(after_help = examples::CHECK)]
    Check(ConfigFile),
    /// Say what would happen to a request, and why; nothing is sent
    #[command(after_help = examples::EXPLAIN)]
    Explain(explain::Options),
    /// Print the JSON schema of the configuration file
    #[command(after_help = examples::SCHEMA)]
    Schema,
    /// Ask /readyz of a running proxy; exit 0 when it is ready, else 1
    #[command(after_help = examples::HEALTH)]
    Health {
        /// Its admin address [default: METORIAL_PROXY_ADMIN, else 127.0.0.1:9090]
        #[arg(long, value_name = "ADDR")]
        admin: Option<SocketAddr>,
    },
    /// Show budgets, traffic and health of a running proxy, refreshed each second
    #[command(after_help = examples::TOP)]
    Top(top::Options),
    /// Run a stand-in Metorial API: the real one's shapes, limits and errors
    #[command(after_help = examples::MOCK)]
    Mock(mock::Options),
    /// Run stand-in API, proxy and admin port in one process; no key and no network needed
    #[command(after_help = examples::DEMO)]
    Demo(demo::Options),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// bash, zsh, fish, elvish or powershell
        #[arg(value_name = "SHELL", hide_possible_values = true)]
        shell: clap_complete::Shell,
    },
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
            Some(Command::Top(options)) => top::run(&options),
            Some(Command::Mock(options)) => mock::run(options),
            Some(Command::Demo(options)) => demo::run(&options),
            Some(Command::Completions { shell }) => completions::run(shell),
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

/// One line per fault on stderr, and below it the line of the file that it is about.
fn refuse(faults: &[Fault]) -> ExitCode {
    let count = match faults.len() {
        1 => "1 error in the configuration".to_owned(),
        count => format!("{count} errors in the configuration"),
    };
    say(&format!("metorial-proxy: {count}"));
    faults.iter().for_each(|fault| say(&told::error(fault)));
    ExitCode::from(REFUSED)
}

fn refuse_one(fault: &dyn std::fmt::Display) -> ExitCode {
    say(&format!("metorial-proxy: {fault}"));
    ExitCode::from(REFUSED)
}

/// A line for each fault that keeps the proxy from starting.
fn refuse_start(faults: &[StartError]) -> ExitCode {
    faults.iter().for_each(|fault| say(&format!("metorial-proxy: {fault}")));
    ExitCode::from(REFUSED)
}

fn log(filter: &str) -> Result<LogGuard, ExitCode> {
    // A panic is a line of the log like any other, so that whoever parses it can.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    logging::init(filter).map_err(|error| refuse_one(&format!("telemetry.log: {error}")))
}

/// A runtime for what is not a worker: signals, the admin port, the stand-in API.
fn runtime() -> Result<LocalRuntime, ExitCode> {
    let built = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    built.map_err(|error| refuse_one(&format!("no runtime: {error}")))
}

/// To stderr, in colours where it is a terminal that wants them (`NO_COLOR`). Where nobody reads it there is nobody to tell.
fn say(line: &str) {
    writeln!(anstream::stderr().lock(), "{line}").ok();
}

/// To stdout, likewise.
fn print(text: &str) {
    write_out(text).ok();
}

/// What was asked for, to stdout: where it does not arrive, as on a full disk, the command has failed. Whoever closes a pipe has
/// read enough.
fn answer(text: &str) -> ExitCode {
    match write_out(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            say(&format!("metorial-proxy: stdout: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn write_out(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    write!(out, "{text}")?;
    out.flush()
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
