//! TLS towards callers: which versions, suites, keys and protocols, what comes back in the clear, and who comes back.

use std::fs;
use std::sync::Arc;

use metorial_proxy::server::Server;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, Error, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::{Authority, Files, write};
use crate::client::{Connection, bearing, connect};
use crate::harness::{KEY, Proxy, load, pair};
use crate::signals::command;

const NAME: &str = "proxy.test";

async fn join(proxy: &Proxy, client: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(NAME).expect("a name");
    TlsConnector::from(Arc::new(client)).connect(name, connect(proxy.address).await).await
}

async fn answers(stream: TlsStream<TcpStream>) {
    let reply = Connection::http1(stream).await.send(bearing(KEY, "/providers")).await;
    assert_eq!(reply.expect("an answer").status, 200);
}

/// What comes back for bytes that begin no TLS of ours: the alert's number.
async fn alert(proxy: &Proxy, bytes: &[u8]) -> Option<u8> {
    let mut tcp = connect(proxy.address).await;
    tcp.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.ok();
    // An alert is a record of type 21 and two bytes: fatal, and why.
    match answer[..] {
        [21, 3, _, 0, 2, 2, why] => Some(why),
        _ => None,
    }
}

/// A ClientHello of this version that offers these suites.
fn hello(version: u8, suites: &[u16]) -> Vec<u8> {
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).expect("short").to_be_bytes();
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    // Curves x25519 and P-256; signatures ECDSA and RSA with SHA-256.
    let extensions = [0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 13, 0, 6, 0, 4, 4, 3, 4, 1];
    let body = [
        &[3, version][..],
        &[7; 32],
        &[0],
        &length(&suites),
        &suites,
        &[1, 0],
        &length(&extensions),
        &extensions,
    ]
    .concat();
    let handshake = [&[1, 0][..], &length(&body), &body].concat();
    [&[22, 3, 1][..], &length(&handshake), &handshake].concat()
}

async fn refused(proxy: &Proxy) -> u64 {
    let metrics = proxy.metrics().await;
    let series = "metorial_proxy_connections_refused_total{reason=\"tls_handshake\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(series)?.parse().ok()).expect("a count")
}

#[tokio::test]
async fn both_versions_are_spoken_by_keys_of_every_kind_also_with_callers_that_name_no_host() {
    let authority = Authority::new();
    for (kind, algorithm) in [
        ("rsa", &PKCS_RSA_SHA256),
        ("p256", &PKCS_ECDSA_P256_SHA256),
        ("p384", &PKCS_ECDSA_P384_SHA384),
        ("ed25519", &PKCS_ED25519),
    ] {
        let files = authority.sign_with(NAME, algorithm).files(kind);
        let (_mock, proxy) = pair(&files.toml).await;
        for version in [&TLS12, &TLS13] {
            let mut client = authority.client_of(&[], &[version]);
            client.enable_sni = false;
            let stream = join(&proxy, client).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
            assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            answers(stream).await;
        }
    }
}

