//! The port as a whole, through real sockets.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::*;
use crate::telemetry::metrics::{Metrics, Scrape};

#[derive(Default)]
struct Stub {
    draining: AtomicBool,
    metrics: Metrics,
    invalidated: Mutex<Vec<(String, String)>>,
}

impl View for Stub {
    fn ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    fn metrics(&self, format: Format) -> String {
        self.metrics.render(format, &Scrape::default())
    }

    fn status(&self) -> Status {
        status::example()
    }

    fn tally(&self) -> Tally {
        self.metrics.tally()
    }

    fn explain(&self, question: Question) -> Explaining<'_> {
        Box::pin(async move { Err(format!("asked about {} by {:?}", question.target, question.caller)) })
    }

    fn invalidate<'a>(&'a self, environment: &'a str, collection: &'a str) -> Invalidating<'a> {
        let outcome = match (environment, collection) {
            ("live", "/providers") => {
                let mut invalidated = self.invalidated.lock().expect("not poisoned");
                invalidated.push((environment.to_owned(), collection.to_owned()));
                Ok(())
            }
            ("live", _) => Err(Unknown::Collection),
            _ => Err(Unknown::Environment),
        };
        Box::pin(std::future::ready(outcome))
    }
}

/// An admin port that ends with the test.
struct Port {
    addr: SocketAddr,
    view: Arc<Stub>,
    stop: CancellationToken,
    served: TaskTracker,
    _guard: DropGuard,
}

impl Port {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let view = Arc::new(Stub::default());
        let stop = CancellationToken::new();
        let served = TaskTracker::new();
        let shown: Arc<dyn View> = Arc::clone(&view) as Arc<dyn View>;
        let dashboard = Dashboard::new(shown.clone(), stop.clone());
        served.spawn(dashboard.clone().run());
        let router = router(shown, dashboard, Arc::default());
        served.spawn(serve(listener, router, stop.clone()));
        served.close();
        Self { addr, view, _guard: stop.clone().drop_guard(), stop, served }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("connects")
    }

    /// Sends `head` and `body` with `Host` and `Connection: close`; the whole answer.
    async fn ask(&self, head: &str, body: &str) -> String {
        let length = body.len();
        let (line, fields) = head.split_once('\n').unwrap_or((head, ""));
        let fields: String = fields.lines().map(|field| format!("{field}\r\n")).collect();
        let request = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n{body}",
            self.addr
        );
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("written");
        read(&mut stream).await
    }

    async fn invalidate(&self, body: &str) -> String {
        self.ask("POST /cache/invalidate\nContent-Type: application/json", body).await
    }
}

async fn read(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is no matter here.
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8(answer).expect("UTF-8")
}

#[track_caller]
fn expect(answer: &str, status: u16, body: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    for field in ["x-content-type-options: nosniff\r\n", "cache-control: no-store\r\n"] {
        assert!(answer.contains(field), "{answer}");
    }
}

#[tokio::test]
async fn probes_tell_life_from_readiness() {
    let port = Port::open().await;
    expect(&port.ask("GET /livez", "").await, 200, "ok\n");
    expect(&port.ask("GET /readyz", "").await, 200, "ready\n");
    assert_eq!(health::check(port.addr).await, Ok(()));

    port.view.draining.store(true, Ordering::Relaxed);
    expect(&port.ask("GET /livez", "").await, 200, "ok\n");
    expect(&port.ask("GET /readyz", "").await, 503, "draining\n");
    let error = health::check(port.addr).await.expect_err("draining");
    assert_eq!(error, format!("{} answered 503: draining", port.addr));
}

#[tokio::test]
async fn metrics_come_in_the_format_asked_for() {
    let port = Port::open().await;
    let plain = port.ask("GET /metrics", "").await;
    assert!(plain.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{plain}");
    assert!(
        plain.contains("# TYPE metorial_proxy_panics_total counter\n") && !plain.contains("# EOF"),
        "{plain}"
    );
    let open = port.ask("GET /metrics\nAccept: application/openmetrics-text; version=1.0.0", "").await;
    let media = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(open.contains(media) && open.ends_with("# EOF\n"), "{open}");
}

#[tokio::test]
async fn the_status_is_guarded_and_the_probes_are_not() {
    let port = Port::open().await;
    let answer = port.ask("GET /status", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("content-type: application/json\r\n"),
        "{answer}"
    );
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["environments"][0]["window_seconds"], 600);

    let cross = "\nSec-Fetch-Site: cross-site";
    let refused = "{\"error\":\"requests by pages of other sites are not answered\"}";
    expect(&port.ask(&format!("GET /status{cross}"), "").await, 403, refused);
    expect(&port.ask(&format!("GET /livez{cross}"), "").await, 200, "ok\n");
    let twice = port.ask("GET /status\nHost: evil.example", "").await;
    assert!(!twice.starts_with("HTTP/1.1 200 "), "{twice}");
}

