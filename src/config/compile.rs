//! From what is written to what holds: defaults, ranges, and what must fit together.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;

use super::fault::{Wrong, nearest};
use super::raw;
use super::reader::Reader;
use super::value::{Field, Section};
use super::{Config, Otlp, Telemetry};

mod access;
mod budget;
mod cache;
mod clients;
mod environment;
mod server;
mod store;
mod upstream;

/// The configuration, where nothing that it cannot do without is missing. It holds only if no error was noted.
pub(super) fn compile(mut file: Reader<'_, '_>, raw: Field<Section<raw::File>>) -> Option<Config> {
    let raw = file.section("", raw);
    let server = file.section("server", raw.server);
    let mut server = server::compile(file.at("server"), server);
    let clients = file.section("clients", raw.clients);
    let clients = clients::compile(file.at("clients"), clients);
    let upstream = file.section("upstream", raw.upstream);
    let upstream = upstream::compile(file.at("upstream"), upstream);
    let cache = file.section("cache", raw.cache);
    let cache = cache::compile(file.at("cache"), cache);
    let store = file.section("store", raw.store);
    let store = store::compile(file.at("store"), store);
    let telemetry = file.section("telemetry", raw.telemetry);
    let telemetry = telemetry_of(file.at("telemetry"), telemetry);

    let environments = environment::compile(&mut file, raw.environments, cache.ttl, &server.listen);
    if server.hosts.is_empty() && environments.iter().flatten().any(|environment| environment.keyless) {
        // Or a page in a browser here could reach us by a name of its own that resolves to 127.0.0.1.
        server.hosts = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();
    }
    let environments =
        environments.into_iter().map(|environment| environment.map(Arc::new)).collect::<Option<_>>()?;
    Some(Config { server, clients, upstream, environments, cache, store, telemetry })
}

fn telemetry_of(mut at: Reader<'_, '_>, raw: raw::Telemetry) -> Telemetry {
    // tracing-subscriber cuts its input at bytes and panics inside a longer character, so that is looked at first.
    let readable =
        |log: &str| log.is_ascii() && !log.trim().is_empty() && EnvFilter::builder().parse(log).is_ok();
    let filter = |log: String| match readable(&log) {
        true => Ok(log),
        false => Err(Wrong::new(
            format!("{log:?} is no log filter"),
            "write a level (error, warn, info, debug, trace) or a filter such as \"info,metorial_proxy=debug\"",
        )),
    };
    let sample = at.share("otlp_sample", raw.otlp_sample, 1.0);
    let endpoint = |url: String| upstream::endpoint(&url, "http://127.0.0.1:4318").and_then(collector);
    let endpoint = at.checked("otlp", raw.otlp, endpoint);
    Telemetry {
        otlp: endpoint.map(|endpoint| Otlp { endpoint, sample }),
        log: at.checked("log", raw.log, filter).unwrap_or_else(|| "info".into()),
        access_log: at.value("access_log", raw.access_log, true),
    }
}

/// Where a collector takes traces, by OTLP/HTTP's rule.
fn collector(base: upstream::Endpoint) -> Result<http::Uri, Wrong> {
    let upstream::Endpoint { scheme, authority, base_path } = base;
    let uri = http::Uri::builder().scheme(scheme).authority(authority);
    let uri = uri.path_and_query(format!("{base_path}/v1/traces")).build();
    uri.map_err(|_| Wrong::new("is no URL", "write it like http://127.0.0.1:4318"))
}

/// A name that is safe wherever it is shown: as a metric's label, in a log line, in a store's key.
fn name(text: &str) -> Result<String, Wrong> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    match (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(
            format!("{text:?} is no name"),
            "write 1 to 64 letters, digits, dots, dashes and underscores",
        )),
    }
}

/// One of a few words.
fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, Wrong> {
    let words = || choices.iter().map(|(word, _)| *word);
    match choices.iter().find(|(word, _)| *word == text) {
        Some((_, choice)) => Ok(*choice),
        None => {
            let all = words().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
            let cure = match nearest(text, words()) {
                Some(near) => format!("did you mean {near:?}? Write {all}"),
                None => format!("write {all}"),
            };
            Err(Wrong::new(format!("{text:?} is not known here"), cure))
        }
    }
}

/// A path prefix: empty, or `/a/b`.
fn base_path(path: &str) -> Result<String, Wrong> {
    let plain = |segment: &str| {
        let bytes = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
        !matches!(segment, "" | "." | "..") && segment.bytes().all(bytes)
    };
    match path.is_empty() || path.strip_prefix('/').is_some_and(|path| path.split('/').all(plain)) {
        true => Ok(path.to_owned()),
        false => Err(Wrong::new(
            format!("{path:?} is no path prefix"),
            "write \"\" or a path such as \"/api/metorial\", without a trailing slash",
        )),
    }
}

/// Whether only this machine (or this pod) can reach `address`.
fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Entries that stand in a list twice are refused at the second.
fn unique<T: Ord + Clone>(seen: &mut BTreeSet<T>, value: T, shown: &str) -> Result<T, Wrong> {
    match seen.insert(value.clone()) {
        true => Ok(value),
        false => Err(Wrong::new(format!("{shown} is listed twice"), "keep one of them")),
    }
}
