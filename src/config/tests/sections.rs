//! `[clients]`, `[upstream]`, `[cache]`, `[store]`, `[telemetry]`: what is refused, and what holds.

use std::time::Duration;

use http::uri::Scheme;

use super::*;
use crate::config::Http2;

/// Each of `cases` is (keys of `[section]`, the one path with a fault, a part of what is said).
#[track_caller]
pub(super) fn refused(section: &str, cases: &[(&str, &str, &str)]) {
    for (keys, path, part) in cases {
        let faults = errors(&minimal(&format!("[{section}]\n{keys}")));
        let fault = fault_at(&faults, path);
        assert!(fault.contains(part), "{keys}: {fault}");
        assert_eq!(faults.len(), 1, "{keys}:\n{}", show(&faults));
    }
}

pub(super) fn with(section: &str, keys: &str) -> Loaded {
    ok(&minimal(&format!("[{section}]\n{keys}")))
}

#[test]
fn limits_per_client_have_bounds() {
    refused(
        "clients",
        &[
            ("limit = { requests = 1 }", "clients.limit.window", "is missing"),
            ("limit = { window = \"1s\" }", "clients.limit.requests", "is missing"),
            ("limit = { requests = 0, window = \"1s\" }", "clients.limit.requests", "out of range"),
            ("limit = { requests = 1, window = \"0s\" }", "clients.limit.window", "out of range"),
            ("limit = { requests = 1, window = \"2d\" }", "clients.limit.window", "out of range"),
            ("limit = { requests = 20000000, window = \"1s\" }", "clients.limit.requests", "out of range"),
            ("ipv6_prefix = 15", "clients.ipv6_prefix", "write 16 to 64"),
            ("ipv6_prefix = 65", "clients.ipv6_prefix", "write 16 to 64"),
            ("max_tracked = 0", "clients.max_tracked", "out of range"),
            ("max_retry_after = \"2d\"", "clients.max_retry_after", "out of range"),
        ],
    );
    let clients =
        with("clients", "limit = { requests = 5, window = \"1s\" }\nipv6_prefix = 48").config.clients;
    assert_eq!(
        (clients.limit.requests, clients.limit.window, clients.ipv6_prefix),
        (5, Duration::from_secs(1), 48)
    );
}

#[test]
fn the_upstream_is_a_plain_http_url() {
    for (bad, part) in [
        ("", "no URL"),
        ("api.metorial.com", "no URL"),
        ("/v1", "no URL"),
        ("ftp://api.metorial.com", "scheme other than"),
        ("https://user:hunter2@api.metorial.com", "user name or password"),
        ("https://api.metorial.com?x=1", "query or a fragment"),
        ("https://api.metorial.com/#x", "query or a fragment"),
        ("https://api.metorial.com:99999", "no valid host and port"),
        ("https://api.metorial.com:0", "no valid host and port"),
        ("https://api.metorial.com:", "no valid host and port"),
        ("https://api.metorial.com//v1", "no path prefix"),
    ] {
        let fault = errors(&minimal(&format!("[upstream]\nurl = {bad:?}")));
        assert!(fault_at(&fault, "upstream.url").contains(part), "{bad}: {}", show(&fault));
        assert!(!show(&fault).contains("hunter2"), "{}", show(&fault));
    }
    let upstream = with("upstream", "url = \"http://[::1]:4010/v1/\"");
    assert_eq!(show(&upstream.warnings), "");
    let upstream = upstream.config.upstream;
    assert_eq!((upstream.scheme, upstream.authority.as_str()), (Scheme::HTTP, "[::1]:4010"));
    assert_eq!(upstream.base_path, "/v1");
}

#[test]
fn a_secret_that_would_travel_in_clear_is_warned_about() {
    for (url, warned) in [
        ("http://api.example.com", true),
        ("http://10.0.0.1", true),
        ("http://localhost.example", true),
        ("http://LOCALHOST:1", false),
        ("http://api.localhost", false),
        ("http://127.0.0.9:1", false),
        ("http://[::1]", false),
        ("https://api.example.com", false),
    ] {
        let loaded = with("upstream", &format!("url = {url:?}"));
        assert_eq!(loaded.warnings.iter().any(|fault| fault.path == "upstream.url"), warned, "{url}");
    }
}

