//! From the start to the end: addresses, admission, the admin port, and a drain that loses nothing.

use std::future::pending;
use std::time::Duration;

use metorial_proxy::mock::Fault;
use metorial_proxy::server::Server;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Connection, Reply, bearing, connect, request, try_send};
use crate::harness::{KEY, Proxy, SECRET, eventually, load, pair};

async fn admin(proxy: &Proxy, method: &str, target: &str, body: &str) -> Reply {
    let host = proxy.admin.to_string();
    let fields = [("host", host.as_str()), ("content-type", "application/json")];
    try_send(proxy.admin, request(method, target, &fields, body.to_owned())).await.expect("an answer")
}

/// Whether the other side closes without having said more than it has.
async fn closes(tcp: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    tcp.read_to_end(&mut rest).await.map_or(true, |read| read == 0)
}

fn slow(milliseconds: u64) -> Fault {
    Fault { delay_ms: Some(milliseconds), ..Fault::default() }
}

#[tokio::test]
async fn an_address_in_use_is_refused_by_name() {
    let (_mock, proxy) = pair("").await;
    for (key, toml, address) in [
        ("server.listen[0]", format!("server.listen = ['{}']", proxy.address), proxy.address),
        ("server.admin", format!("server.admin = '{}'", proxy.admin), proxy.admin),
        ("server.listen[1]", format!("server.listen = ['127.0.0.1:0', '{}']", proxy.address), proxy.address),
    ] {
        let config = load("http://127.0.0.1:1", &toml).expect("a configuration");
        let errors = Server::start(&config).err().expect("it is in use");
        assert_eq!(errors.len(), 1, "{errors:?}");
        let error = errors[0].to_string();
        assert!(error.starts_with(&format!("{key}: {address} is in use")), "{error}");
    }
    let toml =
        format!("server.listen = ['127.0.0.1:0', '{}']\nserver.admin = '{}'", proxy.address, proxy.admin);
    let config = load("http://127.0.0.1:1", &toml).expect("a configuration");
    let errors = Server::start(&config).err().expect("both are in use");
    let places: Vec<&str> = errors.iter().map(|error| error.place.as_str()).collect();
    assert_eq!(places, ["server.admin", "server.listen[1]"], "each is told");
    assert_eq!(proxy.get("/providers").await.status, 200, "and the first one goes on");
}

#[tokio::test]
async fn every_address_and_every_worker_serves() {
    let toml = "server.workers = 3\nserver.listen = ['127.0.0.1:0', '127.0.0.1:0']";
    let (mock, proxy) = pair(toml).await;
    let address = proxy.address;
    let server = proxy.into_server();
    assert_eq!((server.addresses().len(), server.addresses()[0]), (2, address));
    for address in server.addresses() {
        for item in 0..20 {
            let reply = try_send(*address, bearing(KEY, &format!("/providers/{item}"))).await;
            assert_eq!(reply.expect("an answer").status, 404);
        }
    }
    assert_eq!(mock.received(), 40);
    assert_eq!(server.drain(Duration::ZERO, Duration::from_secs(20), pending()).await, 0);
}

#[tokio::test]
async fn a_drain_lets_what_is_in_flight_finish_and_closes_what_is_idle() {
    let (mock, proxy) = pair("").await;
    let (address, admin_address) = (proxy.address, proxy.admin);
    let mut idle = connect(address).await;
    let hit = format!("GET /agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n");
    idle.write_all(hit.as_bytes()).await.expect("sent");
    assert!(idle.read(&mut [0; 4096]).await.expect("an answer") > 0);
    let mut two = Connection::http2(connect(address).await).await;
    for target in ["/providers/slow", "/providers/slower"] {
        mock.fault(Fault { route: format!("GET {target}"), ..slow(2500) });
    }
    let ready = async || {
        let host = admin_address.to_string();
        try_send(admin_address, request("GET", "/readyz", &[("host", &host)], ""))
            .await
            .map(|reply| reply.status)
    };
    assert_eq!(ready().await.ok(), Some(200));
    let in_flight = try_send(address, bearing(KEY, "/providers/slow"));
    let over_http_2 = two.send(bearing(KEY, "/providers/slower"));
    let server = proxy.into_server();
    let drained = async {
        eventually("both are upstream", || mock.received() == 2).await;
        let settle = Duration::from_secs(1);
        let meanwhile = async {
            assert_eq!(ready().await.ok(), Some(503), "at once");
            let mut late = Connection::http1(connect(address).await).await;
            let late = late.send(bearing(KEY, "/agents")).await.expect("an answer");
            assert_eq!(late.status, 403, "who has not heard of it yet is served");
            assert_eq!(late.field("connection"), "close", "and goes elsewhere next time");
            assert!(closes(&mut idle).await);
        };
        tokio::join!(server.drain(settle, Duration::from_secs(20), pending()), meanwhile).0
    };
    let (in_flight, over_http_2, cut) = tokio::join!(in_flight, over_http_2, drained);
    let in_flight = in_flight.expect("it finished");
    assert_eq!((in_flight.status, in_flight.field("connection")), (404, "close"));
    assert_eq!((over_http_2.expect("it finished").status, cut), (404, 0));
    for gone in [address, admin_address] {
        assert!(TcpStream::connect(gone).await.is_err(), "nobody is there any more");
    }
}

