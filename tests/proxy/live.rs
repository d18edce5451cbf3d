//! The dashboard: what it shows, to whom, for how long, and what it never shows.

use std::time::Duration;

use metorial_proxy::edge::admin::dashboard::MAX_STREAMS;
use metorial_proxy::edge::admin::dashboard::figures::Figures;
use metorial_proxy::server::explain::{Caller, Question, explain};
use metorial_proxy::time::{Instant, timeout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Reply, connect, request, try_send};
use crate::harness::{KEY, OTHER, OTHER_SECRET, Proxy, SECRET, load, pair};

async fn ask(proxy: &Proxy, target: &str, fields: &[(&str, &str)]) -> Reply {
    let host = proxy.admin.to_string();
    let fields = [&[("host", host.as_str())], fields].concat();
    try_send(proxy.admin, request("GET", target, &fields, "")).await.expect("an answer")
}

async fn text(proxy: &Proxy, target: &str) -> String {
    let reply = ask(proxy, target, &[]).await;
    assert_eq!(reply.status, 200, "{target}");
    String::from_utf8(reply.body.to_vec()).expect("text")
}

async fn figures(proxy: &Proxy) -> Figures {
    serde_json::from_str(&text(proxy, "/live.json").await).expect("figures")
}

/// The value of a figure in a page.
fn value<'a>(page: &'a str, figure: &str) -> &'a str {
    let (_, after) =
        page.split_once(&format!("data-figure=\"{figure}\"")).unwrap_or_else(|| panic!("{figure}\n{page}"));
    let (_, after) = after.split_once("data-value=\"").expect("a value");
    after.split('"').next().expect("its end")
}

/// A stream, and what came of it so far.
struct Stream {
    tcp: TcpStream,
    text: String,
}

impl Stream {
    async fn open(proxy: &Proxy) -> Self {
        let mut tcp = connect(proxy.admin).await;
        let ask = format!("GET /live HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.admin);
        tcp.write_all(ask.as_bytes()).await.expect("sent");
        let mut stream = Self { tcp, text: String::new() };
        assert!(stream.read().await, "a head");
        stream
    }

    /// Whether there was more.
    async fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = self.tcp.read(&mut buffer).await.unwrap_or(0);
        self.text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        read > 0
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&str) -> bool) {
        let waited = timeout(Duration::from_secs(20), async {
            while !condition(&self.text) {
                assert!(self.read().await, "it ended before: {what}");
            }
        });
        waited.await.unwrap_or_else(|_| panic!("still not: {what}\n{}", self.text));
    }
}

