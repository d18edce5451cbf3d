//! Traces: what a collector gets of a request, what upstream hears of it, and that neither can do any harm.

use std::collections::BTreeMap;
use std::time::Duration;

use metorial_proxy::mock::{Fault, Reset};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::client::{bearing, request, try_send};
use crate::collector::{Collector, hex, text};
use crate::harness::{KEY, Mock, Proxy, SECRET, scratch};
use crate::process::Process;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// Stops the proxy, which delivers what is left.
async fn stop(proxy: Proxy) {
    proxy.into_server().drain(Duration::ZERO, Duration::from_secs(60), std::future::pending()).await;
}

fn traced(collector: &Collector, more: &str) -> String {
    format!("telemetry.otlp = '{}'\n{more}", collector.url)
}

fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind == kind as i32).collect()
}

/// Name and attributes, in their order.
fn told(span: &Span) -> BTreeMap<&str, String> {
    let attributes = span.attributes.iter();
    let told =
        attributes.map(|pair| (pair.key.as_str(), text(&span.attributes, &pair.key).unwrap_or_default()));
    told.chain([("name", span.name.clone())]).collect()
}

#[tokio::test]
async fn a_request_is_a_span_and_each_attempt_one_below_it() {
    let (mock, collector) = (Mock::start().await, Collector::start().await);
    let upstream = format!("http://localhost:{}", mock.address.port());
    let proxy = Proxy::start(upstream, &traced(&collector, ""));
    mock.fault(Fault { reset: Some(Reset::Before), ..Fault::default() });
    let key = format!("Bearer {KEY}");
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let fields = [
        ("authorization", key.as_str()),
        ("traceparent", parent.as_str()),
        ("tracestate", "a=b"),
        ("x-request-id", "id-of-the-caller"),
        ("user-agent", "an-agent"),
    ];
    let reply =
        proxy.send(request("GET", "/provider-deployments?limit=2&search=hush-hush", &fields, "")).await;
    assert_eq!(reply.status, 200);
    let (status, record) = (proxy.get("/sessions/ses_123").await.status, mock.last());
    assert_eq!(status, 403);
    let host = proxy.admin.to_string();
    let metrics = try_send(proxy.admin, request("GET", "/metrics", &[("host", &host)], "")).await;
    let metrics = String::from_utf8(metrics.expect("an answer").body.to_vec()).expect("text");
    stop(proxy).await;

    let spans = collector.spans();
    let server = of_kind(&spans, SpanKind::Server);
    let [served, refused] = server[..] else { panic!("{server:#?}") };
    assert_eq!((hex(&served.trace_id), hex(&served.parent_span_id)), (TRACE.into(), CALLER.into()));
    insta::assert_json_snapshot!("request", told(served));
    let mut refused = told(refused);
    let id = refused.insert("metorial_proxy.request_id", "ours".into());
    assert!(id.is_some_and(|id| id.starts_with("req_")));
    insta::assert_json_snapshot!("refused", refused);

    let attempts = of_kind(&spans, SpanKind::Client);
    let [lost, answered] = attempts[..] else { panic!("{attempts:#?}") };
    for attempt in [lost, answered] {
        assert_eq!((&attempt.trace_id, &attempt.parent_span_id), (&served.trace_id, &served.span_id));
    }
    let port = mock.address.port().to_string();
    let told = |span| {
        let mut told = told(span);
        assert_eq!(told.insert("server.port", "port".into()), Some(port.clone()));
        told
    };
    insta::assert_json_snapshot!("attempt_lost", told(lost));
    insta::assert_json_snapshot!("attempt_again", told(answered));

    // Upstream's own spans belong to the attempt that reached it.
    let heard =
        |name: &str| record.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    assert_eq!(heard("traceparent"), Some(format!("00-{TRACE}-{}-01", hex(&answered.span_id))));
    assert_eq!(heard("tracestate").as_deref(), Some("a=b"));
    assert_eq!(collector.resource("service.name").as_deref(), Some("metorial-proxy"));
    for hidden in [SECRET, KEY, "hush-hush", "limit=2", "ses_123", "127.0.0.1", "an-agent"] {
        assert!(!collector.text().contains(hidden), "{hidden}");
    }
    assert!(metrics.contains("\nmetorial_proxy_spans_dropped_total 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_page_from_the_cache_has_no_attempt() {
    let (mock, collector) = (Mock::start().await, Collector::start().await);
    let proxy = Proxy::start(mock.url(), &traced(&collector, ""));
    for _ in 0..2 {
        assert_eq!(proxy.get("/providers").await.status, 200);
    }
    stop(proxy).await;
    let spans = collector.spans();
    let served = of_kind(&spans, SpanKind::Server);
    let cache = |span: &Span| text(&span.attributes, "metorial_proxy.cache_status").unwrap_or_default();
    assert!(cache(served[0]).contains("fwd=uri-miss") && cache(served[1]).contains("; hit"), "{served:#?}");
    let attempts = of_kind(&spans, SpanKind::Client);
    assert_eq!(attempts.len(), 1);
    // The page was fetched by a task of its own, and yet for the first of them.
    assert_eq!(attempts[0].parent_span_id, served[0].span_id);
}

#[tokio::test]
async fn who_is_recorded_is_decided_by_the_caller_or_else_by_a_share() {
    let (mock, collector) = (Mock::start().await, Collector::start().await);
    let proxy = Proxy::start(mock.url(), &traced(&collector, "telemetry.otlp_sample = 0.0"));
    let heard =
        || mock.last().headers.into_iter().find(|(name, _)| name == "traceparent").expect("a context").1;
    let ask = async |flags: &str| {
        let parent = format!("00-{TRACE}-{CALLER}-{flags}");
        proxy.call("GET", "/provider-deployments/dep_1", &[("traceparent", &parent)], "").await;
        heard()
    };
    let [unrecorded, recorded] = [ask("00").await, ask("01").await];
    for (context, flags) in [(&unrecorded, "-00"), (&recorded, "-01")] {
        assert!(context.starts_with(&format!("00-{TRACE}-")) && context.ends_with(flags), "{context}");
        assert!(!context.contains(CALLER), "{context}");
    }
    proxy.get("/provider-deployments/dep_1").await;
    assert!(heard().ends_with("-00") && !heard().contains(TRACE), "{}", heard());
    stop(proxy).await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 2, "{spans:#?}");
    assert!(spans.iter().all(|span| recorded.contains(&hex(&span.trace_id))));
}

#[tokio::test]
async fn a_collector_that_is_down_costs_spans_and_one_line_and_no_request() {
    let mock = Mock::start().await;
    // An address where nobody listens for as long as the test lasts.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    let nobody = taken.local_addr().expect("an address");
    drop(taken);
    let file = scratch(&format!("{}-no-collector.toml", std::process::id()));
    let text = format!(
        "server = {{ listen = ['127.0.0.1:0'], admin = '127.0.0.1:0', drain = {{ settle = '0s' }} }}\n\
         upstream.url = '{}'\n\
         telemetry.otlp = 'http://{nobody}'\n\
         [[environments]]\n\
         name = 'main'\n\
         secret_key = {{ env = 'METORIAL_SECRET_KEY' }}\n\
         publishable_keys = ['{KEY}']\n",
        mock.url()
    );
    std::fs::write(&file, text).expect("written");
    let arguments = ["run", "--config", file.to_str().expect("text")];
    let mut process = Process::start(&arguments, &[("METORIAL_SECRET_KEY", SECRET)]).expect("a process");
    let url = process.url("proxy").expect("a proxy");
    let address = url.trim_start_matches("http://").parse().expect("an address");
    for _ in 0..3 {
        let reply = try_send(address, bearing(KEY, "/providers")).await;
        assert_eq!(reply.expect("an answer").status, 200);
    }
    process.signal("TERM");
    let (code, log) = process.end();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(log.matches("traces cannot be delivered").count(), 1, "{log}");
    let line = log.lines().find(|line| line.contains("\"access\"")).expect("an access log");
    assert!(line.contains("\"trace_id\":\""), "{line}");
    std::fs::remove_file(file).expect("removed");
}
