//! Identify: what exactly is asked for, and by whom.
//!
//! Everything inside decides on what this layer read, and what it read is what is forwarded. Whatever two readers could
//! take differently (two `Host` fields, an absolute target that disagrees with `Host`, an ambiguous path) ends here.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, TRANSFER_ENCODING,
};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Version};
use ipnet::IpNet;
use tower::{Layer, Service};

use crate::body::RequestBody;
use crate::domain::access::METHODS;
use crate::domain::client_ip::client_ip;
use crate::domain::field::nominated;
use crate::domain::target::{Ambiguous, Extracted, Target};
use crate::exchange::{Exchange, HadFragment, HadManyFields, HadTwoLengths, Identified, Received};
use crate::rejection::{Gate, Limit, Rejection};
use crate::store::clients::ClientLimits;
use crate::telemetry::labels::{Outcome, Policy};
use crate::telemetry::metrics::Metrics;

/// More fields than this are refused. The parser of HTTP/1.1 takes no more, so that a connection passes no more to it.
pub const MAX_FIELDS: usize = 100;

/// What a request has to satisfy to be read at all.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Removed from every path: empty, or `/a/b`.
    pub base_path: String,
    /// `Host` values accepted, lower case, without a port; empty: any.
    pub hosts: Vec<String>,
    /// Bytes of a target.
    pub max_uri: usize,
    /// Bytes of the fields.
    pub max_header_bytes: usize,
    /// Bytes of a body.
    pub max_request_body: u64,
    /// Peers whose `client_ip_header` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The one header believed from them.
    pub client_ip_header: HeaderName,
    /// IPv6 clients are counted by this prefix.
    pub ipv6_prefix: u8,
}

/// Reads each request one way, or refuses it.
#[derive(Clone)]
pub struct IdentifyLayer(Rc<Shared>);

struct Shared {
    rules: Rules,
    clients: Arc<ClientLimits>,
    metrics: Arc<Metrics>,
}

impl IdentifyLayer {
    /// Reads by `rules`; what is refused here counts against its client all the same.
    pub fn new(rules: Rules, clients: Arc<ClientLimits>, metrics: Arc<Metrics>) -> Self {
        Self(Rc::new(Shared { rules, clients, metrics }))
    }
}

impl<S> Layer<S> for IdentifyLayer {
    type Service = Identify<S>;

    fn layer(&self, inner: S) -> Identify<S> {
        Identify { inner, shared: self.0.clone() }
    }
}

/// See [`IdentifyLayer`].
#[derive(Clone)]
pub struct Identify<S> {
    inner: S,
    shared: Rc<Shared>,
}

impl<S> Service<Exchange<Received>> for Identify<S>
where
    S: Service<Exchange<Identified>, Error = Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = Gate<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange<Received>) -> Self::Future {
        let Shared { rules, clients, .. } = &*self.shared;
        let headers = exchange.request.headers_mut();
        // First: who calls is no caller's to take out, and a proxy before us may pass on what `Connection` it was sent.
        let ip = client_ip(exchange.stage.peer, headers, &rules.client_ip_header, &rules.trusted_proxies);
        strip_nominated(headers);
        let client = ip.key(rules.ipv6_prefix);
        match decide(rules, &exchange.request) {
            Ok((target, extracted)) => {
                Gate::passed(self.inner.call(exchange.stage(|_| Identified { target, extracted, client })))
            }
            // Whatever is wrong with a request, it counts as one.
            Err(rejection) => {
                let rejection = match clients.check(client) {
                    Ok(_) => rejection,
                    Err(too_fast) => {
                        self.shared.metrics.decision(Policy::Client, Outcome::Refused);
                        exchange.journal.client.set((client, clients.spent(too_fast))).ok();
                        Rejection::RateLimited { limit: Limit::Client, wait: too_fast.wait }
                    }
                };
                exchange.refuse(rejection)
            }
        }
    }
}

