//! HTTP/1.1 and HTTP/2, in the clear and by TLS, towards callers and towards the API.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use metorial_proxy::time::sleep;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bad::{Act, BadUpstream, write as writes};
use crate::certificates::{Authority, handshake, write};
use crate::client::{Connection, bearing, connect, raw, request};
use crate::harness::{KEY, ORIGIN, Proxy, pair, upstream};
use crate::raw_client::RawClient;

#[tokio::test]
async fn http_2_is_spoken_with_who_knows_beforehand() {
    let (mock, proxy) = pair("").await;
    let mut connection = Connection::http2(connect(proxy.address).await).await;
    let reply = connection.send(bearing(KEY, "/providers?limit=2")).await.expect("an answer");
    assert_eq!((reply.status, reply.items()), (200, 2));
    let bearer = format!("Bearer {KEY}");
    let fields = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = r#"{"name": "Two"}"#;
    let create = request("POST", "/provider-deployments", &fields, body);
    assert_eq!(connection.send(create).await.expect("an answer").json()["name"], "Two");
    assert_eq!(mock.last().headers.iter().filter(|(name, _)| name == "host").count(), 1);
    let refused = connection.send(bearing(KEY, "/agents")).await.expect("an answer");
    assert_eq!(refused.refusal(), (403, "forbidden".to_owned()));
    let wide: Vec<(String, String)> = (0..150).map(|at| (format!("x-{at}"), "1".to_owned())).collect();
    let wide: Vec<_> = wide.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let reply = connection.send(request("GET", "/providers", &wide, "")).await.expect("an answer");
    assert_eq!(reply.status, 431, "150 fields");
}

#[tokio::test]
async fn over_http_2_too_there_is_one_host_and_one_reading_of_the_target() {
    let (mock, proxy) = pair("").await;
    let connection = Connection::http2(connect(proxy.address).await).await;
    let Connection::Http2(mut sender) = connection else { panic!("it speaks HTTP/2") };
    for (target, host, status) in [
        ("http://x/providers?limit=1", None, 200),
        ("http://x/providers?limit=2", Some("x"), 200),
        ("http://x/providers?limit=3", Some("y"), 400),
        ("http://u@x/providers", None, 400),
        ("http://x//providers", None, 400),
        ("http://x/providers/%2e%2e/agents", None, 400),
        ("http://x/providers?limit=1;limit=2", None, 400),
    ] {
        let mut request = http::Request::get(target).header("authorization", format!("Bearer {KEY}"));
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(http_body_util::Full::default()).expect("a request");
        sender.ready().await.expect("a connection");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), status, "{target} {host:?}");
    }
    assert_eq!(mock.received(), 2);
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let (_mock, proxy) = pair("").await;
    let mut connection = Connection::http1(connect(proxy.address).await).await;
    for target in ["/providers", "/agents", "/providers/x", "/providers"] {
        connection.send(bearing(KEY, target)).await.expect(target);
    }
    // What could be read in two ways is the last: nobody can say for sure where the next one begins.
    let reply = connection.send(bearing(KEY, "//")).await.expect("an answer");
    assert_eq!((reply.status, reply.field("connection")), (400, "close"));
    assert!(connection.send(bearing(KEY, "/providers")).await.is_err(), "and it is closed");
    // Pipelined, and the last one says that it is.
    let get = |target: &str, last: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{last}\r\n")
    };
    let both = get("/providers", "") + &get("/agents", "connection: close\r\n");
    let answers = raw(proxy.address, &both).await;
    let (one, two) = (answers.find("HTTP/1.1 200 "), answers.find("HTTP/1.1 403 "));
    assert!(one == Some(0) && two > one, "{answers}");
    let old = format!("GET /providers HTTP/1.0\r\nauthorization: Bearer {KEY}\r\n\r\n");
    assert!(raw(proxy.address, &old).await.starts_with("HTTP/1.0 200 "), "and HTTP/1.0 one alone");
}

