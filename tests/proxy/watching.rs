//! What watches the proxy: dashboard and alerts ask for figures that it really exposes, and no figure tells of a caller.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use metorial_proxy::mock::{Fault, Reset};
use serde_json::Value;

use crate::client::{request, try_send};
use crate::harness::{KEY, Mock, Proxy, SECRET, pair, scratch};

/// Added by Prometheus itself.
const TARGET: [&str; 2] = ["instance", "job"];
const WORDS: [&str; 12] = [
    "and",
    "or",
    "unless",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "offset",
    "bool",
    "inf",
];

async fn scrape(proxy: &Proxy) -> String {
    let host = proxy.admin.to_string();
    let reply = try_send(proxy.admin, request("GET", "/metrics", &[("host", &host)], "")).await;
    String::from_utf8(reply.expect("an answer").body.to_vec()).expect("text")
}

/// A proxy that has a series of every family.
async fn lived() -> (Mock, Proxy) {
    let rules = "[[environments]]\n[[environments.rules]]\npath = '/providers'\nquery = { limit = '<=1' }\nshadow = true";
    let (mock, proxy) = pair(rules).await;
    mock.fault(Fault { reset: Some(Reset::Before), ..Fault::default() });
    assert_eq!(proxy.get("/providers?limit=2").await.status, 200);
    (mock, proxy)
}

/// Every sample's name, with the names of its labels.
fn exposed(metrics: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut exposed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once(['{', ' ']).expect("a sample");
        let labels =
            line.contains('{').then(|| labels.split("=\"").map(|part| part.rsplit([',', '"']).next()));
        let mut labels: Vec<&str> = labels.into_iter().flatten().flatten().collect();
        // Behind the last `="` stands a value.
        labels.pop();
        exposed.entry(name).or_default().extend(labels);
    }
    exposed
}

/// A name in a query, and what it stands for there.
#[derive(Debug, PartialEq)]
enum Name<'q> {
    Metric(&'q str),
    /// Of a metric: `{label="…"}`.
    Matcher(&'q str),
    /// Of what comes out: `by (label)`.
    Group(&'q str),
}

fn names(query: &str) -> Vec<Name<'_>> {
    let mut names = Vec::new();
    let (mut at, mut braces, mut group) = (0, false, false);
    let mut last = "";
    while let Some(next) = query[at..].chars().next() {
        let rest = &query[at..];
        let word = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        at += match next {
            '"' => 2 + rest[1..].find('"').expect("a string ends"),
            '[' => rest.find(']').expect("a range ends"),
            _ if word == 0 || next.is_ascii_digit() => {
                braces = braces && next != '}' || next == '{';
                group = group && next != ')'
                    || next == '(' && ["by", "without", "on", "ignoring"].contains(&last);
                word.max(1)
            }
            _ => {
                last = &rest[..word];
                let after = rest[word..].trim_start();
                if braces {
                    names.push(Name::Matcher(last));
                } else if group {
                    names.push(Name::Group(last));
                } else if !WORDS.contains(&last)
                    && !["(", "by ", "without "].iter().any(|next| after.starts_with(next))
                {
                    names.push(Name::Metric(last));
                }
                word
            }
        };
    }
    names
}

/// What `query` asks for that is not exposed.
fn unknown<'q>(query: &'q str, exposed: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<Name<'q>> {
    let mut known: BTreeSet<&str> = TARGET.into();
    let mut of_metric: BTreeSet<&str> = BTreeSet::new();
    let mut unknown = Vec::new();
    let (groups, others): (Vec<_>, Vec<_>) =
        names(query).into_iter().partition(|name| matches!(name, Name::Group(_)));
    for name in others {
        match &name {
            Name::Metric(metric) => match exposed.get(metric) {
                Some(labels) => {
                    of_metric = labels | &TARGET.into();
                    known.extend(labels);
                }
                None => unknown.push(name),
            },
            Name::Matcher(label) if !of_metric.contains(label) => unknown.push(name),
            Name::Matcher(_) | Name::Group(_) => {}
        }
    }
    unknown.extend(
        groups.into_iter().filter(|name| !matches!(name, Name::Group(label) if known.contains(label))),
    );
    unknown
}

#[test]
fn a_query_is_read_as_prometheus_reads_it() {
    use Name::{Group, Matcher, Metric};
    let query =
        r#"topk(3, sum by (le, x) (rate(a_total{b="c{d}", e=~"f"}[5m])) / on (g) h) < 0.5 * i and j == 1e3"#;
    let expected = [
        Group("le"),
        Group("x"),
        Metric("a_total"),
        Matcher("b"),
        Matcher("e"),
        Group("g"),
        Metric("h"),
        Metric("i"),
        Metric("j"),
    ];
    assert_eq!(names(query), expected);
    let metrics = "# HELP a b\na_total{b=\"1,x\",e=\"2\"} 1\nh 1\n";
    assert_eq!(exposed(metrics), [("a_total", ["b", "e"].into()), ("h", BTreeSet::new())].into());
    let exposed = exposed(metrics);
    assert_eq!(unknown("sum by (e) (a_total{b=\"1\"})", &exposed), []);
    assert_eq!(unknown("a + h{b=\"1\"} + sum by (c) (h)", &exposed), [Metric("a"), Matcher("b"), Group("c")]);
}