#[test]
fn headers_that_would_reach_around_the_proxy_are_not_forwarded() {
    for name in [
        "authorization",
        "Cookie",
        "host",
        "connection",
        "keep-alive",
        "proxy-authorization",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "expect",
        "origin",
        "X-Forwarded-For",
        "x-forwarded-anything",
        "forwarded",
        "x-real-ip",
        "cf-connecting-ip",
        "cf-connecting-ipv6",
        "true-client-ip",
        "x-client-ip",
        "fastly-client-ip",
        "x-cluster-client-ip",
        "x-original-forwarded-for",
        "forwarded-for",
        "x-forwarded",
        "x-api-key",
        "cookie2",
        "content-encoding",
        "metorial-connecting-ip",
        "x-host",
        "metorial-instance-id",
        "metorial-organization-id",
        "metorial-consumer-session-client-secret",
        "x-http-method-override",
        "x-method-override",
        "x-original-url",
        "accept-encoding",
        "range",
        "if-none-match",
        "if-range",
    ] {
        refused(
            "upstream",
            &[(
                &format!("forward_headers = [{name:?}]"),
                "upstream.forward_headers[0]",
                "never goes upstream",
            )],
        );
    }
    refused(
        "upstream",
        &[
            ("forward_headers = [\"a b\"]", "upstream.forward_headers[0]", "no header name"),
            ("forward_headers = [\"x-a\", \"X-A\"]", "upstream.forward_headers[1]", "listed twice"),
        ],
    );
    assert_eq!(
        with("upstream", "forward_headers = [\"X-Tenant\"]").config.upstream.forward_headers,
        ["x-tenant"]
    );
}

#[test]
fn attempts_and_waits_have_bounds() {
    refused(
        "upstream",
        &[
            ("connect_timeout = \"0s\"", "upstream.connect_timeout", "out of range"),
            ("attempt_timeout = \"0s\"", "upstream.attempt_timeout", "out of range"),
            ("idle_connections = 200000", "upstream.idle_connections", "out of range"),
            ("idle_timeout = \"0s\"", "upstream.idle_timeout", "out of range"),
            ("http2 = \"alway\"", "upstream.http2", "did you mean \"always\"?"),
            ("ca_certificate = \"/nonexistent\"", "upstream.ca_certificate", "cannot be read"),
            (
                "egress_limit = { requests = 0, window = \"1s\" }",
                "upstream.egress_limit.requests",
                "out of range",
            ),
            ("retry.max_attempts = 0", "upstream.retry.max_attempts", "write 1 to 20"),
            ("retry.initial_backoff = \"0s\"", "upstream.retry.initial_backoff", "out of range"),
            ("retry.initial_backoff = \"11s\"", "upstream.retry.initial_backoff", "longer than max_backoff"),
            ("retry.max_backoff = \"1h\"", "upstream.retry.max_backoff", "out of range"),
            ("retry.max_queue_wait = \"1d\"", "upstream.retry.max_queue_wait", "out of range"),
            ("retry.max_queue = 10000000", "upstream.retry.max_queue", "out of range"),
            ("retry.max_queue_per_client = 10000000", "upstream.retry.max_queue_per_client", "out of range"),
            ("retry.budget = 1.1", "upstream.retry.budget", "1.1 is out of range; write 0 to 1"),
            ("retry.budget = -0.1", "upstream.retry.budget", "out of range"),
            ("retry.budget = nan", "upstream.retry.budget", "out of range"),
        ],
    );
    let upstream =
        with("upstream", "http2 = \"always\"\nretry.budget = 1\nretry.max_queue = 0").config.upstream;
    assert_eq!((upstream.http2, upstream.retry.budget, upstream.retry.max_queue), (Http2::Always, 1.0, 0));
}

#[test]
fn a_page_is_a_small_part_of_the_cache() {
    refused(
        "cache",
        &[
            ("capacity = \"0B\"\nmax_page = \"1B\"", "cache.capacity", "out of range"),
            ("capacity = \"10MiB\"\nmax_page = \"1MiB\"", "cache.max_page", "raise capacity to \"50MiB\""),
            ("max_page = \"6MiB\"", "cache.max_page", "write at most \"5MiB\""),
            ("ttl = \"2d\"", "cache.ttl", "out of range"),
            ("stale_if_error = \"8d\"", "cache.stale_if_error", "out of range"),
        ],
    );
    let cache = with("cache", "capacity = \"50MiB\"\nttl = \"0s\"\nstale_if_error = \"0s\"\nenabled = false")
        .config
        .cache;
    assert_eq!((cache.capacity, cache.max_page), (50 << 20, 1 << 20));
    assert!(cache.ttl.is_zero() && cache.stale_if_error.is_zero() && !cache.enabled);
}