#[tokio::test]
async fn a_drain_answers_all_that_the_kernel_has_taken_over_however_many_connections() {
    let (_mock, proxy) = pair(
        "server.workers = 1
        server.max_connections_per_ip = 1000
        clients.limit = { requests = 10000, window = '10s' }",
    )
    .await;
    let ask = format!("GET /agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n");
    let is_answered = async |peer: &mut TcpStream| {
        let mut answer = [0; 4096];
        let length = peer.read(&mut answer).await.expect("no reset");
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    };
    let mut peers = Vec::new();
    for _ in 0..1000 {
        let mut peer = connect(proxy.address).await;
        peer.write_all(ask.as_bytes()).await.expect("sent");
        is_answered(&mut peer).await;
        peers.push(peer);
    }
    let server = proxy.into_server();
    // At once, and before the worker could see to them.
    for peer in &peers {
        assert_eq!(peer.try_write(ask.as_bytes()).ok(), Some(ask.len()));
    }
    let drained = server.drain(Duration::ZERO, Duration::from_secs(20), pending());
    let answered = async {
        for peer in &mut peers {
            is_answered(peer).await;
        }
    };
    assert_eq!(tokio::join!(drained, answered).0, 0);
}

#[tokio::test]
async fn what_is_still_open_at_the_deadline_is_cut_and_counted() {
    for hurried in [false, true] {
        let (mock, proxy) = pair("").await;
        mock.fault(slow(600_000));
        let in_flight = try_send(proxy.address, bearing(KEY, "/providers/slow"));
        let server = proxy.into_server();
        let drained = async {
            eventually("it is upstream", || mock.received() == 1).await;
            // Whoever is in a hurry waits for neither.
            match hurried {
                false => server.drain(Duration::ZERO, Duration::from_millis(100), pending()).await,
                true => server.drain(Duration::from_secs(3600), Duration::from_secs(3600), async {}).await,
            }
        };
        let (in_flight, cut) = tokio::join!(in_flight, drained);
        assert!(in_flight.is_err(), "{in_flight:?}");
        assert_eq!(cut, 1);
    }
}

