use std::sync::Mutex;

use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::rotation::Which;
use crate::exchange::testing::permitted;
use crate::telemetry::logging::testing::{Lines, listen};

mod rotation;

#[test]
fn only_what_is_safe_is_tried_again() {
    let reset = Rejection::Upstream(UpstreamFault::ConnectionTerminated);
    let refused = Rejection::Upstream(UpstreamFault::ConnectionRefused);
    let spent = Rejection::RateLimited { limit: Limit::Environment, wait: Duration::ZERO };
    let certificate = Rejection::Upstream(UpstreamFault::TlsCertificate("certificate has expired"));
    for (rejection, delivery, method, expected) in [
        (&refused, Delivery::Never, Method::POST, Some(RetryReason::NotConnected)),
        (&reset, Delivery::Possible, Method::GET, Some(RetryReason::ConnectionLost)),
        (&reset, Delivery::Possible, Method::POST, None),
        (&reset, Delivery::Possible, Method::DELETE, None),
        (&spent, Delivery::Refused, Method::GET, None),
        (&certificate, Delivery::Never, Method::GET, None),
        (&Rejection::UpstreamCredentials, Delivery::Possible, Method::GET, None),
        (&Rejection::SecretGuard, Delivery::Possible, Method::GET, None),
    ] {
        assert_eq!(reason(rejection, delivery, &method), expected, "{rejection:?} {delivery:?} {method}");
    }
}

type Script = Vec<Result<u16, (UpstreamFault, Delivery)>>;

/// Sends one request through the layer; each attempt is answered by the next line of the script.
async fn run(method: Method, max_attempts: u32, mut script: Script) -> (Result<u16, Rejection>, usize) {
    script.reverse();
    let script = Arc::new(Mutex::new(script));
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let inner = service_fn(move |exchange: Exchange<Permitted>| {
        *counted.lock().expect("unpoisoned") += 1;
        let next = script.lock().expect("unpoisoned").pop().expect("a line for each attempt");
        async move {
            let Exchange { mut request, journal, stage: Permitted { permit, unless, .. }, .. } = exchange;
            let body = std::mem::take(request.body_mut());
            journal.leave_unserved(Unserved { request, permit, unless });
            match next {
                Ok(status) => {
                    let mut response = Response::new(ResponseBody::empty());
                    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                    response.extensions_mut().insert(ShutFor(Duration::from_secs(7)));
                    Ok(response)
                }
                Err((fault, delivery)) => {
                    let body = (delivery == Delivery::Never).then_some(body);
                    Err(Failure { rejection: Rejection::Upstream(fault), delivery, body })
                }
            }
        }
    });
    let config = Config {
        max_attempts,
        initial_backoff: Duration::from_millis(250),
        max_backoff: Duration::from_secs(10),
        max_queue_wait: Duration::from_secs(5),
        max_queue: 10,
        max_queue_per_client: 10,
        budget: 0.1,
    };
    let layer = RetryLayer::new(config, Arc::new(budget(&config)), Arc::new(Metrics::new()));
    let target = if method == Method::GET { "/provider-deployments/pde_1" } else { "/provider-deployments" };
    let outcome = layer.layer(inner).oneshot(permitted(method, target, 1)).await;
    let calls = *calls.lock().expect("unpoisoned");
    (outcome.map(|response| response.status().as_u16()), calls)
}

const RESET: (UpstreamFault, Delivery) = (UpstreamFault::ConnectionTerminated, Delivery::Possible);
const REFUSED: (UpstreamFault, Delivery) = (UpstreamFault::ConnectionRefused, Delivery::Never);

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_get_is_sent_again_after_a_reset_and_a_write_is_not() {
    assert_eq!(run(Method::GET, 4, vec![Err(RESET), Ok(200)]).await, (Ok(200), 2));
    let broken = Rejection::Upstream(UpstreamFault::ConnectionTerminated);
    assert_eq!(run(Method::POST, 4, vec![Err(RESET)]).await, (Err(broken), 1));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_write_is_sent_again_where_no_connection_was_made_or_upstream_said_429() {
    assert_eq!(run(Method::POST, 4, vec![Err(REFUSED), Err(REFUSED), Ok(200)]).await, (Ok(200), 3));
    assert_eq!(run(Method::POST, 4, vec![Ok(429), Ok(200)]).await, (Ok(200), 2));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn attempts_end_and_the_last_word_is_ours_with_the_true_wait() {
    let rejection = Rejection::RateLimited { limit: Limit::Upstream, wait: Duration::from_secs(7) };
    assert_eq!(run(Method::GET, 3, vec![Ok(429), Ok(429), Ok(429)]).await, (Err(rejection), 3));
    assert_eq!(run(Method::GET, 4, vec![Ok(503)]).await, (Ok(503), 1), "other answers are passed on");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn retries_as_a_whole_are_bounded_by_a_share_of_requests() {
    let script = (0..100).map(|_| Err(REFUSED)).collect();
    let (outcome, attempts) = run(Method::GET, 100, script).await;
    assert!(outcome.is_err());
    assert!(attempts < 15, "ten in ten seconds and a tenth of the requests: {attempts}");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn every_attempt_after_the_first_has_a_span_that_says_which_and_why() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::NEW)
        .with_writer(lines.writer())
        .finish();
    let guard = listen(subscriber);
    assert_eq!(run(Method::GET, 4, vec![Err(REFUSED), Ok(429), Ok(200)]).await, (Ok(200), 3));
    drop(guard);
    let spans: Vec<serde_json::Value> = lines
        .text()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("json")["span"].take())
        .collect();
    let of = |attempt: u64, reason: &str| serde_json::json!({"name": "retry", "request_id": "req_test", "attempt": attempt, "reason": reason});
    assert_eq!(spans, [of(2, "NotConnected"), of(3, "RateLimited")]);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_request_is_sent_again_for_its_key_once_beyond_the_attempts_it_has() {
    const KEY: (UpstreamFault, Delivery) =
        (UpstreamFault::ConnectionTerminated, Delivery::KeyRefused(Which::Current));
    assert_eq!(run(Method::POST, 1, vec![Err(KEY), Ok(200)]).await, (Ok(200), 2));
    assert_eq!(run(Method::GET, 2, vec![Ok(429), Err(KEY), Ok(200)]).await, (Ok(200), 3));
    let (outcome, attempts) = run(Method::GET, 9, vec![Err(KEY), Err(KEY)]).await;
    assert!(outcome.is_err() && attempts == 2, "{attempts}");
}
