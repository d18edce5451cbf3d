use http_body_util::BodyExt;

use super::*;

fn every_rejection() -> Vec<Rejection> {
    let mut all = vec![
        Rejection::BadRequest("the path holds an empty segment".into()),
        Rejection::Unauthorized("No publishable key was sent."),
        Rejection::Forbidden { message: "No rule allows it.".into(), hint: Some("Add one.".into()) },
        Rejection::MethodNotAllowed,
        Rejection::RequestTimeout,
        Rejection::PayloadTooLarge(8),
        Rejection::UriTooLong(8),
        Rejection::HeadersTooLarge(8),
        Rejection::Internal,
        Rejection::UpstreamCredentials,
        Rejection::SecretGuard,
        Rejection::Overloaded,
        Rejection::DeadlineExceeded,
        Rejection::NotKept,
    ];
    for limit in [Limit::Client, Limit::Environment, Limit::Egress, Limit::Upstream] {
        all.push(Rejection::RateLimited { limit, wait: Duration::from_millis(40_200) });
    }
    for fault in [
        UpstreamFault::ConnectionRefused,
        UpstreamFault::ConnectionTimeout,
        UpstreamFault::OutOfConnections,
        UpstreamFault::TlsCertificate("certificate has expired"),
        UpstreamFault::TlsAlert(40, "HandshakeFailure"),
        UpstreamFault::ResponseTimeout,
    ] {
        all.push(Rejection::Upstream(fault));
    }
    all
}

#[tokio::test]
async fn every_refusal_has_one_form() {
    let mut seen = String::new();
    for rejection in every_rejection() {
        let response = rejection.to_response("req_1", Duration::from_secs(60), HeaderMap::new());
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        seen.push_str(&format!("{} {:?}\n{}\n\n", head.status, head.headers, String::from_utf8_lossy(&body)));
    }
    insta::assert_snapshot!(seen);
}

#[test]
fn a_wait_that_sdks_would_sleep_silently_is_not_told_as_retry_after() {
    let told = |seconds| {
        let rejection =
            Rejection::RateLimited { limit: Limit::Environment, wait: Duration::from_secs(seconds) };
        let response = rejection.to_response("req_1", Duration::from_secs(60), HeaderMap::new());
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
    };
    assert_eq!(told(0), Some(1));
    assert_eq!(told(60), Some(60));
    assert_eq!(told(61), None);
}