#[tokio::test]
async fn what_is_old_weak_or_no_tls_is_refused_by_an_alert_and_counted() {
    let files = Authority::new().sign(NAME).files("alerts");
    let (mock, proxy) = pair(&files.toml).await;
    const AEAD: u16 = 0xc02b;
    const CBC: [u16; 4] = [0xc009, 0xc013, 0xc023, 0x002f];
    let (version, suites) = (Some(70), Some(40));
    assert_eq!(alert(&proxy, &hello(0, &CBC)).await, version, "SSL 3.0");
    assert_eq!(alert(&proxy, &hello(1, &CBC)).await, version, "TLS 1.0");
    assert_eq!(alert(&proxy, &hello(2, &[AEAD])).await, version, "TLS 1.1");
    assert_eq!(alert(&proxy, &hello(3, &CBC)).await, suites, "CBC, and RSA without forward secrecy");
    let clear = format!("GET /providers HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n");
    for bytes in [clear.as_bytes(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"] {
        assert!(alert(&proxy, bytes).await.is_some(), "{bytes:?}");
    }
    // The alert leaves before it is counted.
    let mut counts = Vec::new();
    while counts.last() != Some(&7) && counts.len() < 1000 {
        counts.push(refused(&proxy).await);
    }
    assert_eq!(counts.last(), Some(&7));
    assert_eq!(mock.received(), 0);
}

#[tokio::test]
async fn a_caller_that_offers_only_protocols_we_do_not_speak_is_told_so() {
    let authority = Authority::new();
    let files = authority.sign(NAME).files("alpn");
    let (_mock, proxy) = pair(&files.toml).await;
    let error = join(&proxy, authority.client_of(&["spdy/3", "h3"], &[&TLS13])).await.expect_err("refused");
    let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>()).expect("of TLS");
    assert_eq!(*error, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
    let stream = join(&proxy, authority.client_of(&["spdy/3", "http/1.1"], &[&TLS13])).await.expect("spoken");
    answers(stream).await;
}

#[tokio::test]
async fn a_caller_that_comes_back_resumes_its_session_with_whichever_worker() {
    let authority = Authority::new();
    let files = authority.sign(NAME).files("resumed");
    let (_mock, proxy) = pair(&format!("{}\nserver.workers = 4", files.toml)).await;
    for version in [&TLS12, &TLS13] {
        let client = authority.client_of(&[], &[version]);
        for nth in 0..12 {
            let stream = join(&proxy, client.clone()).await.expect("a handshake");
            let kind = stream.get_ref().1.handshake_kind();
            let expected = if nth == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
            assert_eq!(kind, Some(expected), "{version:?} {nth}");
            // In TLS 1.3 the ticket comes with the answer.
            answers(stream).await;
            if nth == 0 {
                // However many others come meanwhile: nothing is kept of anybody.
                for _ in 0..300 {
                    join(&proxy, authority.client_of(&[], &[version])).await.expect("a handshake");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_and_a_key_that_do_not_fit_are_refused_at_the_start() {
    let authority = Authority::new();
    let (one, other) = (authority.sign(NAME).files("one"), authority.sign(NAME).files("other"));
    let empty = write("empty.pem", "");
    let tls =
        |certificate, key| format!("server.tls = {{ certificate = {certificate:?}, private_key = {key:?} }}");
    for (toml, said) in [
        (tls(&one.certificate, &other.key), "do not fit"),
        (tls(&one.key, &one.key), "no certificate"),
        (tls(&empty, &one.key), "no certificate"),
        (tls(&one.certificate, &one.certificate), "no private key"),
        (tls(&one.certificate, &empty), "no private key"),
    ] {
        let config = load("http://127.0.0.1:1", &toml).expect("it can be read");
        let error = Server::start(&config).map(|_| ()).expect_err(said)[0].to_string();
        assert!(error.starts_with("server.tls: ") && error.contains(said), "{error}");
    }
    fs::remove_file(empty).expect("removed");
}

#[test]
fn check_warns_of_a_certificate_that_callers_will_refuse() {
    let authority = Authority::new();
    let hosts = "hosts = ['proxy.test', 'other.test']";
    let said = |files: &Files, hosts: &str| {
        let text = format!(
            "{}\nserver.{hosts}\n[[environments]]\nname = 'main'\nsecret_key = {{ env = 'METORIAL_SECRET_KEY' }}\n\
             publishable_keys = ['{KEY}']",
            files.toml
        );
        let config = write("warned.toml", &text);
        let secret = [("METORIAL_SECRET_KEY", crate::harness::SECRET)];
        let (code, output) = command(&["check", "--config", config.to_str().expect("text")], &secret);
        fs::remove_file(config).expect("removed");
        assert_eq!(code, Some(0), "{output}");
        output
    };
    let expired = said(&authority.sign_between(NAME, (1975, 1976)).files("expired"), hosts);
    assert!(expired.contains("has expired: callers will refuse it"), "{expired}");
    assert!(expired.contains("is not for other.test: callers will refuse it"), "{expired}");
    let good = said(&authority.sign(NAME).files("good"), "hosts = ['proxy.test']");
    assert!(!good.contains("callers will refuse it"), "{good}");
}