#[tokio::test]
async fn one_address_gets_so_many_connections_and_each_only_so_much_time() {
    let (_mock, proxy) = pair("server.max_connections_per_ip = 2").await;
    let mut first = Connection::http1(connect(proxy.address).await).await;
    let mut second = Connection::http1(connect(proxy.address).await).await;
    for connection in [&mut first, &mut second] {
        connection.send(bearing(KEY, "/providers")).await.expect("an answer");
    }
    assert!(closes(&mut connect(proxy.address).await).await, "the third is closed at once");
    drop(first);
    let mut served = false;
    for _ in 0..200 {
        served = try_send(proxy.address, bearing(KEY, "/providers")).await.is_ok();
        if served {
            break;
        }
        metorial_proxy::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(served, "there is room again");

    let (_mock, proxy) = pair("server.header_read_timeout = '100ms'\nserver.idle_timeout = '100ms'").await;
    let mut silent = connect(proxy.address).await;
    let mut slow = connect(proxy.address).await;
    slow.write_all(b"GET /providers HTTP/1.1\r\nhost").await.expect("sent");
    assert!(closes(&mut silent).await && closes(&mut slow).await);
}

#[tokio::test]
async fn the_admin_port_tells_what_is_going_on_without_a_key() {
    let toml = "[[environments]]\nlimit = { requests = 100, window = '50s' }";
    let (mock, proxy) = pair(toml).await;
    for target in ["/livez", "/readyz"] {
        assert_eq!(admin(&proxy, "GET", target, "").await.status, 200, "{target}");
    }
    let retry = [("retry-after".to_owned(), Some("1".to_owned()))].into();
    mock.fault(Fault { status: Some(429), headers: retry, ..Fault::default() });
    proxy.get("/providers").await;
    proxy.get("/providers").await;
    mock.fault(Fault { echo: true, ..Fault::default() });
    proxy.get("/providers/x").await;
    mock.fault(Fault { status: Some(401), ..Fault::default() });
    proxy.get("/providers/x").await;
    proxy.get_as("metorial_pk_unknown", "/providers").await;

    eventually("the page is counted", || proxy.status().cache.entries == 1).await;
    eventually("the slow start is over", || proxy.status().environments[0].remaining == 96).await;
    let status = admin(&proxy, "GET", "/status", "").await;
    let text = String::from_utf8_lossy(&status.body).into_owned();
    let status = status.json();
    let main = &status["environments"][0];
    assert_eq!(
        (&main["name"], &main["limit"], &main["window_seconds"]),
        (&json!("main"), &json!(100), &json!(50))
    );
    assert_eq!((&main["remaining"], &main["queued"]), (&json!(96), &json!(0)));
    assert_eq!((&status["cache"]["entries"], &status["cache"]["hit_ratio"]), (&json!(1), &json!(0.5)));
    assert_eq!(status["upstream"]["credentials_ok"], false);
    assert_eq!(
        status["store"],
        json!({"kind": "memory", "partitioned": false, "replicas": 1, "pages_partitioned": false})
    );
    assert_eq!(status["build"]["version"], env!("CARGO_PKG_VERSION"));

    let metrics = admin(&proxy, "GET", "/metrics", "").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let sample = |name: &str, labels: &[&str]| {
        let found = metrics.lines().find(|line| {
            line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label))
        });
        found
            .unwrap_or_else(|| panic!("no {name} {labels:?} in\n{metrics}"))
            .rsplit(' ')
            .next()
            .map(str::to_owned)
    };
    for (name, labels, value) in [
        ("http_server_request_duration_seconds_count", &["route=\"/providers\"", "200"] as &[&str], "2"),
        ("http_client_request_duration_seconds_count", &["429"], "1"),
        ("metorial_proxy_decisions_total", &["outcome=\"refused\"", "policy=\"authenticate\""], "1"),
        ("metorial_proxy_decisions_total", &["outcome=\"allowed\"", "policy=\"environment\""], "4"),
        ("metorial_proxy_budget_limit", &["budget=\"main\""], "100"),
        ("metorial_proxy_budget_remaining", &["budget=\"main\""], "96"),
        ("metorial_proxy_budget_limit", &["budget=\"egress\""], "1000"),
        ("metorial_proxy_cache_requests_total", &["result=\"hit\""], "1"),
        ("metorial_proxy_cache_requests_total", &["result=\"miss\""], "1"),
        ("metorial_proxy_upstream_rate_limited_total", &["budget=\"main\""], "1"),
        ("metorial_proxy_retries_total", &["reason=\"rate_limited\""], "1"),
        ("metorial_proxy_secret_guard_total", &[], "1"),
        ("metorial_proxy_upstream_credentials_refused_total", &["main"], "1"),
        ("metorial_proxy_store_partitioned", &[], "0"),
        ("metorial_proxy_build_info", &[env!("CARGO_PKG_VERSION")], "1"),
    ] {
        assert_eq!(sample(name, labels).as_deref(), Some(value), "{name} {labels:?}");
    }
    for name in ["metorial_proxy_config_reloads_total", "metorial_proxy_secret_age_seconds"] {
        assert!(metrics.contains(name), "{name}");
    }
    for hidden in [SECRET, KEY, "metorial_pk_unknown", "127.0.0.1", "/providers/x"] {
        assert!(!metrics.contains(hidden) && !text.contains(hidden), "{hidden}");
    }
}

#[tokio::test]
async fn an_operator_can_drop_the_pages_of_a_collection() {
    let (mock, proxy) = pair("").await;
    proxy.get("/providers").await;
    proxy.get("/provider-groups").await;
    let body = json!({"environment": "main", "collection": "/providers"}).to_string();
    let reply = admin(&proxy, "POST", "/cache/invalidate", &body).await;
    assert!((200..300).contains(&reply.status), "{reply:?}");
    assert!(!proxy.get("/providers").await.field("cache-status").contains("hit"));
    assert!(proxy.get("/provider-groups").await.field("cache-status").contains("hit"));
    assert_eq!(mock.received(), 3);
    for collection in ["/providers?limit=5", "/providers#x", "/provider%73", "providers", "/"] {
        let body = json!({"environment": "main", "collection": collection}).to_string();
        let reply = admin(&proxy, "POST", "/cache/invalidate", &body).await;
        assert!((400..500).contains(&reply.status), "{collection}: {reply:?}");
    }
    // What a page in a browser could send.
    let host = [("host", "rebound.example"), ("content-type", "application/json")];
    let foreign = try_send(proxy.admin, request("POST", "/cache/invalidate", &host, body)).await;
    assert_eq!(foreign.expect("an answer").status, 403);
}

#[tokio::test]
async fn a_connection_made_just_before_the_drain_gets_its_answer() {
    let (_mock, proxy) = pair("").await;
    let mut peers = Vec::new();
    for _ in 0..20 {
        peers.push(connect(proxy.address).await);
    }
    let server = proxy.into_server();
    let drained = server.drain(Duration::ZERO, Duration::from_secs(10), std::future::pending());
    let asked = async {
        let ask = format!(
            "GET /agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n"
        );
        for peer in &mut peers {
            peer.write_all(ask.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            peer.read_to_string(&mut answer).await.expect("no reset");
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        }
    };
    let (cut, ()) = tokio::join!(drained, asked);
    assert_eq!(cut, 0);
}
