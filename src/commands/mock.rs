//! `mock`: the stand-in API until a signal.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use metorial_proxy::domain::key::SecretKey;
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::mock::{self, Algorithm};
use tokio_util::sync::CancellationToken;

use super::signals::Signals;
use super::{log, refuse_one, runtime};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:4010", value_name = "ADDR")]
    listen: SocketAddr,
    /// Requests per window and key
    #[arg(long, default_value = "100/600s", value_name = "N/WINDOW", value_parser = mock::parse_quota)]
    limit: Quota,
    /// Requests per window and client IP
    #[arg(long, default_value = "1000/10s", value_name = "N/WINDOW", value_parser = mock::parse_quota)]
    egress_limit: Quota,
    /// How requests are counted: trailing, aligned, lazy or bucket
    #[arg(long, default_value = "trailing")]
    algorithm: Algorithm,
    /// Delay of each answer
    #[arg(long, default_value = "0ms", value_name = "DURATION", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// Items in each list
    #[arg(long, default_value_t = 57)]
    items: usize,
    /// The only secret key that is accepted [default: any metorial_sk_…]
    #[arg(long, value_name = "metorial_sk_…", value_parser = secret_key)]
    key: Option<SecretKey>,
}

fn secret_key(text: &str) -> Result<SecretKey, String> {
    SecretKey::parse(text).map_err(|error| format!("the key {error}"))
}

pub(super) fn run(options: Options) -> ExitCode {
    let outcome = log("info").and_then(|guard| {
        let code = runtime()?.block_on(serve(options))?;
        drop(guard);
        Ok(code)
    });
    match outcome {
        Ok(code) | Err(code) => code,
    }
}

async fn serve(options: Options) -> Result<ExitCode, ExitCode> {
    let mut signals = Signals::new().map_err(|error| refuse_one(&error))?;
    let listen = options.listen;
    let mock = mock::bind(mock::Options {
        listen,
        limit: options.limit,
        egress_limit: options.egress_limit,
        algorithm: options.algorithm,
        latency: options.latency,
        items: options.items,
        key: options.key,
    });
    let mock =
        mock.await.map_err(|error| refuse_one(&format!("--listen: {listen} cannot be bound: {error}")))?;
    tracing::info!(listener = "mock", addr = %mock.addr(), "listening");
    let stop = CancellationToken::new();
    let signal = async {
        signals.next(|| tracing::warn!("SIGHUP: a stand-in has no configuration to reload")).await;
        stop.cancel();
    };
    tokio::join!(mock.serve(stop.clone()), signal);
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