#[tokio::test]
async fn the_dashboard_asks_for_figures_that_there_are() {
    let (_mock, proxy) = lived().await;
    let metrics = scrape(&proxy).await;
    let exposed = exposed(&metrics);
    let text = fs::read_to_string("deploy/grafana/metorial-proxy.json").expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    let mut queries = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().expect("a title");
        assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
        for target in panel["targets"].as_array().expect("targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let query = target["expr"].as_str().expect("a query").replace("$__rate_interval", "5m");
            assert_eq!(unknown(&query, &exposed), [], "{title}: {query}");
            // A legend shows labels that come out.
            for label in target["legendFormat"].as_str().expect("a legend").split("{{").skip(1) {
                let label = label.split("}}").next().unwrap_or_default();
                assert!(names(&query).contains(&Name::Group(label)), "{title}: {label}");
            }
            queries.push(query);
        }
    }
    assert!(queries.len() > 20, "{queries:?}");
    let rules = queries
        .iter()
        .map(|query| serde_json::json!({"record": "r", "expr": query, "labels": {"of": query}}));
    let rules = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    // What is JSON is YAML.
    let file = scratch(&format!("{}-dashboard.yaml", std::process::id()));
    fs::write(&file, rules.to_string()).expect("written");
    promtool(&["check", "rules", file.to_str().expect("text")]);
    fs::remove_file(file).expect("removed");
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if let Some(query) = variable["query"]["query"].as_str() {
            let metric = query.trim_start_matches("label_values(").split(',').next().unwrap_or_default();
            assert!(exposed.contains_key(metric), "{query}");
        }
    }
}

#[tokio::test]
async fn the_alerts_ask_for_figures_that_there_are() {
    let (_mock, proxy) = lived().await;
    let metrics = scrape(&proxy).await;
    let exposed = exposed(&metrics);
    let text = fs::read_to_string("deploy/prometheus/alerts.yaml").expect("the alerts");
    let mut seen = 0;
    for alert in text.split("- alert: ").skip(1) {
        let (name, rest) = alert.split_once('\n').expect("a rule");
        let (_, query) = rest.split_once("expr:").expect("a query");
        let end =
            ["\n        for:", "\n        labels:"].into_iter().filter_map(|next| query.find(next)).min();
        let query = query[..end.expect("labels")].trim().trim_start_matches('|');
        assert_eq!(unknown(query, &exposed), [], "{name}: {query}");
        for label in alert.split("$labels.").skip(1) {
            let label = label.split(' ').next().unwrap_or_default();
            let given = names(query).iter().any(|name| match name {
                Name::Metric(metric) => exposed[metric].contains(label),
                _ => false,
            });
            assert!(given || TARGET.contains(&label), "{name}: {label}");
        }
        seen += 1;
    }
    assert!(seen >= 6, "{seen} alerts");
}

#[test]
fn the_alerts_fire_when_they_should_and_only_then() {
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["test", "rules", "alerts_test.yaml"]);
}

/// Runs Prometheus' own tool beside the alerts.
#[track_caller]
fn promtool(arguments: &[&str]) {
    let promtool = std::env::var_os("METORIAL_TEST_PROMTOOL")
        .expect("METORIAL_TEST_PROMTOOL is unset: use tests/run, which gets promtool and names it");
    let output = Command::new(&promtool).args(arguments).current_dir("deploy/prometheus").output();
    let output = output.expect("promtool");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}", said.concat());
}

#[tokio::test]
async fn no_figure_holds_what_a_caller_sent() {
    let (mock, proxy) = pair("server.trusted_proxies = ['127.0.0.0/8']").await;
    let key = format!("Bearer {KEY}");
    let fields =
        [("authorization", key.as_str()), ("x-forwarded-for", "198.51.100.77"), ("x-request-id", "zonk-id")];
    for (method, target) in [
        ("GET", "/providers?search=zonk-value"),
        ("GET", "/provider-deployments/zonk-segment"),
        ("GET", "/zonk-path"),
        ("ZONK", "/providers"),
        ("GET", "//zonk/../odd%2fpath"),
    ] {
        proxy.send(request(method, target, &fields, "")).await;
    }
    proxy.send(request("GET", "/providers", &[("authorization", "Bearer metorial_pk_zonk")], "")).await;
    assert!(mock.received() > 0);
    let metrics = scrape(&proxy).await.to_lowercase();
    for hidden in
        ["zonk", "198.51.100", "127.0.0.1", "metorial_pk_", "metorial_sk_", &SECRET[12..24].to_lowercase()]
    {
        assert!(!metrics.contains(hidden), "{hidden}: {metrics}");
    }
}