/// Takes out what a `Connection` line names: it is for this hop only, so nothing below may see it, the page key least of all.
/// Some fields are no hop's business: naming them would be an attack.
fn strip_nominated(headers: &mut HeaderMap) {
    const KEPT: [HeaderName; 6] =
        [HOST, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN, TRANSFER_ENCODING];
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = nominated(headers).filter(|name| !KEPT.contains(name)).collect();
    for name in named {
        headers.remove(name);
    }
}

fn decide(rules: &Rules, request: &Request<RequestBody>) -> Result<(Target, Extracted), Rejection> {
    if !METHODS.contains(request.method()) {
        return Err(Rejection::MethodNotAllowed);
    }
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, |query| query.len() + 1) > rules.max_uri {
        return Err(Rejection::UriTooLong(rules.max_uri));
    }
    let seen = Seen::of(request.headers());
    let too_many =
        request.headers().len() > MAX_FIELDS || request.extensions().get::<HadManyFields>().is_some();
    if seen.bytes > rules.max_header_bytes || too_many {
        return Err(Rejection::HeadersTooLarge(rules.max_header_bytes));
    }
    if request.extensions().get::<HadFragment>().is_some() {
        return Err(Rejection::BadRequest("the request target holds a fragment".into()));
    }
    check_values(&seen)?;
    check_host(rules, request, seen.host)?;
    check_body(rules, request, &seen)?;
    let target =
        uri.path_and_query().ok_or(Rejection::BadRequest("the request target must be a path".into()))?;
    read(target, &rules.base_path)
}

/// What one look at all fields tells of them.
#[derive(Default)]
struct Seen<'h> {
    /// As on the wire: ": " and a line break for each.
    bytes: usize,
    /// A value begins or ends with white space.
    surrounded: bool,
    host: Lines<'h>,
    expect: Lines<'h>,
    coding: Lines<'h>,
    length: Lines<'h>,
}

/// The lines of one field: the first, and whether there are more.
#[derive(Default, Clone, Copy)]
struct Lines<'h>(Option<&'h HeaderValue>, bool);

impl<'h> Lines<'h> {
    fn add(&mut self, line: &'h HeaderValue) {
        self.1 = self.0.is_some();
        self.0.get_or_insert(line);
    }
}

impl<'h> Seen<'h> {
    fn of(headers: &'h HeaderMap) -> Self {
        let mut seen = Self::default();
        let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        for (name, value) in headers {
            let bytes = value.as_bytes();
            seen.bytes += name.as_str().len() + bytes.len() + 4;
            seen.surrounded |= space(bytes.first()) || space(bytes.last());
            if *name == HOST {
                seen.host.add(value);
            } else if *name == EXPECT {
                seen.expect.add(value);
            } else if *name == TRANSFER_ENCODING {
                seen.coding.add(value);
            } else if *name == CONTENT_LENGTH {
                seen.length.add(value);
            }
        }
        seen
    }
}

fn read(target: &PathAndQuery, base_path: &str) -> Result<(Target, Extracted), Rejection> {
    Target::parse(target, base_path).map_err(|ambiguous| match ambiguous {
        Ambiguous::OutsideBasePath => Rejection::OutsideBasePath,
        _ => Rejection::BadRequest(ambiguous.to_string().into()),
    })
}

/// The parser of HTTP/1.1 takes off what surrounds a value; that of HTTP/2 leaves it, where it may not be (RFC 9113 §8.2.1).
fn check_values(seen: &Seen<'_>) -> Result<(), Rejection> {
    if seen.surrounded {
        return Err(Rejection::BadRequest("a field's value begins or ends with white space".into()));
    }
    let Lines(expected, again) = seen.expect;
    let unknown = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if expected.is_some_and(unknown) || again {
        return Err(Rejection::ExpectationFailed);
    }
    Ok(())
}

/// Whether this can be an authority (RFC 9110 §7.2).
fn is_host(host: &str) -> bool {
    !host.is_empty() && Authority::try_from(host).is_ok()
}

