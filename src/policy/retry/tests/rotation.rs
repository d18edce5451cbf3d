//! Many requests at once while the API refuses one key, or both, or changes its mind: through inject and forward.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio_util::task::TaskTracker;

use super::*;
use crate::body::Arriving;
use crate::domain::environment::Environment;
use crate::domain::key::SecretKey;
use crate::exchange::{Journal, RequestId};
use crate::policy::forward::{Answer, ForwardLayer, Outgoing, Rules, Transport, TransportError};
use crate::policy::inject::InjectLayer;
use crate::store::secrets::Secrets;

type Sent = Vec<(String, String)>;

/// An API that takes the keys it is told to take, and notes which request came with which.
#[derive(Clone, Default)]
struct Api {
    /// The first and the next.
    takes: Arc<Mutex<[bool; 2]>>,
    seen: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
    /// Of the last one, each time it was sent.
    lines: Arc<Mutex<Vec<Sent>>>,
}

const NEXT: &str = "metorial_sk_the_next_one";

impl Transport for Api {
    async fn send(&self, request: &mut Outgoing, _: &Journal) -> Result<Answer, Box<TransportError>> {
        let field = |name: &str| {
            let mut found = request.fields.iter().filter(|(known, _)| known == name);
            let (field, again) = (found.next().expect(name), found.next());
            assert_eq!(again, None);
            field.1.to_str().expect("text").to_owned()
        };
        let key = usize::from(field("authorization") == format!("Bearer {NEXT}"));
        let id = field("x-request-id");
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        let lines = request.fields.iter().map(|(name, value)| (name.to_string(), text(value)));
        self.lines.lock().expect("unpoisoned").push(lines.collect());
        self.seen.lock().expect("unpoisoned").entry(id).or_default().push(key);
        sleep(Duration::from_millis(fastrand::u64(1..50))).await;
        let taken = self.takes.lock().expect("unpoisoned")[key];
        let status = if taken { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = status;
        // As one by HTTP/1.1 does.
        head.headers = std::mem::take(&mut request.room);
        Ok(Answer { head, body: Arriving::Held(Bytes::new()), lease: None })
    }
}

/// The layers over such an API.
struct Bench {
    api: Api,
    retry: RetryLayer,
    inject: InjectLayer,
    forward: ForwardLayer,
}

impl Bench {
    fn new() -> Self {
        let mut environment = Environment::example("test");
        environment.next_secret_key = SecretKey::parse(NEXT).ok();
        let secrets = Arc::new(Secrets::of(&environment));
        // One attempt, and no budget for more: what comes beyond comes for the key.
        let config = Config {
            max_attempts: 1,
            initial_backoff: Duration::from_millis(1),
            max_backoff: Duration::from_millis(1),
            max_queue_wait: Duration::from_secs(5),
            max_queue: 10,
            max_queue_per_client: 10,
            budget: 0.0,
        };
        let rules = Rules {
            authority: http::uri::Authority::from_static("api.test"),
            base_path: String::new(),
            forward_headers: ["x-tenant", "authorization", "host"].map(HeaderName::from_static).to_vec(),
            attempt_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(60),
        };
        let metrics = Arc::new(Metrics::new());
        Self {
            api: Api::default(),
            retry: RetryLayer::new(config, Arc::new(budget(&config)), metrics.clone()),
            inject: InjectLayer::new([(&environment, &secrets)].into_iter()).expect("keys"),
            forward: ForwardLayer::new(rules, metrics, Arc::default(), None),
        }
    }

    fn take(&self, keys: [bool; 2]) {
        *self.api.takes.lock().expect("unpoisoned") = keys;
    }

    /// Sends one request.
    fn ask(&self, id: &str) -> impl Future<Output = Result<StatusCode, Rejection>> + 'static {
        self.ask_with(id, HeaderMap::new())
    }

