//! The generation logic over the real layer: every order in which upstream may come to read, apply and answer.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use http_body_util::BodyExt;
use tokio::sync::{Notify, watch};
use tower::{Service, ServiceExt, service_fn};

use super::*;
use crate::body::{Outbound, RequestBody};
use crate::config::{LowBudget, Prefetch};
use crate::domain::client_ip::ClientKey;
use crate::domain::environment::Environment;
use crate::domain::quota::{Plan, Quota};
use crate::exchange::testing::{permitted, waiting};
use crate::store::limits::{EGRESS, MemoryLimits};
use crate::store::pages::MemoryPages;
use crate::store::queues::{Bounds, Lane, Queue};
use crate::time::Instant;

const LIST: &str = "/provider-deployments";

/// An upstream that holds one number, and does each thing when it is told to.
struct Upstream {
    value: AtomicU64,
    /// Steps that were allowed so far.
    steps: watch::Sender<Vec<&'static str>>,
    /// How often each kind of request has come.
    come: Mutex<HashMap<&'static str, usize>>,
}

impl Upstream {
    async fn wait_for(&self, step: &'static str) {
        let mut steps = self.steps.subscribe();
        steps.wait_for(|steps| steps.contains(&step)).await.expect("the upstream lives");
    }

    async fn answer(&self, exchange: Exchange<Permitted>) -> Response<ResponseBody> {
        // As the budget's layer does.
        exchange.journal.attempt();
        let is_write = *exchange.stage.permit.method() == Method::POST;
        let nth = {
            let mut come = self.come.lock().expect("unpoisoned");
            let count = come.entry(if is_write { "write" } else { "read" }).or_default();
            *count += 1;
            *count
        };
        let body = match (is_write, nth) {
            (true, _) => {
                self.wait_for("applies the write").await;
                self.value.store(1, Ordering::SeqCst);
                self.wait_for("answers the write").await;
                "{}".to_owned()
            }
            (false, 1) => {
                self.wait_for("reads for the first").await;
                let value = self.value.load(Ordering::SeqCst);
                self.wait_for("answers the first").await;
                value.to_string()
            }
            (false, 2) => {
                self.wait_for("reads for the second").await;
                let value = self.value.load(Ordering::SeqCst);
                self.wait_for("answers the second").await;
                value.to_string()
            }
            (false, _) => self.value.load(Ordering::SeqCst).to_string(),
        };
        let mut response = Response::new(ResponseBody::full(body));
        *response.status_mut() = StatusCode::OK;
        response
    }
}

