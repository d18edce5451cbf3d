//! Callers who want more than there is, and what became of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metorial_proxy::domain::quota::Quota;
use metorial_proxy::time::{Instant, sleep, sleep_until};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{Connection, bearing};
use crate::harness::{KEY, Mock};

/// How the demand is spread over four replicas.
pub(crate) const EVEN: [f64; 4] = [0.25; 4];
pub(crate) const SKEWED: [f64; 4] = [0.85, 0.10, 0.03, 0.02];
/// Demand, as a multiple of the budget.
const BACKLOG: f64 = 2.0;

/// Answers, by replica and status; 0 where there was none.
type Answers = BTreeMap<(usize, u16), u64>;

/// Load on several replicas, until it is [finished](Self::finish).
pub(crate) struct Load {
    quota: Quota,
    answers: Arc<Mutex<Answers>>,
    /// When, and how many the API had counted by then.
    counted: Arc<Mutex<Vec<(Instant, u64)>>>,
    /// Where each is; a replica that comes back is somewhere else.
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) answers: Answers,
    /// What the API refused.
    pub(crate) refused: u64,
    /// What the API counted.
    pub(crate) counted: u64,
    /// Share of the budget that was used, in the whole windows after the first.
    pub(crate) used: f64,
}

impl Outcome {
    /// That callers saw answers and refusals of ours alone, and the API had nothing to refuse.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let clean = self.answers.keys().all(|(_, status)| [200, 429].contains(status));
        assert!(clean && self.refused == 0, "{self:?}");
    }

    /// Answers with `status`, of all.
    pub(crate) fn sum(&self, status: u16) -> u64 {
        self.answers.iter().filter(|((_, of), _)| *of == status).map(|(_, n)| n).sum()
    }
}

impl Load {
    /// Twice the budget, so much of it on each.
    pub(crate) fn start(
        mock: &Mock,
        quota: Quota,
        replicas: impl IntoIterator<Item = SocketAddr>,
        shares: &[f64],
    ) -> Self {
        let load = Self {
            quota,
            answers: Arc::default(),
            counted: Arc::default(),
            addresses: Arc::new(Mutex::new(replicas.into_iter().collect())),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        for (at, share) in shares.iter().enumerate() {
            let pace = quota.window.div_f64(f64::from(quota.requests) * BACKLOG * share);
            let ask = ask(at, pace, load.addresses.clone(), load.answers.clone(), load.tasks.clone());
            load.until_stopped(ask);
        }
        let (handle, counted) = (mock.handle.clone(), load.counted.clone());
        load.until_stopped(async move {
            loop {
                lock(&counted).push((Instant::now(), handle.counted()));
                sleep(Duration::from_millis(20)).await;
            }
        });
        load
    }

    fn until_stopped(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// From here on replica `at` is there.
    pub(crate) fn turn_to(&self, at: usize, address: SocketAddr) {
        lock(&self.addresses)[at] = address;
    }

    pub(crate) async fn finish(self, mock: &Mock) -> Outcome {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let (answers, counted) = (lock(&self.answers).clone(), lock(&self.counted));
        // Whole windows: within one the budget is spent as soon as callers ask for it.
        let (begin, end) = (counted[0].0, counted[counted.len() - 1].0);
        let windows = (end - begin).div_duration_f64(self.quota.window).floor() - 1.0;
        let by = |windows: f64| {
            let due = begin + self.quota.window.mul_f64(windows);
            counted[counted.partition_point(|(at, _)| *at < due).min(counted.len() - 1)].1
        };
        let used = (by(1.0 + windows) - by(1.0)) as f64 / (f64::from(self.quota.requests) * windows);
        Outcome { answers, refused: mock.handle.refused(), counted: mock.handle.counted(), used }
    }
}

/// Asks one replica at such a pace, whatever it answers.
async fn ask(
    at: usize,
    pace: Duration,
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    answers: Arc<Mutex<Answers>>,
    tasks: TaskTracker,
) {
    let (mut connection, mut to, mut due): (Option<Connection>, _, _) = (None, None, Instant::now());
    let failed = Arc::new(Mutex::new(false));
    loop {
        let address = lock(&addresses)[at];
        if to != Some(address) || std::mem::take(&mut *lock(&failed)) {
            (connection, to) = (None, Some(address));
        }
        if connection.is_none() {
            connection = match TcpStream::connect(address).await {
                Ok(tcp) => Some(Connection::http2(tcp).await),
                Err(_) => None,
            };
        }
        match &connection {
            None => *lock(&answers).entry((at, 0)).or_default() += 1,
            Some(connection) => {
                let (mut stream, answers, failed) = (connection.stream(), answers.clone(), failed.clone());
                tasks.spawn(async move {
                    let reply = stream.send(bearing(KEY, "/providers?limit=1")).await;
                    *lock(&failed) |= reply.is_err();
                    *lock(&answers).entry((at, reply.map_or(0, |reply| reply.status))).or_default() += 1;
                });
            }
        }
        due += pace;
        sleep_until(due).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