#[test]
fn a_default_gives_way_to_what_is_written_beside_it() {
    let max_page = |keys: &str| with("cache", keys).config.cache.max_page;
    assert_eq!(max_page("capacity = \"10MiB\""), (10 << 20) / 50);
    assert_eq!(max_page("capacity = \"1B\""), 1);
    assert_eq!(max_page("capacity = \"1GiB\""), 1 << 20);
    let drain = |keys: &str| with("server", &format!("drain = {{ {keys} }}")).config.server.drain;
    let seconds = Duration::from_secs;
    assert_eq!(drain("deadline = \"1s\"").settle, seconds(1));
    assert_eq!(drain("deadline = \"1h\"").settle, seconds(5));
    let backoff = |keys: &str| with("upstream", keys).config.upstream.retry.initial_backoff;
    assert_eq!(backoff("retry.max_backoff = \"100ms\""), Duration::from_millis(100));
    assert_eq!(backoff("retry.max_backoff = \"1m\""), Duration::from_millis(250));
}

#[test]
fn the_store_is_this_process_or_a_server() {
    refused(
        "store",
        &[
            ("prefix = \"a b\"", "store.prefix", "no name"),
            ("timeout = \"0s\"", "store.timeout", "out of range"),
            ("min_replicas = 0", "store.min_replicas", "out of range"),
            ("username = \"\"", "store.username", "no user name"),
            ("pages_url = \"redis://pages\"", "store.pages_url", "write url = \"redis://…\" too"),
            ("url = \"gopher://x\"\npages_url = \"redis://pages\"", "store.url", "a scheme other than"),
        ],
    );
    let memory = with("store", "url = \"memory\"\nprefix = \"p\"\ntimeout = \"20ms\"\nmin_replicas = 3");
    assert!(memory.config.store.shared.is_none() && memory.warnings.is_empty());
    let memory = with("store", "url = \"memory\"\npages_url = \"redis://pages\"");
    fault_at(&memory.warnings, "store.pages_url");
    assert!(memory.config.store.shared.is_none());
    let text = "url = \"rediss://cache\"\nusername = \"u\"\nstate_file = \"/s.json\"";
    let loaded = with("store", text);
    assert!(show(&loaded.warnings).contains("store.state_file"));
    let shared = loaded.config.store.shared.expect("a server");
    assert_eq!((shared.url.tls, shared.url.username.as_deref(), shared.min_replicas), (true, Some("u"), 1));
}

#[test]
fn the_log_filter_is_one() {
    refused(
        "telemetry",
        &[
            ("log = \"\"", "telemetry.log", "no log filter"),
            ("log = \"a=b=c\"", "telemetry.log", "no log filter"),
        ],
    );
    let telemetry =
        with("telemetry", "log = \"info,metorial_proxy=debug\"\naccess_log = false").config.telemetry;
    assert_eq!((telemetry.log.as_str(), telemetry.access_log), ("info,metorial_proxy=debug", false));
}

#[test]
fn traces_go_to_the_collectors_address_for_traces() {
    let otlp = |more: &str| ok(&minimal(&format!("[telemetry]\n{more}"))).config.telemetry.otlp;
    assert!(otlp("otlp_sample = 0.5").is_none());
    for (url, endpoint) in [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector.example/otlp/", "https://collector.example/otlp/v1/traces"),
    ] {
        let otlp = otlp(&format!("otlp = {url:?}\notlp_sample = 0.25")).expect("a collector");
        assert_eq!((otlp.endpoint.to_string().as_str(), otlp.sample), (endpoint, 0.25));
    }
    for bad in ["4318", "grpc://127.0.0.1:4317", "http://key@collector", "http://collector/?key=1"] {
        let fault = fault_at(&errors(&minimal(&format!("[telemetry]\notlp = {bad:?}"))), "telemetry.otlp");
        assert!(fault.ends_with("write it like http://127.0.0.1:4318"), "{fault}");
    }
}
