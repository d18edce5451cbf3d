//! The whole pipeline in front of a simulated network and API, on a virtual clock: what becomes of a budget when clients ask
//! for more than there is.
//!
//! Everything but the sockets is the proxy's own, as `server::pipeline_over` builds it for a worker: queue, retry, budget, the
//! lot. The API counts with the stand-in's own counters. A run depends on nothing but its scenario.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use metorial_proxy::body::{Arriving, RequestBody, ResponseBody};
use metorial_proxy::config::{self, Config, Sources, Variables};
use metorial_proxy::domain::quota::{Algorithm, Quota};
use metorial_proxy::exchange::{Arrival, Journal};
use metorial_proxy::mock::{Algorithm as Counting, Counter};
use metorial_proxy::pipeline::Pipeline;
use metorial_proxy::policy::forward::{Answer, Outgoing, Transport, TransportError};
use metorial_proxy::server;
use metorial_proxy::time::{Instant, Timestamp, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use crate::virtual_clock::on_a_virtual_clock;

const SECRET: &str = "metorial_sk_4mXq9Zt2LhVb8RsK1wNcYp6DgJfE3aTu";
/// Client IPs.
const CLIENTS: u32 = 50;
/// `upstream.retry.max_queue_wait`: how long a request waits, here and at the perfect client's.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Four times the budget, evenly.
    Backlog,
    /// The whole budget at once, again and again, after between a twentieth of the window and a little more than one.
    Bursts,
    /// 95 % of the budget, at random.
    Poisson,
}

impl Demand {
    /// Every kind.
    pub(crate) const ALL: [Self; 3] = [Self::Backlog, Self::Bursts, Self::Poisson];

    /// When each request comes, in order.
    fn arrivals(self, quota: Quota, windows: u32, random: &mut fastrand::Rng) -> Vec<Duration> {
        let Quota { requests, window } = quota;
        let end = window * windows;
        let mut arrivals = Vec::new();
        let mut at = Duration::ZERO;
        while at < end {
            match self {
                Self::Backlog => {
                    arrivals.push(at);
                    at += window / (4 * requests);
                }
                Self::Bursts => {
                    arrivals.extend((0..requests).map(|_| at));
                    at += window.mul_f64(0.05 + 1.1 * random.f64());
                }
                Self::Poisson => {
                    arrivals.push(at);
                    let mean = window.as_secs_f64() / (0.95 * f64::from(requests));
                    at += Duration::from_secs_f64(mean * -(1.0 - random.f64()).ln());
                }
            }
        }
        arrivals
    }
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    /// The limit on both sides.
    pub(crate) quota: Quota,
    /// It is that of our address, which the API's edge counts and tells nothing of; else that of an environment.
    pub(crate) egress: bool,
    /// How the proxy counts. Our address is always counted over the window.
    pub(crate) algorithm: Algorithm,
    /// How the API counts.
    pub(crate) upstream: Counting,
    /// Whether the API tells its count (`RateLimit-*`).
    pub(crate) tells: bool,
    /// What is asked.
    pub(crate) demand: Demand,
    /// For so long.
    pub(crate) windows: u32,
    /// Of all that is random.
    pub(crate) seed: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Requests that came.
    pub(crate) offered: u64,
    /// Requests that the API answered.
    pub(crate) served: u64,
    /// Requests that the API refused with 429.
    pub(crate) tripped: u64,
    /// What a client that knows the API's log could have had served of the same requests, were the API to count over a
    /// trailing window.
    pub(crate) possible: u64,
}

impl Outcome {
    /// Served of what was possible.
    pub(crate) fn share(&self) -> f64 {
        self.served as f64 / self.possible.max(1) as f64
    }
}

