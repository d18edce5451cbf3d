//! Replicas come and go: started, stopped, killed, with or without the server.

use std::future::pending;
use std::time::Duration;

use metorial_proxy::domain::quota::Quota;

use crate::fleet::{Fleet, api, is_partitioned, served, shared};
use crate::harness::{Proxy, SECRET, eventually, file};
use crate::load::{EVEN, Load};
use crate::process::Process;
use crate::redis_server::RedisServer;

/// Nothing of it comes back within a test.
const ONCE: Quota = Quota { requests: 40, window: Duration::from_secs(3600) };

async fn stop(proxy: Proxy) {
    proxy.into_server().drain(Duration::ZERO, Duration::from_secs(10), pending()).await;
}

#[tokio::test]
async fn a_replica_that_stops_leaves_what_it_has_not_used_at_once() {
    let mut fleet = Fleet::start(ONCE, 4).await;
    let stays = fleet.proxies.pop().expect("four");
    assert_eq!(served(fleet.proxies[0].address, 10).await, 10);
    for proxy in std::mem::take(&mut fleet.proxies) {
        stop(proxy).await;
    }
    assert_eq!(served(stays.address, 40).await, 30);
    assert_eq!((stays.status().store.replicas, fleet.mock.handle.refused()), (1, 0));
}

#[tokio::test]
async fn a_replica_that_is_killed_keeps_its_share_for_a_window_and_no_longer() {
    let quota = Quota { requests: 40, window: Duration::from_secs(4) };
    let fleet = Fleet::start(quota, 1).await;
    let stays = &fleet.proxies[0];
    let config = file(fleet.mock.url(), &shared(quota, &fleet.relays[0].url("redis"), ""));
    let arguments = ["run", "--config", config.to_str().expect("text")];
    let mut process = Process::start(&arguments, &[("METORIAL_SECRET_KEY", SECRET)]).expect("a process");
    let address = process.url("proxy").unwrap_or_else(|error| panic!("{error}"));
    let address = address.trim_start_matches("http://").parse().expect("an address");
    eventually("they share", || stays.status().store.replicas == 2).await;
    assert_eq!(served(address, 10).await, 10);
    process.child.kill().expect("killed");
    let rest = served(stays.address, 60).await;
    assert!((10..=30).contains(&rest), "what it spent counts, what it may have spent is kept: {rest}");
    eventually("all is there", || stays.status().environments[0].remaining == 40).await;
    assert_eq!(served(stays.address, 60).await, 40);
    assert_eq!((fleet.mock.handle.refused(), fleet.mock.handle.counted()), (0, 50 + rest as u64));
    std::fs::remove_file(config).expect("removed");
}

#[tokio::test]
async fn replicas_that_are_replaced_one_by_one_never_trip_the_api() {
    let quota = Quota { requests: 120, window: Duration::from_secs(2) };
    let mut fleet = Fleet::start(quota, 4).await;
    let load = Load::start(&fleet.mock, quota, fleet.proxies.iter().map(|proxy| proxy.address), &EVEN);
    fleet.windows(1.0).await;
    for at in 0..4 {
        // As in a rolling update: the new one is there before the old one goes.
        let new = fleet.replica(at);
        eventually("it is one of them", || new.status().store.replicas >= 4).await;
        load.turn_to(at, new.address);
        let old = std::mem::replace(&mut fleet.proxies[at], new);
        fleet.windows(0.1).await;
        stop(old).await;
    }
    fleet.settled().await;
    fleet.windows(1.0).await;
    let outcome = load.finish(&fleet.mock).await;
    outcome.assert_clean();
    assert!(outcome.used >= 0.8, "{outcome:?}");
}

#[tokio::test]
async fn a_replica_that_starts_without_the_server_serves_its_share_and_joins_later() {
    let (mock, mut redis) = (api(ONCE).await, RedisServer::start());
    redis.kill();
    let toml = shared(ONCE, &redis.url(), "store.min_replicas = 4");
    let first = Proxy::start(mock.url(), &toml);
    assert_eq!(served(first.address, 20).await, 10, "a quarter");
    assert!(is_partitioned(&first));
    assert!(redis.restart());
    let second = Proxy::start(mock.url(), &toml);
    for proxy in [&first, &second] {
        eventually("it is connected", || !is_partitioned(proxy)).await;
    }
    eventually("what was spent is known", || second.status().environments[0].remaining == 30).await;
    assert_eq!(served(second.address, 40).await, 30);
    assert_eq!(mock.handle.refused(), 0);
}