/// The name of a host that is one at a glance, as most are: letters, digits, dots and hyphens, and a port.
fn plain_name(host: &[u8]) -> Option<&[u8]> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let (name, port) = host.split_at(host.iter().position(|byte| !plain(byte)).unwrap_or(host.len()));
    let digits = port.strip_prefix(b":").unwrap_or(port);
    let number = digits.iter().try_fold(0u32, |number, digit| {
        digit.is_ascii_digit().then(|| (number * 10 + u32::from(digit - b'0')).min(1 << 16))
    });
    (!name.is_empty() && number.is_some_and(|port| port < 1 << 16)).then_some(name)
}

fn check_host(
    rules: &Rules,
    request: &Request<RequestBody>,
    Lines(host, again): Lines<'_>,
) -> Result<(), Rejection> {
    let bad = |message: &'static str| Err(Rejection::BadRequest(message.into()));
    let uri = request.uri();
    if uri.scheme().is_some_and(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
        return bad("the request target must be a path");
    }
    // The one that HTTP/1.1 has, or that HTTP/2 has.
    let alone = match (host, uri.authority()) {
        (Some(host), None) if !again => Some(host.as_bytes()),
        (None, Some(authority)) if request.version() == Version::HTTP_2 => {
            Some(authority.as_str().as_bytes())
        }
        _ => None,
    };
    if let Some(name) = alone.and_then(plain_name) {
        return is_served(rules, name);
    }
    let host = match host.map(|host| host.to_str().ok().filter(|host| is_host(host))) {
        None => None,
        Some(Some(host)) => Some(host),
        Some(None) => return bad("the Host field is no host"),
    };
    // An absolute target does not stand for it (RFC 9112 §3.2); over HTTP/2 the authority does.
    if host.is_none() && request.version() == Version::HTTP_11 {
        return bad("the Host field is missing");
    }
    if again {
        return bad("there is more than one Host field");
    }
    let authority = uri.authority().map(Authority::as_str);
    if let (Some(host), Some(authority)) = (host, authority)
        && !host.eq_ignore_ascii_case(authority)
    {
        return bad("the request target and the Host field name different hosts");
    }
    let Some(authority) = authority.or(host) else {
        let optional = request.version() < Version::HTTP_11 && rules.hosts.is_empty();
        return if optional { Ok(()) } else { bad("the Host field is missing") };
    };
    if authority.contains('@') {
        return bad("the host holds user information");
    }
    // The library takes anything for a port.
    let end = match authority.starts_with('[') {
        true => authority.find(']').map_or(0, |bracket| bracket + 1),
        false => authority.find(':').unwrap_or(authority.len()),
    };
    let (name, port) = authority.split_at(end);
    let is_port = |port: &str| {
        port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    };
    if name.is_empty() || !(port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
        return bad("the host is none, or its port is no number");
    }
    is_served(rules, name.as_bytes())
}

fn is_served(rules: &Rules, name: &[u8]) -> Result<(), Rejection> {
    let is_name = |listed: &String| listed.as_bytes().eq_ignore_ascii_case(name);
    if rules.hosts.is_empty() || rules.hosts.iter().any(is_name) {
        return Ok(());
    }
    Err(Rejection::Forbidden {
        message: "This proxy does not serve this host.".to_owned(),
        hint: Some("The operator can list the host in server.hosts.".to_owned()),
    })
}