#[tokio::test]
async fn a_field_too_many_is_refused_with_a_reason_however_its_bytes_come() {
    let (_mock, proxy) = pair("").await;
    for (fields, status) in [(100, 200), (101, 431), (102, 431), (300, 431)] {
        let more: String = (2..fields).map(|at| format!("x-{at}: y\r\n")).collect();
        let text = format!("GET /providers HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{more}\r\n");
        for size in [1, 7, text.len()] {
            let mut client = RawClient::connect(proxy.address).await;
            for piece in text.as_bytes().chunks(size) {
                // It may have been refused already.
                client.send(piece).await;
            }
            let answer = client.answer(false).await.expect("an answer");
            assert_eq!(answer.status, status, "{fields} in pieces of {size}");
            if status == 431 {
                assert!(answer.body.contains(r#""code":"headers_too_large""#), "{answer:?}");
                assert!(answer.head.contains("x-request-id") && answer.closes(), "{answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_only_the_end_of_the_connection_ends_is_not_passed_off_as_whole_when_it_is_not() {
    for (end, whole) in [("0\r\n\r\n", true), ("", false)] {
        // More than is read before the head is sent.
        let (chunk, length) = ("fine".repeat(50_000), 200_000);
        let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{chunk}\r\n");
        let upstream = BadUpstream::start(move |_| vec![Act::Read, writes(&head), writes(end)]).await;
        let proxy = Proxy::start(&upstream.url, "");
        let mut tcp = connect(proxy.address).await;
        let ask = format!("GET /providers/x HTTP/1.0\r\nauthorization: Bearer {KEY}\r\n\r\n");
        tcp.write_all(ask.as_bytes()).await.expect("sent");
        let ended = tcp.read_to_end(&mut Vec::new()).await;
        assert_eq!(ended.is_ok(), whole, "{ended:?}");
    }
}

#[tokio::test]
async fn nor_is_one_whose_end_was_not_sent_any_more() {
    // Among these are some of which all has come and the kernel does not take the last.
    let whole = |number: u64| {
        format!("{:>10}{}", 60_000 * (number + 1), "fine".repeat(15_000 * (number as usize + 1)))
    };
    let upstream = BadUpstream::start(move |number| {
        let body = whole(number);
        let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        vec![Act::Read, writes(&head), writes(&body), writes("\r\n0\r\n\r\n")]
    })
    .await;
    let proxy = Proxy::start(&upstream.url, "");
    let ask = format!("GET /providers/x HTTP/1.0\r\nauthorization: Bearer {KEY}\r\n\r\n");
    let mut peers = Vec::new();
    for _ in 0..60 {
        let mut peer = connect(proxy.address).await;
        peer.write_all(ask.as_bytes()).await.expect("sent");
        peer.readable().await.expect("an answer");
        peers.push(peer);
    }
    let server = proxy.into_server();
    let cut = server.drain(Duration::ZERO, Duration::from_secs(1), std::future::pending()).await;
    let (mut ended, mut reset) = (0, 0);
    for mut peer in peers {
        let mut answer = Vec::new();
        if peer.read_to_end(&mut answer).await.is_err() {
            reset += 1;
            continue;
        }
        ended += 1;
        let at = answer.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        let body = String::from_utf8_lossy(&answer[at..]);
        let length: usize = body[..10].trim().parse().expect("its length");
        assert_eq!(body.len(), 10 + length);
    }
    assert!(ended > 0 && reset > 0 && reset == cut, "{ended}, {reset}, {cut}");
}

#[tokio::test]
async fn callers_come_by_tls_and_choose_their_protocol() {
    let authority = Authority::new();
    let signed = authority.sign("proxy.test");
    let certificate = write("server.pem", &signed.certificate);
    let key = write("server.key", &signed.key);
    let tls = format!("server.tls = {{ certificate = {certificate:?}, private_key = {key:?} }}");
    let (_mock, proxy) = pair(&tls).await;
    for (offered, chosen) in
        [(&["h2", "http/1.1"] as &[&str], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
    {
        let stream = handshake(&proxy, &authority.client(offered)).await;
        let protocol =
            stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(protocol.as_deref(), chosen);
        let mut connection = match chosen {
            Some("h2") => Connection::http2(stream).await,
            _ => Connection::http1(stream).await,
        };
        assert_eq!(connection.send(bearing(KEY, "/providers")).await.expect("an answer").status, 200);
    }
    let clear = raw(proxy.address, "GET /providers HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(!clear.contains("HTTP/1.1 200"), "nothing in the clear: {clear}");
    for file in [certificate, key] {
        fs::remove_file(file).expect("removed");
    }
}

#[tokio::test]
async fn a_proxy_header_of_either_version_stands_before_the_handshake() {
    let authority = Authority::new();
    let signed = authority.sign("proxy.test");
    let certificate = write("proxied.pem", &signed.certificate);
    let key = write("proxied.key", &signed.key);
    let (_mock, proxy) = pair(&format!(
        "server.tls = {{ certificate = {certificate:?}, private_key = {key:?} }}\n\
         server.proxy_protocol = true\nserver.trusted_proxies = ['127.0.0.1']\n\
         clients.limit = {{ requests = 10, window = '24h' }}"
    ))
    .await;
    let address = [203, 0, 113, 1, 10, 0, 0, 1, 0x12, 0x67, 0x01, 0xbb];
    for (header, left) in [
        (&b"PROXY TCP4 203.0.113.1 10.0.0.1 4711 443\r\n"[..], "r=9;"),
        (&[&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &address].concat(), "r=8;"),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", "r=9;"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "r=9;"),
    ] {
        let mut tcp = connect(proxy.address).await;
        tcp.write_all(header).await.expect("sent");
        let name = ServerName::try_from("proxy.test").expect("a name");
        let stream = authority.client(&["h2"]).connect(name, tcp).await.expect("a handshake");
        let reply = Connection::http2(stream).await.send(bearing(KEY, "/providers")).await;
        let reply = reply.expect("an answer");
        assert_eq!(reply.status, 200);
        assert!(reply.field("ratelimit").contains(left), "{header:?}: {reply:?}");
    }
    // Without one the handshake is none.
    let name = ServerName::try_from("proxy.test").expect("a name");
    let bare = authority.client(&["h2"]).connect(name, connect(proxy.address).await).await;
    assert!(bare.is_err(), "it was taken");
    for file in [certificate, key] {
        fs::remove_file(file).expect("removed");
    }
}

#[tokio::test]
async fn the_api_is_called_by_tls_with_the_protocol_it_chooses() {
    let authority = Authority::new();
    let root = write("upstream-ca.pem", &authority.pem());
    let signed = authority.sign("127.0.0.1");
    for (offered, setting, version) in [
        (&["h2", "http/1.1"] as &[&str], "auto", "HTTP/2.0"),
        (&["http/1.1"], "auto", "HTTP/1.1"),
        (&[], "auto", "HTTP/1.1"),
        (&["h2", "http/1.1"], "never", "HTTP/1.1"),
        (&["h2"], "always", "HTTP/2.0"),
    ] {
        let (url, connections) = upstream(Some(signed.server(offered))).await;
        let toml = format!("upstream.ca_certificate = {root:?}\nupstream.http2 = '{setting}'");
        let proxy = Proxy::start(&url, &toml);
        for _ in 0..3 {
            let reply = proxy.post("/provider-deployments", "{\"a\": 1}").await;
            assert_eq!(reply.json()["version"], version, "{offered:?} {setting}");
            assert_eq!(reply.json()["length"], 8);
        }
        assert_eq!(connections.load(Relaxed), 1, "{offered:?} {setting}");
    }
    fs::remove_file(root).expect("removed");
}

#[tokio::test]
async fn an_api_in_the_clear_is_called_by_http_2_only_where_configuration_says_so() {
    let (url, _) = upstream(None).await;
    for (setting, version) in [("auto", "HTTP/1.1"), ("never", "HTTP/1.1"), ("always", "HTTP/2.0")] {
        let proxy = Proxy::start(&url, &format!("upstream.http2 = '{setting}'"));
        let reply = proxy.get("/providers/x").await;
        assert_eq!(reply.json()["version"], version, "{setting}");
        if setting == "always" {
            assert_eq!(reply.json()["host"], "127.0.0.1", "the API's, not the caller's");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_is_a_502_and_the_secret_is_not_sent() {
    let authority = Authority::new();
    let root = write("wrong-ca.pem", &authority.pem());
    let toml = format!("upstream.ca_certificate = {root:?}");
    let (another, untrusted) = ("certificate is for another name", "certificate is from an unknown issuer");
    for (signed, toml, why) in [
        (authority.sign("other.example"), toml.as_str(), another),
        (authority.sign_between("127.0.0.1", (1975, 1976)), toml.as_str(), "certificate has expired"),
        (authority.sign_between("127.0.0.1", (4095, 4096)), toml.as_str(), "certificate is not valid yet"),
        (Authority::new().sign("127.0.0.1"), toml.as_str(), untrusted),
        (Authority::self_signed("127.0.0.1"), toml.as_str(), untrusted),
        (authority.sign("127.0.0.1"), "", untrusted),
    ] {
        let (url, connections) = upstream(Some(signed.server(&["h2", "http/1.1"]))).await;
        let proxy = Proxy::start(&url, toml);
        let reply = proxy.get("/providers/x").await;
        assert_eq!(reply.refusal(), (502, "upstream_error".to_owned()));
        let told = format!("metorial-proxy; error=tls_certificate_error; details=\"{why}\"");
        assert_eq!(reply.field("proxy-status"), told);
        assert_eq!(connections.load(Relaxed), 1, "trying again changes nothing");
    }
    let (url, _) = upstream(None).await;
    let proxy = Proxy::start(url.replace("http:", "https:"), "upstream.retry.max_attempts = 1");
    let reply = proxy.get("/providers/x").await;
    let told = "metorial-proxy; error=tls_protocol_error; details=\"what it sent is not TLS\"";
    assert_eq!(reply.field("proxy-status"), told);
    // By an alert the other side says itself what it lacks.
    let (url, _) = upstream(Some(authority.sign("127.0.0.1").server(&["spdy/1"]))).await;
    let proxy = Proxy::start(&url, &format!("{toml}\nupstream.retry.max_attempts = 1"));
    let reply = proxy.get("/providers/x").await;
    assert_eq!(reply.refusal(), (502, "upstream_error".to_owned()));
    let told =
        "metorial-proxy; error=tls_alert_received; alert-id=120; alert-message=\"NoApplicationProtocol\"";
    assert_eq!(reply.field("proxy-status"), told);
    fs::remove_file(root).expect("removed");
}

#[tokio::test]
async fn every_answer_has_a_request_id_the_callers_own_where_it_is_sane() {
    let (mock, proxy) = pair("").await;
    let bearer = format!("Bearer {KEY}");
    for (method, target, status) in [
        ("GET", "/providers/x", 404),
        ("GET", "/providers", 200),
        ("GET", "/providers", 200),
        ("GET", "/agents", 403),
        ("GET", "//", 400),
        ("TRACE", "/providers", 405),
        ("OPTIONS", "/providers", 204),
        ("HEAD", "/agents", 403),
    ] {
        let ask = async |id: &str| {
            let fields = [("authorization", bearer.as_str()), ("origin", ORIGIN), ("x-request-id", id)];
            let reply = proxy.send(request(method, target, &fields, "")).await;
            assert_eq!(reply.status, status, "{method} {target}");
            reply.field("x-request-id").to_owned()
        };
        assert_eq!(ask("trace-1.2_3").await, "trace-1.2_3", "{method} {target}");
        let minted = ask("not sane").await;
        assert!(minted.starts_with("req_") && minted.len() == 24, "{minted}");
    }
    let sent: Vec<_> = mock.handle.requests().into_iter().flat_map(|record| record.headers).collect();
    assert!(sent.contains(&("x-request-id".into(), "trace-1.2_3".into())), "and it goes on to the API");
}

/// Opens an HTTP/2 connection on which nothing may be sent to us, and asks for `/providers` on it, with these fields.
async fn ask_and_take_nothing(proxy: &Proxy, fields: &[(&str, &str)]) -> tokio::net::TcpStream {
    // A field as HPACK's literal without indexing (RFC 7541 §6.2.2); lengths below 127 take one byte.
    let literal = |(name, value): &(&str, &str)| {
        let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    };
    let pseudo =
        [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/providers")];
    let block: Vec<u8> = pseudo.iter().chain(fields).flat_map(literal).collect();
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let mut peer = connect(proxy.address).await;
    let no_window = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let headers = frame(1, 0x5, 1, &block);
    let all = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), no_window, headers].concat();
    peer.write_all(&all).await.expect("written");
    peer
}

/// `PING` (RFC 9113 §6.7): a sign of life that takes nothing.
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

#[tokio::test]
async fn a_peer_that_takes_nothing_of_its_answer_loses_its_place_whatever_signs_of_life_it_sends() {
    let (mock, proxy) = pair("server.max_in_flight = 1\nserver.body_idle_timeout = '1s'").await;
    assert_eq!(proxy.get("/providers").await.status, 200);
    let authorization = format!("Bearer {KEY}");
    let mut peer = ask_and_take_nothing(&proxy, &[("authorization", &authorization)]).await;
    let mut statuses = Vec::new();
    for _ in 0..100 {
        statuses.push(proxy.get("/providers").await.status);
        if statuses.contains(&503) && statuses.last() == Some(&200) {
            break;
        }
        peer.write_all(&PING).await.ok();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(statuses.contains(&503), "it had the only place: {statuses:?}");
    assert_eq!(statuses.last(), Some(&200), "and lost it: {statuses:?}");
    assert!(mock.received() >= 1);
}

#[tokio::test]
async fn a_refusal_that_nobody_reads_keeps_nobody_out() {
    let (_mock, proxy) = pair("server.max_in_flight = 1").await;
    let mut peers = Vec::new();
    for _ in 0..20 {
        peers.push(ask_and_take_nothing(&proxy, &[]).await);
        assert_eq!(proxy.get("/providers").await.status, 200);
    }
}

#[tokio::test]
async fn a_refused_head_has_a_length_and_no_body_in_either_protocol() {
    let (_mock, proxy) = pair("").await;
    let mut http1 = Connection::http1(connect(proxy.address).await).await;
    let mut http2 = Connection::http2(connect(proxy.address).await).await;
    for connection in [&mut http1, &mut http2] {
        for _ in 0..2 {
            let reply = connection.send(request("HEAD", "/providers", &[], "")).await.expect("whole");
            assert_eq!(reply.status, 401);
            assert!(reply.body.is_empty());
            assert!(
                reply.field("content-length").parse::<u64>().is_ok_and(|length| length > 100),
                "{reply:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_upload_over_the_limit_is_the_callers_fault_over_http2_too() {
    let (url, _) = upstream(None).await;
    let proxy = Proxy::start(&url, "upstream.http2 = 'always'\nserver.max_request_body = '1KiB'");
    let chunked = format!(
        "POST /provider-deployments HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         fa0\r\n{}\r\n0\r\n\r\n",
        "x".repeat(4000)
    );
    let reply = raw(proxy.address, &chunked).await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    assert!(proxy.status().upstream.healthy, "nothing was wrong with upstream");
}
