use super::*;

const LOCAL: &str = "127.0.0.1:4711";
const REMOTE: &str = "192.0.2.7:4711";

fn ask(peer: &str, method: Method, target: &str, fields: &[(&str, &str)]) -> Result<(), Refusal> {
    let access = Access { token: Some("t0ken".to_owned().into()), hosts: vec!["admin.example".into()] };
    let mut request = http::Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).expect("a request").into_parts();
    let peer = peer.parse().ok().map(Peer);
    decide(&access, peer, &parts.method, &parts.uri, &parts.headers)
}

fn get(peer: &str, fields: &[(&str, &str)]) -> Result<(), Refusal> {
    ask(peer, Method::GET, "/status", fields)
}

#[test]
fn the_host_is_loopback_or_listed() {
    for host in ["localhost", "LocalHost:9090", "127.0.0.1:1", "[::1]", "[::1]:9090", "admin.example:9090"] {
        assert_eq!(get(LOCAL, &[("host", host)]), Ok(()), "{host}");
    }
    for host in
        ["", "evil.example", "localhost.evil.example", "localhost.", "127.0.0.2", "a@localhost", "::1"]
    {
        assert_eq!(get(LOCAL, &[("host", host)]), Err(Refusal::Host), "{host}");
    }
    assert_eq!(get(LOCAL, &[]), Err(Refusal::Host));
    assert_eq!(get(LOCAL, &[("host", "localhost"), ("host", "localhost")]), Err(Refusal::Host));
    let absolute = "http://evil.example/status";
    assert_eq!(ask(LOCAL, Method::GET, absolute, &[("host", "localhost")]), Err(Refusal::Host));
}

#[test]
fn pages_of_other_sites_are_refused() {
    let from = |name, value| get(LOCAL, &[("host", "localhost:9090"), (name, value)]);
    assert_eq!(from("sec-fetch-site", "same-origin"), Ok(()));
    assert_eq!(from("sec-fetch-site", "none"), Ok(()));
    assert_eq!(from("sec-fetch-site", "same-site"), Err(Refusal::CrossSite));
    assert_eq!(from("sec-fetch-site", "cross-site"), Err(Refusal::CrossSite));
    assert_eq!(from("origin", "http://localhost:9090"), Ok(()));
    assert_eq!(from("origin", "http://localhost:3000"), Err(Refusal::CrossSite));
    assert_eq!(from("origin", "https://evil.example"), Err(Refusal::CrossSite));
    assert_eq!(from("origin", "null"), Err(Refusal::CrossSite));
}

#[test]
fn loopback_or_the_token() {
    let with = |peer, fields: &[(&str, &str)]| get(peer, &[&[("host", "localhost")], fields].concat());
    for local in [LOCAL, "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(with(local, &[]), Ok(()), "{local}");
    }
    for remote in [REMOTE, "[2001:db8::1]:1", "10.0.0.1:1", "no address"] {
        assert_eq!(with(remote, &[]), Err(Refusal::Token), "{remote}");
        assert_eq!(with(remote, &[("authorization", "Bearer t0ken")]), Ok(()), "{remote}");
    }
    assert_eq!(with(REMOTE, &[("authorization", "bearer  t0ken")]), Ok(()));
    for wrong in ["Bearer t0ke", "Bearer t0kenn", "Bearer ", "Bearer", "Basic t0ken", "t0ken"] {
        assert_eq!(with(REMOTE, &[("authorization", wrong)]), Err(Refusal::Token), "{wrong}");
    }
    let twice = [("authorization", "Bearer t0ken"), ("authorization", "Bearer t0ken")];
    assert_eq!(with(REMOTE, &twice), Err(Refusal::Token));
}

#[test]
fn behind_a_reverse_proxy_nobody_is_local() {
    for field in ["forwarded", "x-forwarded-for", "x-real-ip", "via"] {
        assert_eq!(get(LOCAL, &[("host", "admin.example"), (field, "for=192.0.2.7")]), Err(Refusal::Token));
    }
}

#[test]
fn without_a_token_only_loopback_is_let_in() {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer "));
    let peer = REMOTE.parse().ok().map(Peer);
    for token in [None, Some(SecretString::from(String::new()))] {
        let access = Access { token, hosts: Vec::new() };
        let decision = decide(&access, peer, &Method::GET, &Uri::from_static("/status"), &headers);
        assert_eq!(decision, Err(Refusal::NotLoopback));
    }
}

#[test]
fn writes_are_json() {
    let post = |fields: &[(&str, &str)]| {
        ask(LOCAL, Method::POST, "/cache/invalidate", &[&[("host", "localhost")], fields].concat())
    };
    assert_eq!(post(&[("content-type", "application/json")]), Ok(()));
    assert_eq!(post(&[("content-type", "Application/JSON; charset=utf-8")]), Ok(()));
    for wrong in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        assert_eq!(post(&[("content-type", wrong)]), Err(Refusal::MediaType), "{wrong}");
    }
    assert_eq!(post(&[]), Err(Refusal::MediaType));
}