    fn ask_with(
        &self,
        id: &str,
        fields: HeaderMap,
    ) -> impl Future<Output = Result<StatusCode, Rejection>> + 'static {
        let forward = self.forward.layer(self.api.clone());
        let layers = self.retry.layer(self.inject.layer(forward));
        let mut exchange = permitted(Method::GET, "/provider-deployments/pde_1", 1);
        let id = HeaderValue::try_from(id).ok().and_then(RequestId::new).expect("an id");
        exchange.journal = Rc::new(Journal::new(id));
        *exchange.request.headers_mut() = fields;
        async move { layers.oneshot(exchange).await.map(|response| response.status()) }
    }

    /// Sends so many at once; what came of each.
    async fn ask_many(&self, name: &str, many: usize) -> Vec<Result<StatusCode, Rejection>> {
        let mut asked = tokio::task::JoinSet::new();
        (0..many).for_each(|at| drop(asked.spawn_local(self.ask(&format!("{name}{at}")))));
        asked.join_all().await
    }

    /// The keys that the requests of this name were sent with, each request's in order.
    fn sent(&self, name: &str) -> Vec<Vec<usize>> {
        let seen = self.api.seen.lock().expect("unpoisoned");
        seen.iter().filter(|(id, _)| id.starts_with(name)).map(|(_, keys)| keys.clone()).collect()
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_revoked_key_fails_none_of_many_and_each_is_sent_again_once() {
    let bench = Bench::new();
    bench.take([false, true]);
    assert_eq!(bench.ask_many("a", 300).await, vec![Ok(StatusCode::OK); 300]);
    assert_eq!(bench.sent("a"), vec![vec![0, 1]; 300]);
    assert_eq!(bench.ask_many("b", 10).await, vec![Ok(StatusCode::OK); 10]);
    assert_eq!(bench.sent("b"), vec![vec![1]; 10]);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_is_sent_again_has_the_fields_that_passed_at_first_and_no_key_but_the_other() {
    let bench = Bench::new();
    bench.take([false, true]);
    let lines = [
        ("accept", "a/b"),
        ("origin", "https://app.example"),
        ("host", "elsewhere.example"),
        ("x-tenant", "t"),
        ("accept", "c/d"),
        ("authorization", "Bearer of the caller's"),
    ];
    let mut fields = HeaderMap::new();
    for (name, value) in lines {
        fields.append(name, HeaderValue::from_static(value));
    }
    assert_eq!(bench.ask_with("a", fields).await, Ok(StatusCode::OK));
    let first = format!("Bearer {}", Environment::example("test").secret_key.expose());
    let sent = [first.as_str(), &format!("Bearer {NEXT}")].map(|key| {
        let lines = [
            ("host", "api.test"),
            ("accept", "a/b"),
            ("accept", "c/d"),
            ("x-tenant", "t"),
            ("accept-encoding", "identity"),
            ("x-request-id", "a"),
            ("authorization", key),
        ];
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    });
    assert_eq!(*bench.api.lines.lock().expect("unpoisoned"), sent);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn when_both_are_refused_many_are_sent_at_most_twice_and_then_once_each_for_a_while() {
    let bench = Bench::new();
    let refused = |many| vec![Err(Rejection::UpstreamCredentials); many];
    assert_eq!(bench.ask_many("a", 300).await, refused(300));
    assert!(bench.sent("a").iter().all(|keys| matches!(keys[..], [0] | [0, 1])), "{:?}", bench.sent("a"));
    for _ in 0..20 {
        assert_eq!(bench.ask_many("b", 30).await, refused(30));
    }
    assert_eq!(bench.sent("b").concat().len(), 600, "one attempt each");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.ask_many("c", 1).await, refused(1));
    assert_eq!(bench.sent("c").concat().len(), 2);
    bench.take([false, true]);
    // Whoever has the turn finds it.
    bench.ask_many("d", 1).await;
    bench.ask_many("e", 1).await;
    assert_eq!(bench.ask_many("f", 30).await, vec![Ok(StatusCode::OK); 30]);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn whatever_the_api_says_no_request_is_sent_twice_with_one_key() {
    for seed in 0..12 {
        fastrand::seed(seed);
        let (bench, asked) = (Bench::new(), TaskTracker::new());
        for at in 0..400 {
            if at % 10 == 0 {
                bench.take([fastrand::bool(), fastrand::bool()]);
            }
            drop(asked.spawn_local(bench.ask(&format!("a{at}"))));
            sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        }
        asked.close();
        asked.wait().await;
        let sent = bench.sent("a");
        assert_eq!(sent.len(), 400);
        assert!(sent.iter().all(|keys| matches!(keys[..], [_] | [0, 1] | [1, 0])), "{seed}: {sent:?}");
        assert!(sent.iter().any(|keys| keys.len() == 2), "{seed}: the other key was never tried");
        // And whichever is taken in the end is found.
        bench.take([seed % 2 == 0, seed % 2 == 1]);
        bench.ask_many("b", 2).await;
        bench.ask_many("c", 1).await;
        assert_eq!(bench.ask_many("d", 30).await, vec![Ok(StatusCode::OK); 30], "{seed}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_refusal_and_a_switch_name_the_keys_and_say_no_more_of_them() {
    let lines = Lines::default();
    let guard = listen(tracing_subscriber::fmt().json().with_writer(lines.writer()).finish());
    let bench = Bench::new();
    assert!(bench.ask("a").await.is_err());
    bench.take([false, true]);
    assert!(bench.ask("b").await.is_err());
    assert!(bench.ask("c").await.is_ok());
    drop(guard);
    let text = lines.text();
    let lines: Vec<[String; 4]> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("json")["fields"].take())
        .map(|line| {
            ["message", "fingerprint", "other", "before"]
                .map(|key| line[key].as_str().unwrap_or("").to_owned())
        })
        .collect();
    let keys = [Environment::example("test").secret_key, SecretKey::parse(NEXT).expect("a key")];
    let [first, next] = keys.each_ref().map(SecretKey::fingerprint);
    let expected = [
        ("upstream refused a secret key", &first, &*next, ""),
        ("upstream refused our secret key", &next, "", ""),
        ("upstream refused our secret key", &first, "", ""),
        ("another secret key is in use", &next, "", &*first),
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, (message, fingerprint, other, before)) in lines.iter().zip(expected) {
        assert!(line[0].starts_with(message), "{line:?}");
        assert_eq!(line[1..], [fingerprint, other, before]);
    }
    assert!(keys.iter().all(|key| !text.contains(&key.expose()["metorial_sk_".len()..])), "{text}");
}