/// Every order of these steps in which each pair keeps its own.
fn orders(pairs: &[[&'static str; 2]]) -> Vec<Vec<&'static str>> {
    fn go(
        left: &mut Vec<&'static [&'static str]>,
        order: &mut Vec<&'static str>,
        all: &mut Vec<Vec<&'static str>>,
    ) {
        if left.iter().all(|steps| steps.is_empty()) {
            all.push(order.clone());
            return;
        }
        for at in 0..left.len() {
            if let Some((first, rest)) = left[at].split_first() {
                let before = std::mem::replace(&mut left[at], rest);
                order.push(first);
                go(left, order, all);
                order.pop();
                left[at] = before;
            }
        }
    }
    let mut left: Vec<&'static [&'static str]> =
        pairs.iter().map(|pair| &*Box::leak(Box::new(*pair)) as &[&str]).collect();
    let mut all = Vec::new();
    go(&mut left, &mut Vec::new(), &mut all);
    all
}

fn layer() -> CacheLayer<MemoryPages, MemoryLimits> {
    let limits = Arc::new(MemoryLimits::default());
    limits.budget("test", &[], Plan::window(Quota::PRODUCTION));
    let egress = limits.budget(EGRESS, &[], Plan::window(Quota::PER_IP));
    let second = Duration::from_secs(1);
    CacheLayer::new(CacheParts {
        pages: Arc::new(MemoryPages::new(1 << 20, second * 600)),
        limits,
        egress,
        fills: Arc::default(),
        config: Config {
            enabled: true,
            capacity: 1 << 20,
            max_page: 1 << 14,
            ttl: second * 600,
            stale_while_revalidate: second * 30,
            stale_if_error: second * 600,
            low_budget: LowBudget { below: 0.0, ttl: second },
            honor_client_directives: false,
            compress: false,
            prefetch: Prefetch { enabled: false, above: 1.0 },
        },
        forward_headers: Vec::new(),
        request_timeout: second * 20,
        tasks: TaskTracker::new(),
        metrics: Arc::new(Metrics::new()),
    })
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn after_a_write_has_been_answered_no_list_lacks_it_in_whatever_order_things_happen() {
    let orders = orders(&[
        ["reads for the first", "answers the first"],
        ["reads for the second", "answers the second"],
        ["applies the write", "answers the write"],
    ]);
    assert_eq!(orders.len(), 90);
    for order in orders {
        let upstream = Arc::new(Upstream {
            value: AtomicU64::new(0),
            steps: watch::channel(Vec::new()).0,
            come: Mutex::default(),
        });
        let layer = layer();
        let ask = |method: Method| {
            let upstream = upstream.clone();
            let inner = service_fn(move |exchange| {
                let upstream = upstream.clone();
                async move { Ok(upstream.answer(exchange).await) }
            });
            layer.layer(inner).oneshot(permitted(method, LIST, 1))
        };
        let tasks = TaskTracker::new();
        let list = || {
            let asked = ask(Method::GET);
            async move {
                let body =
                    asked.await.expect("answered").into_body().collect().await.expect("whole").to_bytes();
                String::from_utf8(body.to_vec()).expect("text")
            }
        };
        let _first = tasks.spawn_local(list());
        let mut write = tasks.spawn_local(ask(Method::POST));
        let mut second = None;
        for step in &order {
            if step.ends_with("the second") && second.is_none() {
                second = Some(tasks.spawn_local(list()));
            }
            upstream.steps.send_modify(|steps| steps.push(step));
            settled().await;
            if write.is_finished() {
                // Whoever asks from now on must see it: whatever is kept, and whatever is under way.
                upstream.steps.send_modify(|steps| {
                    steps.extend([
                        "reads for the second",
                        "answers the second",
                        "reads for the first",
                        "answers the first",
                    ]);
                });
                assert_eq!(list().await, "1", "{order:?}");
            }
        }
        (&mut write).await.expect("no panic").expect("answered");
        assert_eq!(list().await, "1", "{order:?}");
    }
}

/// What the stand-in below is asked, and what its list says.
#[derive(Clone, Default)]
struct Written {
    value: Arc<AtomicU64>,
    go_on: Arc<Notify>,
}

impl Written {
    /// A list, or a write that `applies` when it is told to go on.
    fn service(&self, layer: &CacheLayer<MemoryPages, MemoryLimits>, streams: bool) -> impl Asked {
        let written = self.clone();
        let inner = service_fn(move |exchange: Exchange<Permitted>| {
            let written = written.clone();
            async move {
                exchange.journal.attempt();
                if *exchange.stage.permit.method() == Method::GET {
                    return Ok(Response::new(ResponseBody::full(
                        written.value.load(Ordering::SeqCst).to_string(),
                    )));
                }
                if streams {
                    let body = RequestBody::Held("{}".into());
                    let coming = Outbound::new(Box::new(body), None, Duration::from_secs(60), None);
                    return Ok(Response::new(ResponseBody::streaming(coming)));
                }
                exchange.journal.written(true);
                written.go_on.notified().await;
                written.value.store(1, Ordering::SeqCst);
                Ok(Response::new(ResponseBody::full("{}")))
            }
        });
        layer.layer(inner)
    }
}

trait Asked: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + Clone {}

impl<S> Asked for S where
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + Clone
{
}

async fn text(asked: impl Future<Output = Result<Response<ResponseBody>, Rejection>>) -> String {
    let body = asked.await.expect("answered").into_body().collect().await.expect("whole").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_list_fetched_while_the_answer_to_a_write_is_still_coming_is_not_kept_beyond_it() {
    let (written, layer) = (Written::default(), layer());
    let service = written.service(&layer, true);
    let ask = |method| service.clone().oneshot(permitted(method, LIST, 1));
    let coming = ask(Method::POST).await.expect("a head");
    assert_eq!(text(ask(Method::GET)).await, "0");
    written.value.store(1, Ordering::SeqCst);
    assert_eq!(text(ask(Method::GET)).await, "0", "it was kept");
    coming.into_body().collect().await.expect("whole");
    assert_eq!(text(ask(Method::GET)).await, "1");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_write_whose_caller_has_left_shows_as_soon_as_upstream_has_answered_it() {
    let (written, layer) = (Written::default(), layer());
    let service = written.service(&layer, false);
    let ask = |method| service.clone().oneshot(permitted(method, LIST, 1));
    timeout_at(Instant::now() + Duration::from_secs(1), ask(Method::POST)).await.expect_err("it left");
    assert_eq!(text(ask(Method::GET)).await, "0");
    written.go_on.notify_one();
    while !layer.0.tasks.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(text(ask(Method::GET)).await, "1");
}

/// A client that has had more than its share and one that has had nothing.
const GREEDY: u64 = 1;
const FRUGAL: u64 = 2;

/// A list that all may have but the greedy client, whose turn comes when it is `told`, or never.
struct Scarce {
    layer: CacheLayer<MemoryPages, MemoryLimits>,
    queue: Arc<Queue>,
    told: Arc<Notify>,
    asked: Arc<Mutex<Vec<u64>>>,
}

impl Scarce {
    fn new() -> Self {
        let queue = Arc::new(Queue::new(Duration::from_secs(600), Arc::default()));
        let rule = Environment::example("test").rule();
        queue.ask(ClientKey(FRUGAL), rule);
        for _ in 0..rule.requests {
            queue.spend(ClientKey(GREEDY));
        }
        Self { layer: layer(), queue, told: Arc::default(), asked: Arc::default() }
    }

    async fn ask(&self, client: u64) -> Result<String, Rejection> {
        let (told, asked) = (self.told.clone(), self.asked.clone());
        let inner = service_fn(move |exchange: Exchange<Permitted>| {
            let (told, asked) = (told.clone(), asked.clone());
            async move {
                let ClientKey(client) = exchange.stage.client;
                asked.lock().expect("unpoisoned").push(client);
                if client == FRUGAL {
                    return Ok(Response::new(ResponseBody::full("a page")));
                }
                told.notified().await;
                Err(Rejection::RateLimited { limit: Limit::Environment, wait: Duration::from_secs(60) })
            }
        });
        let exchange = waiting(Method::GET, LIST, client, &self.queue);
        let answer = self.layer.layer(inner).oneshot(exchange).await?;
        let body = answer.into_body().collect().await.expect("whole").to_bytes();
        Ok(String::from_utf8(body.to_vec()).expect("text"))
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().expect("unpoisoned").clone()
    }
}

async fn settled() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn who_has_a_better_place_does_not_wait_behind_another_and_brings_it_the_page() {
    let (scarce, tasks) = (Rc::new(Scarce::new()), TaskTracker::new());
    let ask = |client| {
        let scarce = scarce.clone();
        tasks.spawn_local(async move { scarce.ask(client).await })
    };
    let greedy = ask(GREEDY);
    settled().await;
    let bounds = Bounds { all: 10, per_client: 10 };
    let place = scarce.queue.enter(ClientKey(GREEDY), Lane::Above, bounds).expect("a place");
    assert_eq!(scarce.ask(FRUGAL).await.ok().as_deref(), Some("a page"));
    assert_eq!(greedy.await.expect("no panic").ok().as_deref(), Some("a page"));
    settled().await;
    assert!(scarce.layer.0.tasks.is_empty(), "nobody waits for its turn any more");
    assert_eq!(scarce.asked(), [GREEDY, FRUGAL]);
    drop(place);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_refusal_is_for_those_who_have_no_better_place_than_whom_it_was_for() {
    let (scarce, tasks) = (Rc::new(Scarce::new()), TaskTracker::new());
    let ask = |client| {
        let scarce = scarce.clone();
        tasks.spawn_local(async move { scarce.ask(client).await })
    };
    let asked = [GREEDY, GREEDY, FRUGAL].map(ask);
    settled().await;
    assert_eq!(scarce.asked(), [GREEDY], "nobody stands in the queue: its turn may be now");
    scarce.told.notify_one();
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.expect("no panic").is_ok());
    }
    assert_eq!(answers, [false, false, true]);
    assert_eq!(scarce.asked(), [GREEDY, FRUGAL]);
}
