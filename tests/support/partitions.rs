//! Replicas that share a budget through a real Redis server on a virtual clock, while the network between them breaks: what
//! the API would have to refuse, and how much of what it grants is used.
//!
//! The replicas' stores are the proxy's own, scripts included. A run depends on nothing but its scenario.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metorial_proxy::domain::quota::{Plan, Quota};
use metorial_proxy::domain::ratelimit::Observation;
use metorial_proxy::mock::{Algorithm as Counting, Counter};
use metorial_proxy::store::limits::{
    BudgetId, Charge, Draw, EGRESS, LimitStore, Limits, MemoryLimits, Refused, Settings, SharedLimits,
};
use metorial_proxy::time::{Instant, Timestamp, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::virtual_clock::on_a_virtual_clock;
use crate::virtual_redis::{VirtualLink, VirtualRedis};

/// Replicas.
pub(crate) const REPLICAS: usize = 4;

/// How replicas come to a common budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Through the server.
    Shared,
    /// Each has its part, and the server is not asked.
    Split,
    /// Each takes the budget for its own.
    Alone,
}

/// Who asks where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// All replicas alike.
    Even,
    /// 85, 10, 3 and 2 of a hundred.
    Skewed,
}

/// What breaks, after two windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Nothing.
    None,
    /// The server cannot be reached by anybody.
    Server,
    /// The same, and it comes back empty.
    DataLost,
    /// The last so many replicas cannot reach it.
    Some(usize),
    /// The busiest replica is killed, and its callers go to the others.
    Killed,
    /// One fault after another for three windows: a replica is cut off, nobody reaches the server, its data is lost.
    Random,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) scheme: Scheme,
    pub(crate) quota: Quota,
    /// What is asked, as a multiple of the budget.
    pub(crate) load: f64,
    pub(crate) spread: Spread,
    pub(crate) outage: Outage,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// Whether the API tells its count.
    pub(crate) tells: bool,
    /// For so long.
    pub(crate) windows: u32,
    /// Of all that is random.
    pub(crate) seed: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Requests that the API answered.
    pub(crate) served: u64,
    /// Requests that the API refused with 429.
    pub(crate) tripped: u64,
    /// What could have been served by one that knows the API's log.
    pub(crate) possible: u64,
    /// Scripts that the server ran.
    pub(crate) exchanges: u64,
}

impl Outcome {
    /// Served of what was possible.
    pub(crate) fn share(&self) -> f64 {
        self.served as f64 / self.possible.max(1) as f64
    }

    /// Scripts for each request that went upstream.
    pub(crate) fn exchanges_per_call(&self) -> f64 {
        self.exchanges as f64 / (self.served + self.tripped).max(1) as f64
    }
}

struct Replica {
    limits: Arc<Limits<VirtualLink>>,
    link: VirtualLink,
    budgets: [BudgetId; 2],
    stop: CancellationToken,
}

impl Replica {
    fn of(scenario: &Scenario, redis: &VirtualRedis) -> Self {
        let (link, stop) = (redis.link(), CancellationToken::new());
        let mut quota = scenario.quota;
        let limits = match scenario.scheme {
            Scheme::Shared => {
                let settings = Settings {
                    prefix: "partitions".into(),
                    timeout: Duration::from_millis(50),
                    min_replicas: 1,
                    egress_group: "egress".into(),
                };
                let limits = SharedLimits::new(link.clone(), settings);
                TaskTracker::new().spawn(limits.clone().run(stop.clone()));
                Limits::Shared(limits)
            }
            Scheme::Split => {
                quota.requests /= u32::try_from(REPLICAS).expect("few");
                Limits::Memory(MemoryLimits::default())
            }
            Scheme::Alone => Limits::Memory(MemoryLimits::default()),
        };
        let budget = limits.budget("environment:acme", &["acme"], Plan::window(quota));
        let ample = Quota { requests: 10_000_000, window: Duration::from_secs(10) };
        let egress = limits.budget(EGRESS, &[], Plan::window(ample));
        Self { limits: Arc::new(limits), link, budgets: [budget, egress], stop }
    }
}

struct Api {
    scenario: Scenario,
    counter: Counter,
    served: u64,
    tripped: u64,
    random: fastrand::Rng,
}

impl Api {
    /// One way: 5 to 25 ms, and one in a hundred up to 500 ms.
    fn delay(&mut self) -> Duration {
        let longest = if self.random.u32(..100) == 0 { 500 } else { 25 };
        Duration::from_millis(self.random.u64(5..=longest))
    }

    fn answer(&mut self) -> Option<Observation> {
        let verdict = self.counter.take(Timestamp::now(), self.scenario.quota);
        match verdict.allowed {
            true => self.served += 1,
            false => self.tripped += 1,
        }
        self.scenario.tells.then_some(Observation { remaining: verdict.remaining, reset: verdict.reset })
    }
}

/// Runs one scenario.
pub(crate) fn run(scenario: Scenario) -> Outcome {
    on_a_virtual_clock(scenario.seed, || simulate(scenario))
}

