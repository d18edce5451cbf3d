use std::sync::Mutex;

use tokio_util::task::TaskTracker;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::domain::quota::{Plan, Quota};
use crate::domain::rotation::Which;
use crate::exchange::Delivery;
use crate::exchange::testing::waiting;
use crate::rejection::UpstreamFault;
use crate::store::limits::MemoryLimits;
use crate::time::sleep;

/// A budget layer over an upstream that does as it is told.
struct Bench {
    limits: Arc<MemoryLimits>,
    queue: Arc<Queue>,
    egress: Arc<Queue>,
    sent: Arc<Mutex<Vec<u64>>>,
    answer: fn() -> Result<Response<ResponseBody>, Failure>,
    /// How long an answer takes.
    takes: Duration,
    /// Whether a request is written when it is sent.
    writes: bool,
}

fn queue(seconds: u64) -> Arc<Queue> {
    Arc::new(Queue::new(Duration::from_secs(seconds), Arc::default()))
}

fn ok() -> Result<Response<ResponseBody>, Failure> {
    Ok(Response::new(ResponseBody::empty()))
}

const RETRY: Retry = Retry {
    max_attempts: 4,
    initial_backoff: Duration::from_millis(250),
    max_backoff: Duration::from_secs(10),
    max_queue_wait: Duration::from_secs(5),
    max_queue: 3,
    max_queue_per_client: 2,
    budget: 0.1,
};

impl Bench {
    /// `requests` per ten minutes; the egress budget is out of the way.
    fn new(requests: u32) -> Self {
        let limits = Arc::new(MemoryLimits::default());
        let plan = |requests, seconds| Plan::window(Quota { requests, window: Duration::from_secs(seconds) });
        limits.budget("test", &[], plan(requests, 600));
        limits.budget(EGRESS, &[], plan(1000, 10));
        Self {
            limits,
            queue: queue(600),
            egress: queue(10),
            sent: Arc::default(),
            answer: ok,
            takes: Duration::ZERO,
            writes: true,
        }
    }

