use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::*;
use crate::telemetry::labels::UpstreamFailure;

/// Metrics in which every family has a series.
fn complete() -> (Metrics, Scrape) {
    let metrics = Metrics::new();
    metrics.server.record(&Method::GET, 200, "/providers", Duration::from_millis(1));
    metrics.client.record(&Method::GET, Ok(200), "live", Duration::from_millis(1));
    drop(metrics.connections("http").hold());
    metrics.shadow_rule("live", "rules[0]");
    let scrape = Scrape {
        cache: super::CacheView { entries: 2, bytes: 3000, capacity: 4000 },
        budgets: vec![BudgetView { name: "live".into(), limit: 5000, remaining: 4999 }],
        secrets: vec![SecretView {
            environment: "live".into(),
            key: "current",
            fingerprint: "0f1e2d3c".into(),
            age: Duration::from_secs(90),
            in_use: true,
        }],
        tracked_clients: 3,
        log_lines_dropped: 0,
        spans_dropped: 0,
    };
    (metrics, scrape)
}

fn comments(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("# ")).collect()
}

#[test]
fn names_types_and_help_are_a_contract() {
    let (metrics, scrape) = complete();
    let text = metrics.render(Format::Prometheus, &scrape);
    insta::assert_snapshot!(comments(&text).join("\n"));
}

#[test]
fn series_of_known_labels_are_there_from_the_start() {
    let text = Metrics::new().render(Format::Prometheus, &Scrape::default());
    let mut series: Vec<_> = text.lines().filter(|line| line.contains('{')).collect();
    series.retain(|line| !line.starts_with('#') && !line.contains("build_info"));
    series.sort_unstable();
    insta::assert_snapshot!(series.join("\n"));
}

#[test]
fn names_and_help_follow_the_conventions() {
    let (metrics, scrape) = complete();
    let text = metrics.render(Format::Prometheus, &scrape);
    let lines = comments(&text);
    for pair in lines.chunks(2) {
        let (name, help) =
            pair[0].strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect("help");
        let (same, kind) =
            pair[1].strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')).expect("a type");
        assert_eq!(name, same);
        assert!(name.starts_with("metorial_proxy_") || name.starts_with("http_"), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        for wrong in ["_ms", "_millis", "_minutes", "_kb", "_percent", "_count", "_sum", "_bucket"] {
            assert!(!name.ends_with(wrong), "{name}: base units, no reserved suffix");
        }
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        assert!(help.len() > 10 && help.ends_with('.') && !help.ends_with(".."), "{name}: {help}");
        assert!(!help.contains(['\\', '\n']), "{name}: {help}");
    }
}

#[test]
fn openmetrics_has_units_and_an_end() {
    let (metrics, scrape) = complete();
    let text = metrics.render(Format::OpenMetrics, &scrape);
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("# UNIT http_server_request_duration_seconds seconds\n"));
    assert!(text.contains("# TYPE metorial_proxy_decisions counter\n"));
    assert!(text.contains("metorial_proxy_secret_age_seconds{environment=\"live\",key=\"current\",fingerprint=\"0f1e2d3c\",in_use=\"true\"} 90\n"));
    assert!(text.contains("metorial_proxy_upstream_rate_limited_total{budget=\"live\"} 0\n"));
    assert!(text.contains("metorial_proxy_upstream_credentials_refused_total{environment=\"live\"} 0\n"));
}

