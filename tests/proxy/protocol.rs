//! HTTP/1.1 and HTTP/2, in the clear and by TLS, towards callers and towards the API.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{Connection, bearing, connect, raw, request};
use crate::harness::{KEY, ORIGIN, Proxy, pair, scratch, upstream};

/// A certificate authority and what it has signed, as PEM.
struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key")).expect("signed"))
    }

    fn sign(&self, name: &str) -> Signed {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = parameters.signed_by(&key, &self.0).expect("signed");
        Signed { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn client(&self, protocols: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions");
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config).into()
    }
}

impl Signed {
    /// As an upstream shows it.
    fn server(&self, protocols: &[&str]) -> Arc<ServerConfig> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions");
        let config = config.with_no_client_auth().with_single_cert(vec![certificate], key);
        let mut config = config.expect("they fit");
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

fn write(name: &str, text: &str) -> PathBuf {
    let file = scratch(&format!("{}-{name}", std::process::id()));
    fs::write(&file, text).expect("written");
    file
}

async fn handshake(proxy: &Proxy, client: &TlsConnector) -> TlsStream<TcpStream> {
    let name = ServerName::try_from("proxy.test").expect("a name");
    client.connect(name, connect(proxy.address).await).await.expect("a handshake")
}

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
async fn a_connection_serves_one_request_after_the_other() {
    let (_mock, proxy) = pair("").await;
    let mut connection = Connection::http1(connect(proxy.address).await).await;
    for target in ["/providers", "/agents", "//", "/providers/x", "/providers"] {
        connection.send(bearing(KEY, target)).await.expect(target);
    }
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
async fn the_api_is_called_by_tls_with_the_protocol_it_chooses() {
    let authority = Authority::new();
    let root = write("upstream-ca.pem", &authority.0.pem());
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
    let root = write("wrong-ca.pem", &authority.0.pem());
    let toml = format!("upstream.ca_certificate = {root:?}");
    for (signed, toml) in [
        (authority.sign("other.example"), toml.as_str()),
        (Authority::new().sign("127.0.0.1"), toml.as_str()),
        (authority.sign("127.0.0.1"), ""),
    ] {
        let (url, connections) = upstream(Some(signed.server(&["h2", "http/1.1"]))).await;
        let proxy = Proxy::start(&url, toml);
        let reply = proxy.get("/providers/x").await;
        assert_eq!(reply.refusal(), (502, "upstream_error".to_owned()));
        assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=tls_certificate_error");
        assert_eq!(connections.load(Relaxed), 1, "trying again changes nothing");
    }
    let (url, _) = upstream(None).await;
    let proxy = Proxy::start(url.replace("http:", "https:"), "upstream.retry.max_attempts = 1");
    let reply = proxy.get("/providers/x").await;
    assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=tls_protocol_error");
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
