//! What sharing costs: how long a draw takes with a server on this machine, against one in this process.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use metorial_proxy::config::RedisUrl;
use metorial_proxy::domain::quota::{Plan, Quota};
use metorial_proxy::edge::redis::RedisLink;
use metorial_proxy::edge::tls;
use metorial_proxy::store::limits::{Draw, EGRESS, LimitStore, MemoryLimits, Settings, SharedLimits};
use metorial_proxy::store::link::Names;
use metorial_proxy::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fleet::exchanges;
use crate::redis_server::RedisServer;

/// So large that no draw is refused.
const PLENTY: Quota = Quota { requests: 10_000_000, window: Duration::from_secs(600) };
const DRAWS: usize = 2000;

#[tokio::test]
#[ignore = "prints figures: cargo test --release --test replicas figures -- --ignored --nocapture"]
async fn what_a_draw_takes() {
    println!("| budgets in | draws at once | median | p99 | exchanges per draw |\n|---|---|---|---|---|");
    let server = RedisServer::start();
    let stop = CancellationToken::new();
    for at_once in [1, 8, 64] {
        print("memory", at_once, Arc::new(MemoryLimits::default()), || 0).await;
        let shared = Arc::new(shared(&server, &stop));
        sleep(Duration::from_secs(1)).await;
        print("Redis on this machine", at_once, shared, || exchanges(&server)).await;
    }
    stop.cancel();
}

fn shared(server: &RedisServer, stop: &CancellationToken) -> SharedLimits<RedisLink> {
    let place = RedisUrl {
        tls: false,
        host: "127.0.0.1".into(),
        port: server.port(),
        database: 0,
        username: None,
        password: None,
    };
    let settings = Settings {
        prefix: "figures".into(),
        timeout: Duration::from_secs(1),
        min_replicas: 1,
        egress_group: "egress".into(),
    };
    let channels = vec![Names::new(&settings.prefix).budgets()];
    let link = RedisLink::new(place, tls::store(None).expect("roots"), settings.timeout, channels);
    let link = link.expect("a link");
    let limits = SharedLimits::new(link.clone(), settings);
    let tasks = TaskTracker::new();
    tasks.spawn(link.run(stop.clone()));
    tasks.spawn(limits.clone().run(stop.clone()));
    limits
}

async fn print(name: &str, at_once: usize, limits: Arc<impl LimitStore>, exchanges: impl Fn() -> u64) {
    let plan = Plan::window(PLENTY);
    let budgets = [limits.budget("main", &["main"], plan), limits.budget(EGRESS, &[], plan)];
    sleep(Duration::from_millis(500)).await;
    let before = exchanges();
    let tasks = (0..at_once).map(|_| {
        let limits = limits.clone();
        async move {
            let mut took = Vec::with_capacity(DRAWS / at_once);
            for _ in 0..DRAWS / at_once {
                let start = Instant::now();
                let charge = limits.acquire(Draw { budgets, ahead: 0, held_back: 0 }).await.expect("plenty");
                took.push(start.elapsed());
                limits.settle(charge, None);
                // Others are to have their turn, as between two requests.
                tokio::task::yield_now().await;
            }
            took
        }
    });
    let mut took = join_all(tasks).await.concat();
    let each = (exchanges() - before) as f64 / took.len() as f64;
    took.sort_unstable();
    let [median, p99] = [50, 99].map(|percent| took[(took.len() - 1) * percent / 100]);
    println!("| {name} | {at_once} | {median:?} | {p99:?} | {each:.2} |");
}