fn check_body(rules: &Rules, request: &Request<RequestBody>, seen: &Seen<'_>) -> Result<(), Rejection> {
    // One coding, said once: every reader agrees on where such a body ends.
    if seen.coding.0.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || seen.coding.1
        || seen.length.1
        || request.extensions().get::<HadTwoLengths>().is_some()
    {
        return Err(Rejection::BadRequest("the length of the body could be read in two ways".into()));
    }
    let RequestBody::Streaming(body) = request.body() else { return Ok(()) };
    // The API would have to guess what a body of a GET means, and a page key does not know of it.
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Rejection::BadRequest("a GET or HEAD request has no body".into()));
    }
    // The parser has made sure that there is one length only.
    let declared = seen.length.0.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if body.exact_len().or(declared).is_some_and(|length| length > rules.max_request_body) {
        return Err(Rejection::PayloadTooLarge(rules.max_request_body));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            base_path: String::new(),
            hosts: Vec::new(),
            max_uri: 64,
            max_header_bytes: 256,
            max_request_body: 16,
            trusted_proxies: Vec::new(),
            client_ip_header: HeaderName::from_static("x-forwarded-for"),
            ipv6_prefix: 64,
        }
    }

    fn ask(rules: &Rules, method: &str, target: &str, fields: &[(&str, &str)]) -> Result<String, u16> {
        let mut request =
            Request::builder().method(method).uri(target).body(RequestBody::Empty).expect("a request");
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            request.headers_mut().append(name, value.parse().expect("a value"));
        }
        decide(rules, &request)
            .map(|(target, _)| target.path_and_query().to_string())
            .map_err(|rejection| rejection.status().as_u16())
    }

    #[test]
    fn a_request_is_read_one_way_or_refused() {
        let host = ("host", "proxy.example");
        let long = format!("/{}", "x".repeat(64));
        let wide = "x".repeat(256);
        for (method, target, fields, expected) in [
            ("GET", "/a?b=1", &[host] as &[_], Ok("/a?b=1")),
            ("GET", "http://proxy.example/a", &[host], Ok("/a")),
            ("GET", "http://PROXY.example/a", &[host], Ok("/a")),
            ("GET", "http://evil.example/a", &[host], Err(400)),
            ("GET", "http://u@proxy.example/a", &[], Err(400)),
            ("GET", "ftp://proxy.example/a", &[host], Err(400)),
            ("GET", "/a", &[], Err(400)),
            ("GET", "/a", &[host, host], Err(400)),
            ("GET", "/a", &[("host", "a b")], Err(400)),
            ("GET", "/a", &[("host", "a:b")], Err(400)),
            ("GET", "/a", &[("host", ":80")], Err(400)),
            ("GET", "/a", &[("host", "a:65536")], Err(400)),
            ("GET", "/a", &[("host", "a:")], Ok("/a")),
            ("GET", "/a", &[("host", "[::1]:80")], Ok("/a")),
            ("GET", "/a", &[("host", "[::1]")], Ok("/a")),
            ("GET", "/a", &[("host", "[::1]x:80")], Err(400)),
            ("GET", "/a", &[("host", "[::1:80")], Err(400)),
            ("GET", "/a", &[("host", "a_b.example:80")], Ok("/a")),
            ("GET", "/a", &[("host", "a:1:2")], Err(400)),
            ("GET", "/a", &[("host", "")], Err(400)),
            ("GET", "http://proxy.example/a", &[], Err(400)),
            ("GET", "/a", &[host, ("x-note", " a")], Err(400)),
            ("GET", "/a", &[host, ("x-note", "a\t")], Err(400)),
            ("GET", "/a", &[host, ("expect", "100-Continue")], Ok("/a")),
            ("GET", "/a", &[host, ("expect", "200-ok")], Err(417)),
            ("GET", "/a", &[host, ("expect", "100-continue"), ("expect", "100-continue")], Err(417)),
            ("POST", "/a", &[host, ("content-length", "1"), ("content-length", "1")], Err(400)),
            ("GET", "/a//b", &[host], Err(400)),
            ("TRACE", "/a", &[host], Err(405)),
            ("BREW", "/a", &[host], Err(405)),
            ("GET", &long, &[host], Err(414)),
            ("GET", "/a", &[host, ("x-wide", &wide)], Err(431)),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(ask(&rules(), method, target, fields), expected, "{method} {target} {fields:?}");
        }
    }

    #[test]
    fn only_listed_hosts_are_served_whatever_their_port() {
        let rules = Rules { hosts: vec!["localhost".into(), "[::1]".into()], ..rules() };
        for (host, expected) in [
            ("localhost", Ok("/a")),
            ("LOCALHOST:8080", Ok("/a")),
            ("[::1]:8080", Ok("/a")),
            ("rebound.example", Err(403)),
            ("localhost.evil.example", Err(403)),
        ] {
            assert_eq!(ask(&rules, "GET", "/a", &[("host", host)]), expected.map(str::to_owned), "{host}");
        }
    }
}
