//! One secret key takes the place of another, and no caller notices.

use std::sync::atomic::Ordering;

use metorial_proxy::domain::key::SecretKey;
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::mock::{Fault, Options};

use crate::client::{request, try_send};
use crate::harness::{Mock, OTHER, OTHER_KEY, OTHER_SECRET, Proxy, SECRET, pair, scripted};

const ROTATING: &str = "[[environments]]\nnext_secret_key = { env = 'OTHER_SECRET_KEY' }\n";

/// An API to which the first key is revoked.
async fn revoked(toml: &str) -> (Mock, Proxy) {
    let key = SecretKey::parse(OTHER_SECRET).ok();
    let mock = Mock::with(Options { key, limit: Quota::PRODUCTION, ..Options::default() }).await;
    let proxy = Proxy::start(mock.url(), toml);
    (mock, proxy)
}

/// The last four characters of each key that was sent.
fn sent(mock: &Mock) -> Vec<String> {
    let key = |fields: Vec<(String, String)>| {
        fields
            .into_iter()
            .find(|(name, _)| name == "authorization")
            .map(|(_, key)| key.replace("Bearer …", ""))
    };
    mock.handle.requests().into_iter().filter_map(|seen| key(seen.headers)).collect()
}

#[tokio::test]
async fn the_next_key_is_tried_when_the_first_is_refused_and_then_it_is_the_one_in_use() {
    for toml in [ROTATING.to_owned(), format!("upstream.retry.max_attempts = 1\n{ROTATING}")] {
        let (mock, proxy) = revoked(&toml).await;
        let in_use = || proxy.status().secrets.iter().map(|key| key.in_use).collect::<Vec<_>>();
        assert_eq!(in_use(), [true, false]);
        assert_eq!(proxy.post("/provider-deployments", "{\"name\": \"x\"}").await.json()["name"], "x");
        assert_eq!(sent(&mock), ["SECR", "OTHR"]);
        assert_eq!(in_use(), [false, true]);
        for target in ["/providers", "/providers/x"] {
            assert!([200, 404].contains(&proxy.get(target).await.status), "{target}");
        }
        assert_eq!(sent(&mock)[2..], ["OTHR", "OTHR"]);
        let status = proxy.status();
        assert!(status.upstream.credentials_ok);
        assert_eq!(status.environments[0].remaining, 5000 - 4, "every attempt paid");
    }
}

#[tokio::test]
async fn a_rotation_fails_no_request_of_those_under_way() {
    let (mock, proxy) = revoked(&format!("upstream.retry.budget = 0.0\n{ROTATING}")).await;
    let targets: Vec<String> = (0..40).map(|at| format!("/providers?search={at}")).collect();
    let mut asked = tokio::task::JoinSet::new();
    for target in targets {
        let (address, get) = (proxy.address, crate::client::bearing(crate::harness::KEY, &target));
        asked.spawn(async move { try_send(address, get).await.expect("an answer").status });
    }
    while let Some(status) = asked.join_next().await {
        assert_eq!(status.expect("it ended"), 200);
    }
    assert!(sent(&mock).iter().filter(|key| *key == "OTHR").count() == 40);
}

#[tokio::test]
async fn the_first_key_stays_in_use_as_long_as_it_is_taken() {
    let (mock, proxy) = pair(ROTATING).await;
    for status in [403, 404, 500, 503] {
        mock.fault(Fault { status: Some(status), ..Fault::default() });
        proxy.get("/providers/x").await;
    }
    proxy.get("/providers").await;
    assert!(sent(&mock).iter().all(|key| key == "SECR"));
}