#[tokio::test]
async fn the_page_is_confined_to_what_is_its_own() {
    let (_mock, proxy) = pair("").await;
    let page = ask(&proxy, "/", &[]).await;
    assert_eq!((page.status, page.field("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.field("content-security-policy");
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.split("; ").any(|directive| directive == part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(page.field(name), value);
    }
    let text = String::from_utf8(page.body.to_vec()).expect("text");
    // What the policy would stop must not be there in the first place.
    for stopped in [" style=", "<style", " onclick=", " onload=", "javascript:", "http://127", "//cdn"] {
        assert!(!text.contains(stopped), "{stopped}\n{text}");
    }
    for (file, kind) in
        [("/dashboard.css", "text/css; charset=utf-8"), ("/dashboard.js", "text/javascript; charset=utf-8")]
    {
        assert!(text.contains(&format!("\"{file}\"")));
        let first = ask(&proxy, file, &[]).await;
        assert_eq!(
            (first.status, first.field("content-type"), first.field("cache-control")),
            (200, kind, "no-cache")
        );
        let again = ask(&proxy, file, &[("if-none-match", first.field("etag"))]).await;
        assert_eq!((again.status, again.body.len()), (304, 0));
    }
    let script = self::text(&proxy, "/dashboard.js").await;
    assert!(!script.contains("innerHTML") && !script.contains("eval("), "{script}");
}

#[tokio::test]
async fn it_is_guarded_as_the_state_is() {
    let (_mock, proxy) = pair("").await;
    for target in ["/", "/live", "/live.json", "/dashboard.js", "/dashboard.css"] {
        assert_eq!(ask(&proxy, target, &[("sec-fetch-site", "cross-site")]).await.status, 403, "{target}");
        assert_eq!(ask(&proxy, target, &[("origin", "https://evil.example")]).await.status, 403, "{target}");
        assert_eq!(ask(&proxy, target, &[("x-forwarded-for", "192.0.2.7")]).await.status, 403, "{target}");
        let host = [("host", "evil.example")];
        let evil = try_send(proxy.admin, request("GET", target, &host, "")).await.expect("an answer");
        assert_eq!(evil.status, 403, "{target}");
        let local = proxy.admin.to_string();
        let post = request("POST", target, &[("host", &local), ("content-type", "application/json")], "{}");
        assert_eq!(try_send(proxy.admin, post).await.expect("an answer").status, 405, "{target}");
    }
}

#[tokio::test]
async fn a_browser_elsewhere_gives_the_token_as_a_password_to_read_and_not_to_write() {
    let token = crate::harness::scratch(&format!("{}-live-token", std::process::id()));
    std::fs::write(&token, "t0ken").expect("written");
    let (_mock, proxy) = pair(&format!("server.admin_token = {{ file = '{}' }}", token.display())).await;
    std::fs::remove_file(token).expect("removed");
    // Behind a proxy nobody is local.
    let via = ("via", "1.1 elsewhere");
    let refused = ask(&proxy, "/", &[via, ("accept", "text/html,*/*")]).await;
    let asks: Vec<_> = refused.headers.get_all("www-authenticate").iter().collect();
    assert_eq!(refused.status, 401);
    assert_eq!(asks, ["Bearer", "Basic realm=\"metorial-proxy admin\", charset=\"UTF-8\""]);
    assert_eq!(ask(&proxy, "/live.json", &[via]).await.headers.get_all("www-authenticate").iter().count(), 1);
    // anybody:t0ken, :t0ken, anybody:t0kem, t0ken, no base64
    for (password, status) in [
        ("Basic YW55Ym9keTp0MGtlbg==", 200),
        ("basic OnQwa2Vu", 200),
        ("Basic YW55Ym9keTp0MGtlbQ==", 401),
        ("Basic dDBrZW4=", 401),
        ("Basic t0ken!", 401),
        ("Bearer t0ken", 200),
    ] {
        assert_eq!(ask(&proxy, "/", &[via, ("authorization", password)]).await.status, status, "{password}");
    }
    let host = proxy.admin.to_string();
    let write = async |authorization: &str| {
        let fields = [
            ("host", host.as_str()),
            via,
            ("authorization", authorization),
            ("content-type", "application/json"),
        ];
        let body = "{\"environment\":\"main\",\"collection\":\"/providers\"}";
        try_send(proxy.admin, request("POST", "/cache/invalidate", &fields, body))
            .await
            .expect("an answer")
            .status
    };
    assert_eq!((write("Basic OnQwa2Vu").await, write("Bearer t0ken").await), (401, 204));
}

#[tokio::test]
async fn no_key_and_no_caller_is_in_it_while_they_are_served() {
    let toml = format!(
        "server.trusted_proxies = ['127.0.0.0/8']\n{OTHER}secret_key = {{ env = 'OTHER_SECRET_KEY' }}"
    );
    let (mock, proxy) = pair(&toml).await;
    let mut stream = Stream::open(&proxy).await;
    let client = "203.0.113.77";
    for target in ["/providers", "/providers", "/providers?limit=7", "/sessions", "/providers/private-id"] {
        proxy.call("GET", target, &[("x-forwarded-for", client)], "").await;
    }
    proxy.get_as(SECRET, "/providers").await;
    assert!(mock.last().headers.iter().any(|(name, _)| name == "authorization"), "a key went upstream");
    stream.until("two events", |text| text.matches("event: figures").count() >= 3).await;
    let shown = [
        text(&proxy, "/").await,
        text(&proxy, "/live.json").await,
        text(&proxy, "/?target=/providers&caller=environment:main").await,
        std::mem::take(&mut stream.text),
    ];
    for shown in shown {
        assert!(shown.contains("main") && shown.contains("other"), "{shown}");
        let upstream = mock.address.to_string();
        for hidden in
            [&SECRET[12..], &OTHER_SECRET[12..], &KEY[12..], client, "private-id", "limit=7", &upstream]
        {
            assert!(!shown.contains(hidden), "{hidden}\n{shown}");
        }
    }
}

#[tokio::test]
async fn figures_follow_traffic() {
    let toml = "environments = [{ limit = { requests = 4, window = '60s' } }]\nupstream.retry.max_queue_wait = '90s'\nserver.request_timeout = '90s'";
    let (_mock, proxy) = pair(toml).await;
    let before = figures(&proxy).await;
    assert_eq!((before.environments[0].remaining, before.cache.hit_ratio), (4, None));
    assert_eq!(before.traffic.latency.p50_seconds, None);
    assert_eq!(value(&text(&proxy, "/").await, "budget-left"), "4");
    for _ in 0..2 {
        assert_eq!(proxy.get("/providers").await.status, 200);
    }
    assert_eq!(proxy.get("/sessions").await.status, 403);
    for item in 0..3 {
        assert_eq!(proxy.get(&format!("/providers/{item}")).await.status, 404);
    }
    let mut stream = Stream::open(&proxy).await;
    stream.until("the last answer", |text| text.contains("data-end=\"404\" data-value=\"3\"")).await;
    let waiting = proxy.get("/providers/more");
    let seen = async {
        stream.until("who waits", |text| text.contains("1 wait, the first for")).await;
        figures(&proxy).await
    };
    let now = tokio::select! {
        reply = waiting => panic!("{reply:?}"),
        now = seen => now,
    };
    let main = &now.environments[0];
    assert_eq!((main.remaining, main.waiting, main.history.last()), (0, 1, Some(&Some(0))));
    assert!(main.oldest_wait_seconds.is_some_and(|wait| wait > 0.0 && wait < 60.0), "{main:?}");
    assert!(main.next_slot_seconds > 30.0, "{main:?}");
    assert_eq!(now.cache.hit_ratio, Some(0.5));
    assert!(now.traffic.latency.p50_seconds.is_some() && now.upstream.latency.p99_seconds.is_some());
    let refused = now.traffic.refusals.iter().find(|told| told.policy == "authorize").expect("listed");
    assert_eq!((refused.code.as_str(), refused.last_minute), ("forbidden", 1));
    let page = text(&proxy, "/").await;
    assert_eq!((value(&page, "budget-left"), value(&page, "budget-state")), ("0", "spent"));
    assert_eq!(value(&page, "hit-ratio"), "0.5");
    assert!(page.contains("</span>main: budget spent, next slot in "), "{page}");
}

#[tokio::test]
async fn so_many_watch_and_no_more_and_whoever_leaves_makes_room() {
    let (_mock, proxy) = pair("").await;
    let mut streams = Vec::new();
    for _ in 0..MAX_STREAMS {
        streams.push(Stream::open(&proxy).await);
    }
    let refused = ask(&proxy, "/live", &[]).await;
    assert_eq!(refused.status, 503);
    assert!(refused.json()["error"].as_str().is_some_and(|error| error.contains("/live.json")));
    assert_eq!(ask(&proxy, "/live.json", &[]).await.status, 200);
    for stream in &mut streams {
        assert!(stream.text.contains("content-type: text/event-stream"), "{}", stream.text);
        stream.until("the first figures", |text| text.contains("event: figures")).await;
    }
    drop(streams.pop());
    let mut next = None;
    for _ in 0..200 {
        let stream = Stream::open(&proxy).await;
        if stream.text.starts_with("HTTP/1.1 200 ") {
            next = Some(stream);
            break;
        }
        metorial_proxy::time::sleep(Duration::from_millis(50)).await;
    }
    next.expect("a place").until("figures", |text| text.contains("event: figures")).await;
}

#[tokio::test]
async fn a_stream_ends_when_the_proxy_does() {
    let (_mock, proxy) = pair("").await;
    let mut stream = Stream::open(&proxy).await;
    stream.until("figures", |text| text.contains("event: figures")).await;
    let server = proxy.into_server();
    let started = Instant::now();
    server.drain(Duration::ZERO, Duration::from_secs(30), std::future::pending()).await;
    let ended = timeout(Duration::from_secs(1), async { while stream.read().await {} });
    ended.await.expect("it ends with the proxy");
    assert!(
        stream.text.ends_with("0\r\n\r\n"),
        "and not in the middle: {:?}",
        stream.text.get(stream.text.len().saturating_sub(40)..)
    );
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "nobody waits for it: {took:?}");
}

#[tokio::test]
async fn the_form_tells_what_the_command_tells() {
    let rules = "environments = [{ allow = ['catalog'], rules = [{ path = '/provider-deployments', query = { limit = '<=50' } }] }]";
    let (_mock, proxy) = pair(rules).await;
    let config = load("http://127.0.0.1:1", rules).expect("a configuration");
    for (query, method, target, caller) in [
        ("target=/providers&caller=environment:main", "GET", "/providers", Caller::Key(KEY.into())),
        (
            "method=GET&target=/provider-deployments%3Flimit=80&caller=environment:main",
            "GET",
            "/provider-deployments?limit=80",
            Caller::Key(KEY.into()),
        ),
        (
            "method=POST&target=/sessions&caller=environment:main",
            "POST",
            "/sessions",
            Caller::Key(KEY.into()),
        ),
        ("target=/providers&caller=none", "GET", "/providers", Caller::Keyless),
        ("target=/providers&caller=unknown", "GET", "/providers", Caller::Key("metorial_pk_x".into())),
        ("target=/providers&caller=secret", "GET", "/providers", Caller::Key(SECRET.into())),
        ("target=/a%2F%2Fb&caller=none&client=192.0.2.7", "GET", "/a//b", Caller::Keyless),
    ] {
        let question =
            Question { method: method.into(), target: target.into(), caller, ..Question::default() };
        let told = explain(&config, &question).expect("an explanation");
        let page = text(&proxy, &format!("/?{query}")).await;
        assert_eq!(value(&page, "explain-decision"), told.decision, "{query}");
        assert_eq!(value(&page, "explain-status"), told.status.to_string(), "{query}");
        let reason = told.reason.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        assert_eq!(value(&page, "explain-reason"), reason, "{query}");
        if let Some(code) = told.code {
            assert_eq!(value(&page, "explain-code"), code, "{query}");
        }
        for layer in told.layers {
            let said = format!("data-layer=\"{}\" data-value=\"{}\"", layer.layer, layer.said.word());
            assert!(page.contains(&said), "{query}: {said}\n{page}");
        }
        assert!(page.contains(&format!("value=\"{target}\"")), "the form keeps what was asked");
    }
    let page = text(&proxy, "/?target=/providers&client=nowhere").await;
    assert!(value(&page, "explain-error").contains("no IP address"), "{page}");
    let evil = text(&proxy, "/?target=/%3Cscript%3Ealert(1)%3C/script%3E%22&caller=%22%3E%3Cimg%3E").await;
    assert!(!evil.contains("<script>alert") && !evil.contains("<img"), "{evil}");
    let before = figures(&proxy).await;
    assert_eq!(before.environments[0].remaining, before.environments[0].limit, "nothing was sent");
    assert_eq!(ask(&proxy, "/?target=/a&target=/b", &[]).await.status, 400);
}
