//! What a running process cannot change: sockets that are bound, threads, stores and what they are known by.

use secrecy::ExposeSecret as _;

use crate::config::{Config, Fault, RedisUrl, SharedStore};
use crate::domain::key::KeyDigest;

/// Takes each such setting from the configuration `before`; the keys of those that `next` has otherwise.
pub(super) fn keep(before: &Config, next: &mut Config) -> Vec<&'static str> {
    let mut kept = Vec::new();
    let mut keep = |key, differs: bool| {
        if differs {
            kept.push(key);
        }
    };
    keep("server.listen", stay(&before.server.listen, &mut next.server.listen));
    keep("server.admin", stay(&before.server.admin, &mut next.server.admin));
    keep("server.workers", stay(&before.server.workers, &mut next.server.workers));
    // Clients are counted by it, connections too: under another all would be strangers.
    keep("clients.ipv6_prefix", stay(&before.clients.ipv6_prefix, &mut next.clients.ipv6_prefix));
    keep("cache.capacity", stay(&before.cache.capacity, &mut next.cache.capacity));
    keep("store.state_file", stay(&before.store.state_file, &mut next.store.state_file));
    keep("telemetry.otlp", stay(&before.telemetry.otlp, &mut next.telemetry.otlp));
    let group = stay(&before.upstream.egress_group, &mut next.upstream.egress_group);
    keep("upstream.egress_group", group && before.store.shared.is_some());
    let changed = changes(before.store.shared.as_ref(), next.store.shared.as_ref());
    if !changed.is_empty() {
        next.store.shared.clone_from(&before.store.shared);
        kept.extend(changed);
    }
    kept
}

/// The keys by which two shared stores differ.
fn changes(before: Option<&SharedStore>, next: Option<&SharedStore>) -> Vec<&'static str> {
    let (before, next) = match (before, next) {
        (None, None) => return Vec::new(),
        (Some(before), Some(next)) => (before, next),
        _ => return vec!["store.url"],
    };
    let place = |url: &RedisUrl| (url.tls, url.host.clone(), url.port, url.database);
    let password = |url: &RedisUrl| {
        url.password.as_ref().map(|password| KeyDigest::of(password.expose_secret().as_bytes()))
    };
    let differ = [
        ("store.url", place(&before.url) != place(&next.url)),
        ("store.username", before.url.username != next.url.username),
        ("store.password", password(&before.url) != password(&next.url)),
        ("store.pages_url", before.pages_url.as_ref().map(place) != next.pages_url.as_ref().map(place)),
        ("store.ca_certificate", before.ca_certificate != next.ca_certificate),
        ("store.prefix", before.prefix != next.prefix),
        ("store.timeout", before.timeout != next.timeout),
        ("store.min_replicas", before.min_replicas != next.min_replicas),
    ];
    differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

fn stay<T: Clone + PartialEq>(before: &T, next: &mut T) -> bool {
    let differs = before != next;
    if differs {
        next.clone_from(before);
    }
    differs
}

/// What was checked against the addresses in the file is checked against those that are bound.
pub(super) fn check(config: &Config) -> Result<(), Vec<Fault>> {
    let open = config.server.listen.iter().find(|address| !address.ip().to_canonical().is_loopback());
    let Some(open) = open else { return Ok(()) };
    let keyless = config.environments.iter().enumerate().filter(|(_, environment)| environment.keyless);
    let fault = |index| Fault {
        path: format!("environments[{index}].keyless"),
        message: format!(
            "would let anyone who reaches {open} use the secret key: until a restart it is listened on"
        ),
        cure: "restart the proxy, or list publishable keys instead".to_owned(),
        excerpt: None,
    };
    let faults: Vec<Fault> = keyless.map(|(index, _)| fault(index)).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}
