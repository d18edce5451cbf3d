//! Twenty clients browse ten lists for ten minutes on a development budget: what they get from the API itself, from a plain
//! cache, and from this proxy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use http::header::AGE;
use metorial_proxy::domain::quota::{Algorithm, Quota};
use metorial_proxy::mock::{Algorithm as Counting, Counter};
use metorial_proxy::time::{Instant, Timestamp, sleep_until};
use tokio_util::task::TaskTracker;

use crate::simulation::{Proxy, Scenario};
use crate::virtual_clock::on_a_virtual_clock;

const CLIENTS: u32 = 20;
const LISTS: usize = 10;
const MINUTES: u64 = 10;
/// Between two requests of a client, on average.
const PAUSE: f64 = 5.0;
/// Freshness of the plain cache, and of this proxy's pages.
const TTL: Duration = Duration::from_secs(5);

/// What became of all requests.
#[derive(Debug, Default, Clone)]
pub(crate) struct Browsed {
    /// Ages of the answers, in seconds.
    pub(crate) ages: Vec<u64>,
    /// Requests without an answer.
    pub(crate) refused: u64,
    /// Requests that the API refused.
    pub(crate) tripped: u64,
}

impl Browsed {
    pub(crate) fn answered(&self) -> f64 {
        self.ages.len() as f64 / (self.ages.len() as u64 + self.refused) as f64
    }

    pub(crate) fn mean_age(&self) -> f64 {
        self.ages.iter().sum::<u64>() as f64 / self.ages.len().max(1) as f64
    }

    pub(crate) fn worst_age(&self) -> u64 {
        self.ages.iter().copied().max().unwrap_or(0)
    }

    fn refused(&mut self) {
        self.refused += 1;
        self.tripped += 1;
    }
}

/// When who asks for which list, in order: the same for all three. Popular lists are asked for more often.
fn visits(seed: u64) -> Vec<(Duration, u32, usize)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut visits = Vec::new();
    for client in 0..CLIENTS {
        let mut at = PAUSE * random.f64();
        while at < (MINUTES * 60) as f64 {
            let list = (random.f64() * random.f64() * LISTS as f64) as usize;
            visits.push((Duration::from_secs_f64(at), client, list));
            at += PAUSE * -(1.0 - random.f64()).ln();
        }
    }
    visits.sort();
    visits
}

/// No proxy: each request is the API's.
pub(crate) fn without(seed: u64) -> Browsed {
    let (mut api, mut browsed) = (Counter::new(Counting::Trailing), Browsed::default());
    for (at, _, _) in visits(seed) {
        match api.take(Timestamp::default() + at, Quota::DEVELOPMENT).allowed {
            true => browsed.ages.push(0),
            false => browsed.refused(),
        }
    }
    browsed
}

/// A cache that knows nothing but how long a page is fresh.
pub(crate) fn plainly(seed: u64) -> Browsed {
    let (mut api, mut browsed) = (Counter::new(Counting::Trailing), Browsed::default());
    let mut kept: HashMap<usize, Duration> = HashMap::new();
    for (at, _, list) in visits(seed) {
        match kept.get(&list).map(|fetched| at - *fetched) {
            Some(age) if age < TTL => browsed.ages.push(age.as_secs()),
            _ if api.take(Timestamp::default() + at, Quota::DEVELOPMENT).allowed => {
                kept.insert(list, at);
                browsed.ages.push(0);
            }
            _ => browsed.refused(),
        }
    }
    browsed
}

/// This proxy, with its defaults.
pub(crate) fn with(seed: u64) -> Browsed {
    let scenario = Scenario {
        quota: Quota::DEVELOPMENT,
        egress: false,
        algorithm: Algorithm::Window,
        upstream: Counting::Trailing,
        tells: true,
        demand: crate::simulation::Demand::Poisson,
        windows: 1,
        seed,
    };
    on_a_virtual_clock(seed, || async move {
        let proxy = Proxy::new(scenario, &mut fastrand::Rng::with_seed(seed));
        let (start, browsed, tasks) =
            (Instant::now(), Arc::new(Mutex::new(Browsed::default())), TaskTracker::new());
        for (at, client, list) in visits(seed) {
            sleep_until(start + at).await;
            let (proxy, browsed) = (proxy.clone(), browsed.clone());
            tasks.spawn_local(async move {
                let answer = proxy.get(client, &format!("/providers?limit={}", list + 1)).await;
                let age =
                    answer.headers().get(AGE).and_then(|age| age.to_str().ok()?.parse().ok()).unwrap_or(0);
                let mut browsed = browsed.lock().expect("unpoisoned");
                match answer.status() {
                    StatusCode::OK => browsed.ages.push(age),
                    _ => browsed.refused += 1,
                }
            });
        }
        tasks.close();
        tasks.wait().await;
        let mut browsed = browsed.lock().expect("unpoisoned").clone();
        browsed.tripped = proxy.tripped();
        browsed
    })
}