async fn simulate(scenario: Scenario) -> Outcome {
    let mut random = fastrand::Rng::with_seed(scenario.seed);
    let redis = VirtualRedis::start(random.u64(..), Duration::from_millis(5));
    let replicas: Vec<Arc<Replica>> =
        (0..REPLICAS).map(|_| Arc::new(Replica::of(&scenario, &redis))).collect();
    // Each has heard of all.
    sleep(Duration::from_secs(3)).await;
    let api = Api {
        scenario,
        counter: Counter::new(Counting::Trailing),
        served: 0,
        tripped: 0,
        random: random.fork(),
    };
    let (api, calls) = (Arc::new(Mutex::new(api)), redis.calls());
    let Quota { requests, window } = scenario.quota;
    let (start, tasks) = (Instant::now(), TaskTracker::new());
    let broken = Arc::new(AtomicU64::new(0));
    let outage = breaks(
        scenario,
        replicas.clone(),
        redis.clone(),
        broken.clone(),
        window * 2 + Duration::from_millis(random.u64(..1000)),
    );
    tasks.spawn(outage);
    let (mut at, mut arrivals) = (Duration::ZERO, Vec::new());
    let end = window * scenario.windows;
    while at < end {
        sleep_until(start + at).await;
        arrivals.push(at);
        let replica = choose(scenario.spread, &mut random, broken.load(Ordering::Relaxed) == 1);
        tasks.spawn(call(replicas[replica].clone(), api.clone(), patience(scenario.quota)));
        let mean = window.as_secs_f64() / (scenario.load * f64::from(requests));
        let gap = 1000.0 * mean * -(1.0 - random.f64()).ln();
        at += Duration::from_millis(gap.round() as u64);
    }
    tasks.close();
    tasks.wait().await;
    replicas.iter().for_each(|replica| replica.stop.cancel());
    let api = api.lock().expect("unpoisoned");
    Outcome {
        served: api.served,
        tripped: api.tripped,
        possible: possible(scenario.quota, &arrivals),
        exchanges: redis.calls() - calls,
    }
}

/// How long a request waits for budget.
fn patience(quota: Quota) -> Duration {
    quota.window / 100
}

fn choose(spread: Spread, random: &mut fastrand::Rng, without_the_first: bool) -> usize {
    loop {
        let replica = match spread {
            Spread::Even => random.usize(..REPLICAS),
            Spread::Skewed => match random.u32(..100) {
                ..85 => 0,
                85..95 => 1,
                95..98 => 2,
                _ => 3,
            },
        };
        if replica > 0 || !without_the_first {
            return replica;
        }
    }
}

async fn call(replica: Arc<Replica>, api: Arc<Mutex<Api>>, patience: Duration) {
    let due = Timestamp::now() + patience;
    let draw = Draw { budgets: replica.budgets, ahead: 0, held_back: 0 };
    let charge = loop {
        let acquired = tokio::select! {
            biased;
            () = replica.stop.cancelled() => return,
            acquired = replica.limits.acquire(draw) => acquired,
        };
        match acquired {
            Ok(charge) => break charge,
            Err(Refused { until, .. }) if until > due => return,
            Err(Refused { until, .. }) => sleep_until(until.to_instant()).await,
        }
    };
    upstream(&replica, &api, charge).await;
}

async fn upstream(replica: &Replica, api: &Mutex<Api>, charge: Charge) {
    let delay = api.lock().expect("unpoisoned").delay();
    sleep(delay).await;
    let (observation, delay) = {
        let mut api = api.lock().expect("unpoisoned");
        (api.answer(), api.delay())
    };
    sleep(delay).await;
    replica.limits.settle(charge, observation);
}

async fn breaks(
    scenario: Scenario,
    replicas: Vec<Arc<Replica>>,
    redis: VirtualRedis,
    killed: Arc<AtomicU64>,
    after: Duration,
) {
    sleep(after).await;
    match scenario.outage {
        Outage::None => {}
        Outage::Server | Outage::DataLost => {
            redis.set_down(true);
            sleep(scenario.lasts).await;
            if scenario.outage == Outage::DataLost {
                redis.forget();
            }
            redis.set_down(false);
        }
        Outage::Some(n) => {
            let cut = |cut: bool| replicas.iter().rev().take(n).for_each(|replica| replica.link.set_cut(cut));
            cut(true);
            sleep(scenario.lasts).await;
            cut(false);
        }
        Outage::Killed => {
            replicas[0].stop.cancel();
            killed.store(1, Ordering::Relaxed);
        }
        Outage::Random => {
            let mut random = fastrand::Rng::with_seed(scenario.seed);
            let end = Instant::now() + scenario.quota.window * 3;
            while Instant::now() < end {
                let lasts = |random: &mut fastrand::Rng, most: Duration| {
                    // As often some milliseconds as some seconds.
                    Duration::from_millis((most.as_millis() as f64).powf(random.f64()) as u64)
                };
                match random.u32(..3) {
                    0 => {
                        let replica = &replicas[random.usize(..replicas.len())];
                        replica.link.set_cut(true);
                        sleep(lasts(&mut random, scenario.quota.window / 2)).await;
                        replica.link.set_cut(false);
                    }
                    1 => {
                        redis.set_down(true);
                        sleep(lasts(&mut random, scenario.quota.window * 2)).await;
                        redis.set_down(false);
                    }
                    _ => redis.forget(),
                }
                // By then all that came back have told what they know.
                sleep(Duration::from_secs(3) + lasts(&mut random, Duration::from_secs(5))).await;
            }
        }
    }
}

/// Served at the first moment at which the log has room, in order, if that comes within its patience.
pub(crate) fn possible(quota: Quota, arrivals: &[Duration]) -> u64 {
    let mut log: VecDeque<Duration> = VecDeque::new();
    let mut served = 0;
    for arrival in arrivals {
        let full = log.len() >= quota.requests as usize;
        let room =
            if full { log[log.len() - quota.requests as usize] + quota.window } else { Duration::ZERO };
        let at = room.max(*arrival).max(log.back().copied().unwrap_or_default());
        if at - *arrival <= patience(quota) {
            log.push_back(at);
            served += 1;
        }
        while log.len() > quota.requests as usize {
            log.pop_front();
        }
    }
    served
}