#[tokio::test]
async fn other_peers_need_the_token() {
    let ask = async |path: &str, token: Option<&str>| {
        let access = Access { token: Some("t0ken".to_owned().into()), hosts: vec!["admin.example".into()] };
        let mut request = Request::get(path).header("host", "admin.example:9090");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut request = request.body(axum::body::Body::empty()).expect("a request");
        request.extensions_mut().insert(guard::Peer("192.0.2.7:1".parse().expect("an address")));
        let view: Arc<dyn View> = Arc::new(Stub::default());
        let dashboard = Dashboard::new(view.clone(), CancellationToken::new());
        router(view, dashboard, Arc::new(ArcSwap::from_pointee(access)))
            .oneshot(request)
            .await
            .expect("infallible")
    };
    let refused = ask("/status", None).await;
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");
    assert_eq!(ask("/status", Some("other")).await.status(), 401);
    assert_eq!(ask("/status", Some("t0ken")).await.status(), 200);
    assert_eq!(ask("/livez", None).await.status(), 200);
}

#[tokio::test]
async fn an_invalidation_names_what_is_there() {
    let port = Port::open().await;
    let answer = port.invalidate(r#"{"environment":"live","collection":"/providers"}"#).await;
    expect(&answer, 204, "");
    assert_eq!(*port.view.invalidated.lock().expect("not poisoned"), [("live".into(), "/providers".into())]);

    let unknown = port.invalidate(r#"{"environment":"old","collection":"/providers"}"#).await;
    expect(&unknown, 404, r#"{"error":"there is no environment of this name"}"#);
    let unknown = port.invalidate(r#"{"environment":"live","collection":"/x"}"#).await;
    expect(&unknown, 404, r#"{"error":"this is no path of a collection, such as /providers"}"#);
}

#[tokio::test]
async fn a_write_is_exactly_what_is_expected() {
    let port = Port::open().await;
    let good = r#"{"environment":"live","collection":"/providers"}"#;
    for bad in [
        "",
        "[]",
        r#"{"environment":"live"}"#,
        r#"{"environment":"live","collection":"/providers","all":true}"#,
        r#"{"environment":"live","environment":"live","collection":"/providers"}"#,
        &format!("{good}x"),
    ] {
        let answer = port.invalidate(bad).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("{\"error\":\""), "{bad}: {answer}");
    }
    let form = port.ask("POST /cache/invalidate\nContent-Type: text/plain", good).await;
    expect(&form, 415, r#"{"error":"send Content-Type: application/json"}"#);
    let large = port.invalidate(&" ".repeat(MAX_BODY + 1)).await;
    expect(&large, 413, r#"{"error":"the body could not be read, or is too large"}"#);
    assert!(port.view.invalidated.lock().expect("not poisoned").is_empty());
}

#[tokio::test]
async fn what_is_not_there_is_told_in_json() {
    let port = Port::open().await;
    let nothing = r#"{"error":"there is nothing at this path"}"#;
    expect(&port.ask("GET /nothing", "").await, 404, nothing);
    expect(&port.ask("GET /status/", "").await, 404, nothing);
    for (method, path, allowed) in [
        ("POST", "/metrics", "GET,HEAD"),
        ("DELETE", "/livez", "GET,HEAD"),
        ("GET", "/cache/invalidate", "POST"),
    ] {
        let answer = port.ask(&format!("{method} {path}"), "").await;
        expect(&answer, 405, r#"{"error":"this path does not take this method"}"#);
        assert!(answer.contains(&format!("allow: {allowed}\r\n")), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_cut() {
    let port = Port::open().await;
    let mut stream = port.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: loc").await.expect("written");
    let answer =
        crate::time::timeout(Duration::from_secs(15), read(&mut stream)).await.expect("closed in time");
    assert!(!answer.contains("200"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn more_connections_than_places_wait_for_one() {
    let port = Port::open().await;
    let mut idle = Vec::new();
    for _ in 0..serve::MAX_CONNECTIONS {
        idle.push(port.connect().await);
    }
    let mut next = port.connect().await;
    next.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .expect("written");
    let mut byte = [0];
    let waited = crate::time::timeout(Duration::from_secs(2), next.read(&mut byte)).await;
    assert!(waited.is_err(), "served beyond the cap");
    // The idle ones are closed after their three seconds.
    assert!(read(&mut next).await.ends_with("ok\n"));
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_the_listener() {
    let port = Port::open().await;
    let mut idle = port.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.expect("answered");
    port.stop.cancel();
    port.served.wait().await;
    assert!(read(&mut idle).await.ends_with("ok\n"), "the connection is closed after its answer");
    assert!(TcpStream::connect(port.addr).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_are_there_when_somebody_comes() {
    let port = Port::open().await;
    crate::time::sleep(Duration::from_secs(60)).await;
    let answer = port.ask("GET /live.json", "").await;
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let history = body["environments"][0]["history"].as_array().expect("a history");
    let known = history.iter().rev().take_while(|left| **left == 4211).count();
    assert!(history.len() == 120 && (12..=13).contains(&known), "{known}: {history:?}");
}

#[tokio::test]
async fn the_form_asks_what_was_filled_in() {
    let port = Port::open().await;
    let answer = port.ask("GET /?target=%20/a%20&caller=environment:live", "").await;
    let told = "data-value=\"asked about /a by Environment(&quot;live&quot;)\"";
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(told), "{answer}");
    assert!(!port.ask("GET /?target=%20", "").await.contains("asked about"));
}