#[test]
fn each_method_counts_where_it_says() {
    let metrics = Arc::new(Metrics::new());
    let decisions = [
        (Policy::Client, Outcome::Allowed),
        (Policy::Client, Outcome::Refused),
        (Policy::Client, Outcome::Refused),
        (Policy::Admit, Outcome::Refused),
    ];
    for (policy, outcome) in decisions {
        metrics.decision(policy, outcome);
    }
    metrics.cache(CacheResult::Hit);
    metrics.retry(RetryReason::RateLimited);
    metrics.connection_refused(RefusedConnection::TooManyFromIp);
    metrics.reload(Reload::Failed);
    metrics.secret_guard();
    metrics.panic();
    metrics.store_partitioned(true);
    metrics.upstream_rate_limited("acme \"eu\"");
    let _open = metrics.connections("http").hold();
    let _request = metrics.in_flight.hold();

    let text = metrics.render(Format::Prometheus, &Scrape::default());
    for line in [
        r#"metorial_proxy_decisions_total{outcome="allowed",policy="client"} 1"#,
        r#"metorial_proxy_decisions_total{outcome="refused",policy="client"} 2"#,
        r#"metorial_proxy_decisions_total{outcome="refused",policy="admit"} 1"#,
        r#"metorial_proxy_decisions_total{outcome="refused",policy="egress"} 0"#,
        r#"metorial_proxy_cache_requests_total{result="hit"} 1"#,
        r#"metorial_proxy_retries_total{reason="rate_limited"} 1"#,
        r#"metorial_proxy_connections_refused_total{reason="max_connections_per_ip"} 1"#,
        r#"metorial_proxy_config_reloads_total{result="failed"} 1"#,
        "metorial_proxy_secret_guard_total 1",
        "metorial_proxy_panics_total 1",
        "metorial_proxy_store_partitioned 1",
        r#"metorial_proxy_upstream_rate_limited_total{budget="acme \"eu\""} 1"#,
        r#"metorial_proxy_connections{listener="http"} 1"#,
        "metorial_proxy_requests_in_flight 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn what_the_documentation_promises_is_there_under_its_labels() {
    let (metrics, scrape) = complete();
    metrics.client.record(&Method::GET, Err(UpstreamFailure::Timeout), "live", Duration::from_millis(1));
    let text = metrics.render(Format::Prometheus, &scrape);
    for (sample, labels) in [
        (
            "http_server_request_duration_seconds_bucket",
            "http_request_method http_response_status_code http_route le",
        ),
        (
            "http_client_request_duration_seconds_bucket",
            "environment error_type http_request_method http_response_status_code le",
        ),
        ("metorial_proxy_decisions_total", "outcome policy"),
        ("metorial_proxy_budget_limit", "budget"),
        ("metorial_proxy_budget_remaining", "budget"),
        ("metorial_proxy_cache_requests_total", "result"),
        ("metorial_proxy_upstream_rate_limited_total", "budget"),
        ("metorial_proxy_retries_total", "reason"),
        ("metorial_proxy_secret_guard_total", ""),
        ("metorial_proxy_upstream_credentials_refused_total", "environment"),
        ("metorial_proxy_store_partitioned", ""),
        ("metorial_proxy_config_reloads_total", "result"),
        ("metorial_proxy_secret_age_seconds", "environment fingerprint in_use key"),
        ("metorial_proxy_build_info", "version"),
    ] {
        assert_eq!(labels_of(&text, sample).as_deref(), Some(labels), "{sample}");
    }
}

#[test]
fn labels_are_of_a_list_that_has_no_place_for_a_caller() {
    // Names of the operator's own, route templates, and words written down in `labels`; `key` says current or next.
    const KNOWN: [&str; 17] = [
        "budget",
        "environment",
        "error_type",
        "fingerprint",
        "http_request_method",
        "http_response_status_code",
        "http_route",
        "in_use",
        "key",
        "le",
        "listener",
        "outcome",
        "policy",
        "reason",
        "result",
        "rule",
        "version",
    ];
    let (metrics, scrape) = complete();
    let text = metrics.render(Format::Prometheus, &scrape);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let sample = line.split(['{', ' ']).next().unwrap_or_default();
        let labels = labels_of(&text, sample).expect("a sample");
        let unknown: Vec<&str> = labels.split_whitespace().filter(|label| !KNOWN.contains(label)).collect();
        assert!(unknown.is_empty(), "{sample}: {unknown:?}");
    }
}

/// The names of all labels that samples of this name have, in order; `None`: there is no such sample.
fn labels_of(text: &str, sample: &str) -> Option<String> {
    let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(sample));
    let mut labels = std::collections::BTreeSet::new();
    let mut any = false;
    for line in samples {
        any = true;
        let inside =
            line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
        labels.extend(inside.split(',').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name));
    }
    any.then(|| labels.into_iter().collect::<Vec<_>>().join(" "))
}
