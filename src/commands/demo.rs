//! `demo`: stand-in API, proxy and admin port in one process, with commands to paste and a line that lives.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use metorial_proxy::config::{self, Config, Sources, Variables};
use metorial_proxy::domain::key::SecretKey;
use metorial_proxy::mock::{self, Mock};
use metorial_proxy::server::Server;
use metorial_proxy::telemetry::labels::CacheResult;
use tokio_util::sync::CancellationToken;

use super::signals::Signals;
use super::{log, print, refuse, refuse_one, refuse_start, runtime};

/// Known to everybody, and good for nothing but the stand-in API of this process.
const PUBLISHABLE_KEY: &str = "metorial_pk_demo";
const ALLOW: &str = "catalog,GET /provider-deployments,GET /provider-deployments/{id}";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the proxy listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// Where the admin port listens
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "ADDR")]
    admin: SocketAddr,
}

pub(super) fn run(options: &Options) -> ExitCode {
    // Info brings the listening lines; the live line takes the place of an access log.
    let outcome = log("info").and_then(|guard| {
        let code = runtime()?.block_on(demo(options))?;
        drop(guard);
        Ok(code)
    });
    match outcome {
        Ok(code) | Err(code) => code,
    }
}

async fn demo(options: &Options) -> Result<ExitCode, ExitCode> {
    let mut signals = Signals::new().map_err(|error| refuse_one(&error))?;
    // The stand-in accepts this run's secret only, so what passes has passed through the proxy.
    let secret: String = (0..32).map(|_| fastrand::alphanumeric()).collect();
    let secret = format!("metorial_sk_{secret}");
    let mock = stand_in(&secret).await?;
    let config = configuration(options, &secret, mock.addr())?;
    let server = Server::start(&config).map_err(|faults| refuse_start(&faults))?;
    tracing::info!(listener = "mock", addr = %mock.addr(), "listening");
    let proxy = server.addresses().first().copied().unwrap_or(options.listen);
    print(&guide(proxy, server.admin()));
    let stop = CancellationToken::new();
    let stand_in = mock.serve(stop.clone());
    let watched = async {
        tokio::select! {
            () = live(&server) => {}
            _ = signals.next(ignored) => {}
        }
        if std::io::stdout().is_terminal() {
            print("\n");
        }
        // Nothing sends traffic here but the person who pressed Ctrl-C: no need to settle.
        let hurry = async {
            signals.next(ignored).await;
        };
        server.drain(Duration::ZERO, Duration::from_secs(5), hurry).await;
        stop.cancel();
    };
    tokio::join!(stand_in, watched);
    print("stopped\n");
    Ok(ExitCode::SUCCESS)
}

async fn stand_in(secret: &str) -> Result<Mock, ExitCode> {
    let key = SecretKey::parse(secret).map_err(|error| refuse_one(&error))?;
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = mock::Options { listen, key: Some(key), ..mock::Options::default() };
    mock::bind(options)
        .await
        .map_err(|error| refuse_one(&format!("the stand-in API cannot be bound: {error}")))
}

/// The same configuration as a user would write with environment variables alone.
fn configuration(options: &Options, secret: &str, upstream: SocketAddr) -> Result<Config, ExitCode> {
    let variables: Variables = [
        ("METORIAL_SECRET_KEY", secret.to_owned()),
        ("METORIAL_PUBLISHABLE_KEYS", PUBLISHABLE_KEY.to_owned()),
        ("METORIAL_ALLOW", ALLOW.to_owned()),
        ("METORIAL_UPSTREAM", format!("http://{upstream}")),
        ("METORIAL_PROXY_LISTEN", options.listen.to_string()),
        ("METORIAL_PROXY_ADMIN", options.admin.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect();
    let mut config =
        config::load(&Sources { file: None, env: &variables }).map_err(|faults| refuse(&faults))?.config;
    config.telemetry.access_log = false;
    Ok(config)
}

fn guide(proxy: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "
A stand-in Metorial API, the proxy in front of it and its admin port are running on this machine.
You hold a publishable key ({PUBLISHABLE_KEY}); the secret key is known to the proxy only.
Paste these into another terminal:

  # a list page: a miss, then a hit that costs nothing of the budget (100 requests in 10 minutes)
  curl -i -H 'Authorization: Bearer {PUBLISHABLE_KEY}' 'http://{proxy}/provider-deployments?limit=2'
  curl -i -H 'Authorization: Bearer {PUBLISHABLE_KEY}' 'http://{proxy}/provider-deployments?limit=2'

  # a write: refused, because no rule allows it
  curl -i -X POST -H 'Authorization: Bearer {PUBLISHABLE_KEY}' -H 'Content-Type: application/json' \\
       -d '{{\"name\":\"mine\"}}' 'http://{proxy}/provider-deployments'

  # the limit: 120 different pages; the API is asked 100 times, then the proxy says 429 and when to come back
  for n in $(seq 120); do curl -s -o /dev/null -w '%{{http_code}} ' -H 'Authorization: Bearer {PUBLISHABLE_KEY}' \\
       \"http://{proxy}/provider-deployments?search=$n\"; done; echo

  # what the proxy knows: in a browser http://{admin}/, in a terminal
  metorial-proxy top --admin {admin}
  curl http://{admin}/status

Ctrl-C stops it.

"
    )
}

/// Prints what budget and cache are doing while requests pass: on a terminal in place, elsewhere a line per change.
async fn live(server: &Server) {
    let terminal = std::io::stdout().is_terminal();
    let mut last = String::new();
    loop {
        let line = line(server);
        if line != last {
            print(&if terminal { format!("\r\x1b[2K{line}") } else { format!("{line}\n") });
            last = line;
        }
        metorial_proxy::time::sleep(Duration::from_millis(250)).await;
    }
}

fn line(server: &Server) -> String {
    let status = server.status();
    let metrics = server.metrics();
    let count = |result| metrics.cache_count(result);
    let budget = status.environments.first();
    let (remaining, limit) = budget.map_or((0, 0), |budget| (budget.remaining, budget.limit));
    let next = match budget.map(|budget| budget.next_slot.as_secs()) {
        Some(seconds) if remaining == 0 => format!(", next slot in {seconds} s"),
        _ => String::new(),
    };
    format!(
        "budget {remaining}/{limit} left{next} | pages {} | hits {} misses {} joined {} stale {}",
        status.cache.entries,
        count(CacheResult::Hit),
        count(CacheResult::Miss),
        count(CacheResult::Coalesced),
        count(CacheResult::Stale),
    )
}

fn ignored() {
    tracing::warn!("SIGHUP: a demonstration has no configuration to reload");
}