/// Runs one scenario.
pub(crate) fn run(scenario: Scenario) -> Outcome {
    on_a_virtual_clock(scenario.seed, || async move {
        let mut random = fastrand::Rng::with_seed(scenario.seed);
        let proxy = Proxy::new(scenario, &mut random);
        let arrivals = scenario.demand.arrivals(scenario.quota, scenario.windows, &mut random);
        let (start, served, tasks) = (Instant::now(), Arc::new(AtomicU64::new(0)), TaskTracker::new());
        for at in &arrivals {
            sleep_until(start + *at).await;
            let (proxy, served, client) = (proxy.clone(), served.clone(), random.u32(..CLIENTS));
            tasks.spawn_local(async move {
                if proxy.ask(client).await == StatusCode::OK {
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        tasks.close();
        tasks.wait().await;
        Outcome {
            offered: arrivals.len() as u64,
            served: served.load(Ordering::Relaxed),
            tripped: proxy.tripped(),
            possible: possible(scenario.quota, &arrivals),
        }
    })
}

/// The proxy, and what is behind it.
#[derive(Clone)]
pub(crate) struct Proxy {
    pipeline: Rc<Pipeline>,
    network: Network,
}

impl Proxy {
    /// As the scenario has it; its demand is the caller's business.
    pub(crate) fn new(scenario: Scenario, random: &mut fastrand::Rng) -> Self {
        let network = Network::new(scenario, random);
        let pipeline =
            Rc::new(server::pipeline_over(&config(scenario), network.clone()).expect("a pipeline"));
        Self { pipeline, network }
    }

    /// The answer to one request of a client, for something that no page could stand in for.
    pub(crate) async fn ask(&self, client: u32) -> StatusCode {
        self.get(client, "/providers/pro_0123456789").await.status()
    }

    /// The answer to one request of a client.
    pub(crate) async fn get(&self, client: u32, target: &str) -> Response<ResponseBody> {
        let request = Request::get(target)
            .header("host", "proxy.example.com")
            .header("authorization", "Bearer metorial_pk_simulated")
            .body(RequestBody::Empty)
            .expect("a request");
        let peer = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + client));
        match self.pipeline.serve(Arrival { request: Box::new(request), peer }).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// How many the API has refused.
    pub(crate) fn tripped(&self) -> u64 {
        self.network.0.lock().expect("unpoisoned").tripped
    }
}

/// Served at the first moment at which the log has room, in order, if that comes within its patience.
fn possible(quota: Quota, arrivals: &[Duration]) -> u64 {
    let mut log: VecDeque<Duration> = VecDeque::new();
    let mut served = 0;
    for arrival in arrivals {
        let full = log.len() >= quota.requests as usize;
        let room =
            if full { log[log.len() - quota.requests as usize] + quota.window } else { Duration::ZERO };
        let at = room.max(*arrival).max(log.back().copied().unwrap_or_default());
        if at - *arrival <= PATIENCE {
            log.push_back(at);
            served += 1;
        }
        while log.len() > quota.requests as usize {
            log.pop_front();
        }
    }
    served
}

/// Where nothing limits but what the scenario is about.
fn config(scenario: Scenario) -> Config {
    static FILES: AtomicU64 = AtomicU64::new(0);
    let limit = |quota: Quota| {
        format!("{{ requests = {}, window = \"{}s\" }}", quota.requests, quota.window.as_secs())
    };
    let ample = limit(Quota { requests: 10_000_000, window: Duration::from_secs(1) });
    let (egress, environment) = match scenario.egress {
        true => (limit(scenario.quota), ample.clone()),
        false => (ample.clone(), limit(scenario.quota)),
    };
    let algorithm = match scenario.algorithm {
        Algorithm::Window => "window",
        Algorithm::TokenBucket => "token-bucket",
    };
    let text = format!(
        "[server]\nmax_in_flight = 1000000\n\
         [clients]\nlimit = {ample}\n\
         [upstream]\nurl = \"http://upstream.invalid\"\negress_limit = {egress}\n\
         [upstream.retry]\nmax_queue_wait = \"{}s\"\n\
         [[environments]]\nname = \"simulated\"\nlimit = {environment}\nalgorithm = \"{algorithm}\"\n\
         secret_key = {{ env = \"SECRET\" }}\npublishable_keys = [\"metorial_pk_simulated\"]\n\
         [telemetry]\naccess_log = false\n",
        PATIENCE.as_secs()
    );
    let file = format!("simulation-{}-{}.toml", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file);
    std::fs::write(&file, text).expect("written");
    let env = Variables::from([("SECRET".into(), SECRET.into())]);
    let loaded = config::load(&Sources { file: Some(&file), env: &env });
    std::fs::remove_file(&file).expect("removed");
    loaded.expect("a configuration").config
}

/// The network and the API at its other end.
#[derive(Clone)]
struct Network(Arc<Mutex<Api>>);

struct Api {
    scenario: Scenario,
    counter: Counter,
    /// The API's clock is not ours.
    phase: Duration,
    tripped: u64,
    random: fastrand::Rng,
}

impl Network {
    fn new(scenario: Scenario, random: &mut fastrand::Rng) -> Self {
        let phase = Duration::from_millis(random.u64(..scenario.quota.window.as_millis() as u64));
        let counter = Counter::new(scenario.upstream);
        Self(Arc::new(Mutex::new(Api { scenario, counter, phase, tripped: 0, random: random.fork() })))
    }

    /// One way: 5 to 25 ms, and one in a hundred up to 500 ms.
    fn delay(&self) -> Duration {
        let random = &mut self.0.lock().expect("unpoisoned").random;
        let longest = if random.u32(..100) == 0 { 500 } else { 25 };
        Duration::from_millis(random.u64(5..=longest))
    }
}

impl Api {
    fn answer(&mut self) -> Answer {
        let verdict = self.counter.take(Timestamp::now() + self.phase, self.scenario.quota);
        let status = if verdict.allowed { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
        self.tripped += u64::from(!verdict.allowed);
        let mut response = Response::new(());
        *response.status_mut() = status;
        if self.scenario.tells {
            let reset = verdict.reset.as_secs_f64().ceil() as u64;
            let fields = [
                ("ratelimit-limit", u64::from(self.scenario.quota.requests)),
                ("ratelimit-remaining", u64::from(verdict.remaining)),
                ("ratelimit-reset", reset),
            ];
            response.headers_mut().extend(
                fields.map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from(value))),
            );
        }
        let (head, ()) = response.into_parts();
        Answer { head, body: Arriving::Held(Bytes::new()), lease: None }
    }
}

impl Transport for Network {
    async fn send(&self, _: &mut Outgoing, journal: &Journal) -> Result<Answer, Box<TransportError>> {
        journal.written(true);
        sleep(self.delay()).await;
        let answer = self.0.lock().expect("unpoisoned").answer();
        sleep(self.delay()).await;
        Ok(answer)
    }
}