    /// The answer to one request of `client`.
    fn ask(&self, client: u64) -> impl Future<Output = Result<Response<ResponseBody>, Rejection>> + 'static {
        let metrics = Arc::new(Metrics::new());
        let egress =
            Egress { budget: BudgetId(1), window: Duration::from_secs(10), queue: self.egress.clone() };
        let layer = BudgetLayer::new(self.limits.clone(), egress, RETRY, Duration::from_secs(60), metrics);
        let (sent, answer, takes, writes) = (self.sent.clone(), self.answer, self.takes, self.writes);
        let inner = service_fn(move |exchange: Exchange<Permitted>| {
            sent.lock().expect("unpoisoned").push(exchange.stage.client.0);
            exchange.journal.written(writes);
            async move {
                if !takes.is_zero() {
                    sleep(takes).await;
                }
                answer()
            }
        });
        let exchange = waiting(http::Method::GET, "/provider-deployments", client, &self.queue);
        async move { layer.layer(inner).oneshot(exchange).await.map_err(|failure| failure.rejection) }
    }

    /// Its status only.
    fn send(&self, client: u64) -> impl Future<Output = Result<u16, Rejection>> + 'static {
        let answer = self.ask(client);
        async move { answer.await.map(|response| response.status().as_u16()) }
    }

    fn sent(&self) -> Vec<u64> {
        self.sent.lock().expect("unpoisoned").clone()
    }

    fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn left(&self) -> u32 {
        self.limits.snapshot(BudgetId(0), 0).remaining
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_cannot_be_served_in_time_is_refused_at_once_with_the_true_wait() {
    let bench = Bench::new(1);
    sleep(Duration::from_secs(10)).await;
    let spent_at = Timestamp::now();
    assert_eq!(bench.send(1).await, Ok(200));
    let Err(Rejection::RateLimited { limit: Limit::Environment, wait }) = bench.send(1).await else {
        panic!("not refused");
    };
    assert_eq!(Timestamp::now(), spent_at, "nobody waited");
    sleep(wait).await;
    assert_eq!(bench.send(2).await, Ok(200), "and the wait was exact");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn those_who_wait_are_served_in_order_of_arrival() {
    let tasks = TaskTracker::new();
    let bench = Bench::new(2);
    for client in 1..=2 {
        assert_eq!(bench.send(client).await, Ok(200));
        sleep(Duration::from_secs(1)).await;
    }
    sleep(Duration::from_secs(598)).await;
    let first = tasks.spawn_local(bench.send(4));
    tokio::task::yield_now().await;
    let second = tasks.spawn_local(bench.send(5));
    tokio::task::yield_now().await;
    assert_eq!(bench.waiting(), 2);
    assert_eq!(first.await.expect("ends"), Ok(200));
    assert_eq!(second.await.expect("ends"), Ok(200));
    assert_eq!(bench.sent(), [1, 2, 4, 5]);
    assert_eq!(bench.waiting(), 0);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_caller_that_leaves_frees_its_place_and_spends_nothing() {
    let tasks = TaskTracker::new();
    let bench = Bench::new(1);
    assert_eq!(bench.send(1).await, Ok(200));
    sleep(Duration::from_secs(599)).await;
    let waiting = tasks.spawn_local(bench.send(2));
    tokio::task::yield_now().await;
    assert_eq!(bench.waiting(), 1);
    waiting.abort();
    assert!(waiting.await.is_err());
    assert_eq!(bench.waiting(), 0);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.left(), 1);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_queue_is_bounded_in_all_and_per_client() {
    let tasks = TaskTracker::new();
    let bench = Bench::new(5);
    for client in 0..5 {
        assert_eq!(bench.send(client).await, Ok(200));
    }
    sleep(Duration::from_secs(598)).await;
    let mut waiting = Vec::new();
    for client in [1, 1] {
        waiting.push(tasks.spawn_local(bench.send(client)));
        tokio::task::yield_now().await;
    }
    assert!(bench.send(1).await.is_err(), "one client's share is taken");
    waiting.push(tasks.spawn_local(bench.send(2)));
    tokio::task::yield_now().await;
    assert_eq!(bench.waiting(), 3);
    assert!(bench.send(3).await.is_err(), "and so is the queue");
    for waiting in waiting {
        assert_eq!(waiting.await.expect("ends"), Ok(200));
    }
}

fn failed(delivery: Delivery) -> Result<Response<ResponseBody>, Failure> {
    Err(Failure { rejection: Rejection::Upstream(UpstreamFault::ConnectionTerminated), delivery, body: None })
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn only_what_surely_was_not_sent_is_given_back() {
    let mut bench = Bench::new(2);
    bench.answer = || failed(Delivery::Never);
    assert!(bench.send(1).await.is_err());
    assert_eq!(bench.left(), 2);
    bench.answer = || failed(Delivery::Possible);
    assert!(bench.send(1).await.is_err());
    assert_eq!(bench.left(), 1);
}

fn answered(status: u16, fields: &[(&'static str, &'static str)]) -> Result<Response<ResponseBody>, Failure> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    for (name, value) in fields {
        response.headers_mut().append(*name, value.parse().expect("a value"));
    }
    Ok(response)
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn one_429_stops_everyone_for_as_long_as_it_says() {
    let mut bench = Bench::new(100);
    bench.answer = || answered(429, &[("retry-after", "30"), ("ratelimit-limit", "100")]);
    assert_eq!(bench.send(1).await, Ok(429));
    bench.answer = ok;
    let shut = Rejection::RateLimited { limit: Limit::Upstream, wait: Duration::from_secs(30) };
    assert_eq!(bench.send(2).await, Err(shut));
    assert_eq!(bench.sent(), [1], "nothing goes upstream meanwhile");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.send(2).await, Ok(200));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_429_of_the_edge_shuts_our_address_and_absurd_hints_are_clamped() {
    let mut bench = Bench::new(100);
    bench.answer = || answered(429, &[("retry-after", "999999999")]);
    assert_eq!(bench.send(1).await, Ok(429));
    let views = bench.limits.views();
    assert_eq!(views[0].gate, Duration::ZERO, "the environment's own budget is not to blame");
    assert_eq!(views[1].gate, Duration::from_secs(10), "no longer than its window");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn upstreams_count_is_heard_and_not_passed_on() {
    let mut bench = Bench::new(100);
    bench.answer = || {
        answered(
            200,
            &[
                ("ratelimit-limit", "100"),
                ("ratelimit-remaining", "40"),
                ("ratelimit-reset", "60"),
                ("x", "y"),
            ],
        )
    };
    let response = bench.ask(1).await.expect("answered");
    assert_eq!(response.headers().keys().collect::<Vec<_>>(), ["x"]);
    assert_eq!(bench.left(), 40);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_greedy_client_leaves_the_reserve_to_those_who_come() {
    let bench = Bench::new(100);
    assert_eq!(bench.send(2).await, Ok(200), "a second client is known");
    let mut greedy = 0;
    while bench.send(1).await.is_ok() {
        greedy += 1;
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(greedy, 79, "all but the reserve and the one that was spent");
    for newcomer in 10..30 {
        assert_eq!(bench.send(newcomer).await, Ok(200));
    }
    assert_eq!(bench.left(), 0);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_a_client_gets_back_it_has_not_spent_however_long_its_draw_took() {
    let bench = Bench::new(100);
    let asks = Asks::of(&waiting(http::Method::GET, "/provider-deployments", 1, &bench.queue), BudgetId(1));
    for client in [ClientKey(1), ClientKey(2)] {
        bench.queue.ask(client, asks.rule());
    }
    let mut drawn = Vec::new();
    for _ in 0..60 {
        let draw = Draw { budgets: asks.budgets, ahead: 0, held_back: 0 };
        drawn.push(bench.limits.acquire(draw).await.expect("there is enough"));
    }
    sleep(Duration::from_secs(100)).await;
    for charge in drawn {
        Attempt::begin(&bench.limits, &asks, charge).unsent();
    }
    assert_eq!(asks.held_back(), 0);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_lone_client_gets_everything() {
    let bench = Bench::new(100);
    for _ in 0..100 {
        assert_eq!(bench.send(1).await, Ok(200));
    }
    assert!(bench.send(1).await.is_err());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_burst_of_one_client_is_counted_before_it_is_answered() {
    let tasks = TaskTracker::new();
    let mut bench = Bench::new(100);
    assert_eq!(bench.send(2).await, Ok(200), "a second client is known");
    bench.takes = Duration::from_secs(1);
    let burst: Vec<_> = (0..100).map(|_| tasks.spawn_local(bench.send(1))).collect();
    let mut served = 0;
    for request in burst {
        served += u32::from(request.await.expect("ends").is_ok());
    }
    assert_eq!(served, 79);
    assert_eq!(bench.send(3).await, Ok(200));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_wait_counts_in_that_less_is_held_back_as_time_passes() {
    let bench = Bench::new(100);
    assert_eq!(bench.send(2).await, Ok(200), "a second client is known");
    sleep(Duration::from_secs(500)).await;
    while bench.send(1).await.is_ok() {}
    // The other is forgotten before any of what was spent comes back.
    let Err(Rejection::RateLimited { wait, .. }) = bench.send(1).await else { panic!("not refused") };
    assert!(wait < Duration::from_secs(250), "{wait:?}");
    sleep(wait - Duration::from_secs(6)).await;
    assert!(bench.send(1).await.is_err(), "no sooner than told, even with five seconds of patience");
    sleep(Duration::from_secs(6)).await;
    assert_eq!(bench.send(1).await, Ok(200));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_caller_that_leaves_before_a_byte_was_written_spends_nothing_and_afterwards_it_does() {
    let tasks = TaskTracker::new();
    for written in [false, true] {
        let mut bench = Bench::new(2);
        assert_eq!(bench.send(1).await, Ok(200));
        (bench.takes, bench.writes) = (Duration::from_secs(1), written);
        let leaving = tasks.spawn_local(bench.send(1));
        tokio::task::yield_now().await;
        assert_eq!((bench.sent().len(), bench.left()), (2, 0));
        leaving.abort();
        assert!(leaving.await.is_err());
        assert_eq!(bench.left(), u32::from(!written), "written: {written}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_was_written_when_its_caller_left_counts_from_when_it_may_have_arrived() {
    let tasks = TaskTracker::new();
    let mut bench = Bench::new(1);
    let plan = Plan::window(Quota { requests: 1, window: Duration::from_secs(10) });
    bench.limits.budget("test", &[], plan);
    bench.takes = Duration::from_secs(3600);
    let leaving = tasks.spawn_local(bench.send(1));
    sleep(Duration::from_millis(100)).await;
    leaving.abort();
    assert!(leaving.await.is_err());
    let told = bench.limits.fits_at(BudgetId(0), 0, 0);
    sleep(Duration::from_millis(600)).await;
    let later = bench.limits.fits_at(BudgetId(0), 0, 0).since(told);
    assert!(later >= Duration::from_millis(500), "{later:?}");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_is_given_back_goes_to_who_waits_at_once() {
    let tasks = TaskTracker::new();
    let mut bench = Bench::new(2);
    assert_eq!(bench.send(1).await, Ok(200));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.send(1).await, Ok(200));
    sleep(Duration::from_secs(597)).await;
    let since = Timestamp::now();
    bench.answer = || failed(Delivery::Never);
    let unsent = tasks.spawn_local(bench.send(1));
    tokio::task::yield_now().await;
    bench.answer = ok;
    let next = tasks.spawn_local(bench.send(2));
    assert!(unsent.await.expect("ends").is_err());
    assert_eq!(next.await.expect("ends"), Ok(200));
    assert!(Timestamp::now().since(since) <= Duration::from_secs(3), "the second slot would have come later");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn when_the_gate_shuts_those_who_cannot_wait_for_it_learn_so_at_once() {
    let tasks = TaskTracker::new();
    let mut bench = Bench::new(2);
    for _ in 0..2 {
        assert_eq!(bench.send(1).await, Ok(200));
    }
    sleep(Duration::from_secs(599)).await;
    let waiting: Vec<_> = (2..4).map(|client| tasks.spawn_local(bench.send(client))).collect();
    tokio::task::yield_now().await;
    let since = Timestamp::now();
    bench.limits.penalise(BudgetId(0), Duration::from_secs(60)).await;
    bench.queue.ring();
    bench.answer = ok;
    for waiting in waiting {
        let refused = waiting.await.expect("ends").expect_err("shut");
        assert!(matches!(refused, Rejection::RateLimited { limit: Limit::Upstream, .. }), "{refused:?}");
    }
    assert_eq!(Timestamp::now(), since, "none of them waited for its slot");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn until_the_first_answer_one_request_asks_alone() {
    let tasks = TaskTracker::new();
    let mut bench = Bench::new(100);
    bench.takes = Duration::from_millis(300);
    // Before this process began, 97 were spent.
    bench.answer = || {
        answered(200, &[("ratelimit-limit", "100"), ("ratelimit-remaining", "2"), ("ratelimit-reset", "60")])
    };
    let all: Vec<_> = (0..10).map(|client| tasks.spawn_local(bench.send(client))).collect();
    sleep(Duration::from_millis(299)).await;
    assert_eq!(bench.sent().len(), 1);
    sleep(Duration::from_millis(2)).await;
    assert_eq!(bench.sent().len(), 3, "and then as many as are left");
    let mut served = 0;
    for request in all {
        served += u32::from(request.await.expect("ends").is_ok());
    }
    assert_eq!(served, 3);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_upstream_that_does_not_answer_the_first_holds_the_others_up_for_a_second_and_then_they_go_slowly()
{
    let tasks = TaskTracker::new();
    let mut bench = Bench::new(100);
    bench.takes = Duration::from_secs(3600);
    let _waiting: Vec<_> = (0..10).map(|client| tasks.spawn_local(bench.send(client))).collect();
    // Three can wait; the others are refused.
    for (milliseconds, sent) in [(999, 1), (2, 2), (1000, 4), (1000, 5)] {
        sleep(Duration::from_millis(milliseconds)).await;
        assert_eq!(bench.sent().len(), sent);
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn without_a_hint_429s_in_a_row_back_off_further_and_those_in_flight_together_are_one() {
    let tasks = TaskTracker::new();
    let mut bench = Bench::new(1000);
    assert_eq!(bench.send(1).await, Ok(200));
    (bench.takes, bench.answer) = (Duration::from_millis(10), || answered(429, &[("ratelimit-limit", "1")]));
    let together: Vec<_> = (0..50).map(|client| tasks.spawn_local(bench.send(client))).collect();
    for request in together {
        assert_eq!(request.await.expect("ends"), Ok(429));
    }
    let gate = || bench.limits.views()[0].gate;
    assert!(gate() <= RETRY.initial_backoff, "fifty at once are one refusal: {:?}", gate());
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        longest = longest.max(gate());
        assert!(gate() <= RETRY.max_backoff);
        sleep(gate()).await;
        assert_eq!(bench.send(1).await, Ok(429));
    }
    assert!(longest > RETRY.initial_backoff * 4, "{longest:?}");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_attempt_that_tells_nothing_of_the_past_leaves_it_to_another_to_ask() {
    for answer in [
        (|| failed(Delivery::Possible)) as fn() -> _,
        || failed(Delivery::KeyRefused(Which::Current)),
        || answered(503, &[]),
    ] {
        let mut bench = Bench::new(100);
        bench.takes = Duration::from_millis(5);
        bench.answer = answer;
        let tasks = TaskTracker::new();
        let _all: Vec<_> = (0..10).map(|client| tasks.spawn_local(bench.send(client))).collect();
        sleep(Duration::from_millis(7)).await;
        assert_eq!(bench.sent().len(), 2, "one after the other");
    }
}