#[tokio::test]
async fn when_both_are_refused_it_is_our_fault_and_whichever_comes_back_is_found() {
    let (mock, proxy) = pair(ROTATING).await;
    mock.fault(Fault { status: Some(401), next: 4, ..Fault::default() });
    for _ in 0..3 {
        let reply = proxy.get("/providers/x").await;
        assert_eq!(reply.refusal(), (502, "upstream_credentials".to_owned()));
        assert!(!proxy.status().upstream.credentials_ok);
    }
    assert_eq!(sent(&mock), ["SECR", "OTHR", "SECR", "OTHR"], "two for the first, and then one each");
    assert_eq!(proxy.get("/providers/x").await.status, 404);
    assert!(proxy.status().upstream.credentials_ok);
}

#[tokio::test]
async fn a_rotation_that_is_taken_back_at_once_fails_no_request() {
    // Whichever key is sent first is refused, and the other taken.
    let (url, asked) = scripted(|count| {
        let status = if count % 2 == 0 { "401 Unauthorized" } else { "200 OK" };
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into()
    })
    .await;
    let proxy = Proxy::start(&url, ROTATING);
    for in_use in [[false, true], [true, false], [false, true]] {
        assert_eq!(proxy.get("/providers/x").await.status, 200);
        assert_eq!(proxy.status().secrets.iter().map(|key| key.in_use).collect::<Vec<_>>(), in_use);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 6, "two for each");
}

#[tokio::test]
async fn a_body_that_cannot_be_sent_again_costs_its_request_and_no_other() {
    let (mock, proxy) = revoked(ROTATING).await;
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(100_000));
    let reply = proxy.post("/provider-deployments", &large).await;
    assert_eq!(reply.refusal(), (502, "upstream_credentials".to_owned()));
    assert_eq!(proxy.post("/provider-deployments", &large).await.status, 200);
    assert_eq!(sent(&mock), ["SECR", "OTHR"]);
}

#[tokio::test]
async fn whoever_sends_the_next_key_already_draws_from_the_same_budget() {
    let both = OTHER.replacen("[[environments]]", ROTATING, 1);
    let (mock, proxy) = pair(&format!("{both}\nsecret_key = {{ env = 'OTHER_SECRET_KEY' }}")).await;
    let left = || proxy.status().environments.iter().map(|budget| budget.remaining).collect::<Vec<_>>();
    assert_eq!(proxy.get("/providers").await.status, 200);
    assert_eq!(left(), [4999, 4999]);
    assert_eq!(proxy.get_as(OTHER_KEY, "/providers").await.status, 200);
    assert_eq!(left(), [4998, 4998]);
    assert_eq!(sent(&mock), ["SECR", "OTHR"]);
}

#[tokio::test]
async fn the_ages_of_both_are_shown_by_name_and_nothing_else_of_them() {
    let (_mock, proxy) = pair(ROTATING).await;
    let ask = async |target: &str| {
        let reply = try_send(proxy.admin, request("GET", target, &[("host", "localhost")], "")).await;
        String::from_utf8(reply.expect("an answer").body.to_vec()).expect("text")
    };
    let (metrics, status) = (ask("/metrics").await, ask("/status").await);
    for (key, secret, in_use) in [("current", SECRET, true), ("next", OTHER_SECRET, false)] {
        let name = SecretKey::parse(secret).expect("a key").fingerprint();
        let line = format!(
            "metorial_proxy_secret_age_seconds{{environment=\"main\",key=\"{key}\",fingerprint=\"{name}\",in_use=\"{in_use}\"}} 0"
        );
        assert!(metrics.contains(&line), "{line}\n{metrics}");
        assert!(status.contains(&format!("\"fingerprint\":\"{name}\"")), "{status}");
        assert!(!metrics.contains(&secret[12..24]) && !status.contains(&secret[12..24]));
    }
}

#[tokio::test]
async fn the_guard_looks_for_both() {
    for secret in [SECRET, OTHER_SECRET] {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{secret}", secret.len());
        let (url, _) = scripted(move |_| answer.clone().into()).await;
        let proxy = Proxy::start(&url, ROTATING);
        assert_eq!(proxy.get("/providers/x").await.refusal(), (502, "secret_guard".to_owned()));
    }
}
