//! `[upstream]` and `[upstream.retry]`

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use http::header::HeaderName;
use http::uri::{Authority, Scheme};

use super::{base_path, choice, name, unique};
use crate::config::fault::Wrong;
use crate::config::reader::{DAY, MOMENT, Reader};
use crate::config::{Http2, Retry, Upstream, raw, secret};
use crate::domain::quota::Quota;
use crate::store::limits::EGRESS;

/// Request fields that never go upstream: they carry credentials or identity, frame the message, belong to the connection,
/// or would change what a page is without being part of what it is known by.
const NEVER_FORWARDED: &[&str] = &[
    "accept-encoding",
    "authorization",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "connection",
    "content-encoding",
    "content-length",
    "cookie",
    "cookie2",
    "expect",
    "fastly-client-ip",
    "forwarded",
    "forwarded-for",
    "host",
    "keep-alive",
    "metorial-connecting-ip",
    "metorial-consumer-profile-id",
    "metorial-consumer-session-client-secret",
    "metorial-instance-id",
    "metorial-organization-id",
    "origin",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "x-api-key",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-forwarded-for",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];
const NEVER_FORWARDED_PREFIXES: &[&str] = &["x-forwarded-", "if-"];

pub(super) struct Endpoint {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    pub(super) base_path: String,
}

pub(super) fn compile(mut at: Reader<'_, '_>, raw: raw::Upstream) -> Upstream {
    let secs = Duration::from_secs;
    let Endpoint { scheme, authority, base_path } =
        at.checked("url", raw.url, |url| endpoint(&url, "https://api.metorial.com")).unwrap_or_else(metorial);
    if scheme == Scheme::HTTP && !is_local(&authority) {
        at.warn(
            "url",
            Wrong::new(
                format!("the secret key travels to {authority} in clear"),
                "write https://, unless nobody can listen between here and there",
            ),
        );
    }
    let retry = at.section("retry", raw.retry);
    let http2 = [("auto", Http2::Auto), ("never", Http2::Never), ("always", Http2::Always)];
    let mut seen = BTreeSet::new();
    Upstream {
        scheme,
        authority,
        base_path,
        egress_limit: at.quota("egress_limit", raw.egress_limit).unwrap_or(Quota::PER_IP),
        egress_group: at
            .checked("egress_group", raw.egress_group, |group| name(&group))
            .unwrap_or_else(|| EGRESS.into()),
        connect_timeout: at.duration("connect_timeout", raw.connect_timeout, secs(3), MOMENT..=secs(600)),
        attempt_timeout: at.duration("attempt_timeout", raw.attempt_timeout, secs(10), MOMENT..=secs(3600)),
        idle_connections: at.count("idle_connections", raw.idle_connections, 64, 0..=100_000),
        idle_timeout: at.duration("idle_timeout", raw.idle_timeout, secs(15), MOMENT..=DAY),
        http2: at.checked("http2", raw.http2, |text| choice(&text, &http2)).unwrap_or_default(),
        forward_headers: at
            .list("forward_headers", raw.forward_headers, |text| {
                let name = forwarded(&text)?;
                unique(&mut seen, name.as_str().to_owned(), name.as_str()).map(|_| name)
            })
            .unwrap_or_default(),
        ca_certificate: at.checked("ca_certificate", raw.ca_certificate, secret::existing_file),
        retry: compile_retry(at.at("retry"), retry),
    }
}

fn compile_retry(mut at: Reader<'_, '_>, raw: raw::Retry) -> Retry {
    let secs = Duration::from_secs;
    let max_backoff = at.duration("max_backoff", raw.max_backoff, secs(10), MOMENT..=secs(600));
    // Where nothing is said, it is no longer than the longest.
    let quarter = Duration::from_millis(250).min(max_backoff);
    let retry = Retry {
        max_attempts: at.count("max_attempts", raw.max_attempts, 4, 1..=20),
        initial_backoff: at.duration("initial_backoff", raw.initial_backoff, quarter, MOMENT..=secs(600)),
        max_backoff,
        max_queue_wait: at.duration(
            "max_queue_wait",
            raw.max_queue_wait,
            secs(5),
            Duration::ZERO..=secs(3600),
        ),
        max_queue: at.count("max_queue", raw.max_queue, 1024, 0..=1_000_000),
        max_queue_per_client: at.count("max_queue_per_client", raw.max_queue_per_client, 64, 0..=1_000_000),
        budget: at.share("budget", raw.budget, 0.1) as f32,
    };
    if retry.initial_backoff > retry.max_backoff {
        at.refuse(
            "initial_backoff",
            Wrong::new("is longer than max_backoff", "shorten it, or lengthen max_backoff"),
        );
    }
    retry
}

fn metorial() -> Endpoint {
    Endpoint {
        scheme: Scheme::HTTPS,
        authority: Authority::from_static("api.metorial.com"),
        base_path: String::new(),
    }
}

/// The parts of a URL like `example`. It is not repeated in a fault: it could hold a password.
pub(super) fn endpoint(url: &str, example: &str) -> Result<Endpoint, Wrong> {
    let wrong = |message: &str| Wrong::new(message, format!("write it like {example}"));
    let uri: http::Uri = url.parse().map_err(|_| wrong("is no URL"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(wrong("is no URL with a scheme and a host"));
    };
    if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
        return Err(wrong("has a scheme other than http and https"));
    }
    if authority.as_str().contains('@') {
        return Err(wrong("holds a user name or password"));
    }
    if uri.query().is_some() || url.contains('#') {
        return Err(wrong("has a query or a fragment"));
    }
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    if authority.host().is_empty() || !(port.is_empty() || authority.port_u16().is_some_and(|port| port > 0))
    {
        return Err(wrong("has no valid host and port"));
    }
    let base_path = base_path(uri.path().strip_suffix('/').unwrap_or(uri.path()))?;
    Ok(Endpoint { scheme: scheme.clone(), authority: authority.clone(), base_path })
}

fn is_local(authority: &Authority) -> bool {
    let host = authority.host().to_ascii_lowercase();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn forwarded(text: &str) -> Result<HeaderName, Wrong> {
    let name: HeaderName = text
        .parse()
        .map_err(|_| Wrong::new(format!("{text:?} is no header name"), "write one such as \"x-tenant\""))?;
    let refused = NEVER_FORWARDED.contains(&name.as_str())
        || NEVER_FORWARDED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
    match refused {
        true => Err(Wrong::new(
            format!("{name} never goes upstream: it would reach around this proxy"),
            "remove it",
        )),
        false => Ok(name),
    }
}
