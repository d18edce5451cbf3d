//! Every outage, short and long, for every way to divide a budget among replicas: the table, and that ours has no 429 in it.

use std::time::Duration;

use metorial_proxy::domain::quota::Quota;

use crate::fleet::{Fleet, api, settings};
use crate::harness::{Proxy, scratch};
use crate::load::{EVEN, Load, Outcome, SKEWED};
use crate::outage::{Outage, pass};
use crate::redis_server::RedisServer;

const QUOTA: Quota = Quota { requests: 200, window: Duration::from_secs(3) };

#[tokio::test]
#[ignore = "takes minutes: tests/run --long"]
async fn the_whole_matrix() {
    println!("| scheme | demand | outage | upstream 429 | used | exchanges per call |");
    println!("|---|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for outage in Outage::ALL {
        for length in [1.0, 7.5] {
            for (demand, shares) in [("even", EVEN), ("skewed", SKEWED)] {
                let flushed_again = outage == Outage::Flushed && length > 1.0;
                if flushed_again || (demand == "skewed" && length == 1.0) {
                    continue;
                }
                let (outcome, exchanges) = run(outage, Duration::from_secs_f64(length), shares).await;
                row("Redis", demand, &format!("{outage:?} {length} s"), &outcome, exchanges);
                let clean = outcome.answers.keys().all(|(_, status)| [200, 429].contains(status));
                if outcome.refused > 0 || !clean || (demand == "even" && outcome.used < 0.8) {
                    wrong.push(format!("{outage:?} for {length} s, {demand}: {outcome:?}"));
                }
            }
        }
    }
    for (scheme, share) in [("memory, N / R each", 4), ("memory, N each", 1)] {
        for (demand, shares) in [("even", EVEN), ("skewed", SKEWED)] {
            row(scheme, demand, "none", &apart(share, &shares).await, 0.0);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn row(scheme: &str, demand: &str, outage: &str, outcome: &Outcome, exchanges: f64) {
    let (refused, used) = (outcome.refused, 100.0 * outcome.used);
    println!("| {scheme} | {demand} | {outage} | {refused} | {used:.1} % | {exchanges:.2} |");
}

async fn run(outage: Outage, length: Duration, shares: [f64; 4]) -> (Outcome, f64) {
    let folder = scratch(&format!("redis-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let folder_name = folder.to_string_lossy().into_owned();
    let options: &[&str] = if outage == Outage::Rewound { &["--dir", &folder_name] } else { &[] };
    let fleet = Fleet::on(RedisServer::with(options), QUOTA, 4).await;
    let load = Load::start(&fleet.mock, QUOTA, fleet.proxies.iter().map(|proxy| proxy.address), &shares);
    fleet.windows(0.5).await;
    if outage == Outage::Rewound {
        fleet.command(&["SAVE"]).await;
    }
    fleet.windows(0.7).await;
    let before = (fleet.exchanges().await, fleet.mock.handle.counted());
    pass(&fleet, outage, length).await;
    let resumed = (fleet.exchanges().await, fleet.mock.handle.counted());
    fleet.windows(2.0).await;
    let after = (fleet.exchanges().await, fleet.mock.handle.counted());
    let outcome = load.finish(&fleet.mock).await;
    std::fs::remove_dir_all(&folder).expect("removed");
    let exchanges = before.0 + after.0 - resumed.0;
    (outcome, exchanges as f64 / (before.1 + after.1 - resumed.1) as f64)
}

/// Replicas that do not share: each has one part of so many.
async fn apart(parts: u32, shares: &[f64; 4]) -> Outcome {
    let mock = api(QUOTA).await;
    let own = Quota { requests: QUOTA.requests / parts, ..QUOTA };
    let proxies: Vec<Proxy> = shares.iter().map(|_| Proxy::start(mock.url(), &settings(own))).collect();
    let load = Load::start(&mock, QUOTA, proxies.iter().map(|proxy| proxy.address), shares);
    metorial_proxy::time::sleep(QUOTA.window * 4).await;
    load.finish(&mock).await
}
