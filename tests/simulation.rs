//! Budgets under demand on a virtual clock: a smaller form of `cargo bench --bench budgets`, and how clients share.

#![cfg(test)]

#[path = "support/browsing.rs"]
mod browsing;
#[path = "support/partitions.rs"]
mod partitions;
#[path = "support/redis.rs"]
#[expect(dead_code, reason = "other tests need the rest")]
mod redis_server;
#[path = "support/simulation.rs"]
mod simulation;
#[path = "support/virtual_clock.rs"]
mod virtual_clock;
#[path = "support/virtual_redis.rs"]
#[expect(dead_code, reason = "other tests need the rest")]
mod virtual_redis;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use metorial_proxy::domain::quota::{Algorithm, Quota};
use metorial_proxy::mock::Algorithm as Counting;
use metorial_proxy::time::{Instant, sleep};
use simulation::{Demand, Outcome, Proxy, Scenario, run};
use tokio_util::task::TaskTracker;
use virtual_clock::on_a_virtual_clock;

const SCENARIO: Scenario = Scenario {
    quota: Quota::DEVELOPMENT,
    egress: false,
    algorithm: Algorithm::Window,
    upstream: Counting::Trailing,
    tells: false,
    demand: Demand::Backlog,
    windows: 12,
    seed: 1,
};

/// That nothing was refused upstream, and next to nothing of the budget was left.
#[track_caller]
fn assert_good(scenario: Scenario, outcome: Outcome) {
    assert_eq!(outcome.tripped, 0, "{scenario:?}: {outcome:?}");
    assert!(outcome.share() >= 0.98, "{scenario:?}: {outcome:?}");
}

#[test]
fn a_development_budget_never_trips_an_api_however_it_counts_and_is_used_up() {
    for demand in Demand::ALL {
        for upstream in [Counting::Trailing, Counting::Aligned, Counting::Lazy, Counting::Bucket] {
            let scenario = Scenario { demand, upstream, ..SCENARIO };
            assert_good(scenario, run(scenario));
        }
    }
}

#[test]
fn nor_does_the_budget_of_our_address_whose_window_is_hardly_longer_than_the_networks_delays() {
    let scenario = Scenario { quota: Quota::PER_IP, egress: true, windows: 4, ..SCENARIO };
    for demand in [Demand::Bursts, Demand::Poisson] {
        assert_good(scenario, run(Scenario { demand, ..scenario }));
    }
    // At the end of so few windows what still waits in turns counts for more.
    let outcome = run(scenario);
    assert!(outcome.tripped == 0 && outcome.share() >= 0.95, "{outcome:?}");
}

#[test]
fn an_api_that_tells_its_count_is_believed_without_loss() {
    for demand in Demand::ALL {
        let scenario = Scenario { tells: true, demand, windows: 4, ..SCENARIO };
        assert_good(scenario, run(scenario));
    }
}

#[test]
fn a_production_budget_never_trips_the_api() {
    let scenario = Scenario { quota: Quota::PRODUCTION, demand: Demand::Bursts, windows: 3, ..SCENARIO };
    assert_good(scenario, run(scenario));
}

#[test]
fn a_token_bucket_of_the_same_figures_trips_it() {
    let outcome = run(Scenario { algorithm: Algorithm::TokenBucket, ..SCENARIO });
    assert!(outcome.tripped > 50, "{outcome:?}");
}

#[test]
fn a_run_depends_on_its_scenario_alone() {
    let scenario = Scenario { demand: Demand::Poisson, windows: 4, ..SCENARIO };
    assert_eq!(run(scenario), run(scenario));
    assert_ne!(run(scenario), run(Scenario { seed: 2, ..scenario }));
}

#[test]
fn a_hundred_requests_are_enough_for_twenty_who_browse_ten_lists() {
    let [without, plainly, with] = [browsing::without(7), browsing::plainly(7), browsing::with(7)];
    assert!(
        without.answered() < 0.1 && plainly.answered() < 0.7,
        "{} {}",
        without.answered(),
        plainly.answered()
    );
    assert!(with.answered() >= 0.99, "{} refused", with.refused);
    assert_eq!(with.tripped, 0);
    assert!(plainly.mean_age() < 5.0 && with.worst_age() <= 660, "{}", with.worst_age());
}

#[test]
fn beside_one_that_always_has_forty_waiting_those_who_ask_for_little_are_served() {
    let quota = Quota { requests: 200, window: Duration::from_secs(4) };
    let (greedy, modest, asked) = on_a_virtual_clock(1, || async {
        let proxy = Proxy::new(Scenario { quota, ..SCENARIO }, &mut fastrand::Rng::with_seed(1));
        let [greedy, modest, asked] = [0; 3].map(|_| Arc::new(AtomicU64::new(0)));
        let (end, tasks) = (Instant::now() + Duration::from_secs(40), TaskTracker::new());
        for _ in 0..40 {
            let (proxy, greedy) = (proxy.clone(), greedy.clone());
            tasks.spawn_local(async move {
                while Instant::now() < end {
                    match proxy.ask(0).await {
                        StatusCode::OK => drop(greedy.fetch_add(1, Ordering::Relaxed)),
                        _ => sleep(Duration::from_millis(100)).await,
                    }
                }
            });
        }
        for client in 1..=10 {
            let (proxy, modest, asked, spawner) =
                (proxy.clone(), modest.clone(), asked.clone(), tasks.clone());
            tasks.spawn_local(async move {
                sleep(Duration::from_millis(100) * client).await;
                while Instant::now() < end {
                    let (proxy, modest) = (proxy.clone(), modest.clone());
                    asked.fetch_add(1, Ordering::Relaxed);
                    spawner.spawn_local(async move {
                        if proxy.ask(client).await == StatusCode::OK {
                            modest.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    sleep(Duration::from_secs(1)).await;
                }
            });
        }
        tasks.close();
        tasks.wait().await;
        assert_eq!(proxy.tripped(), 0);
        [greedy, modest, asked].map(|count| count.load(Ordering::Relaxed))
    })
    .into();
    assert!(modest * 100 >= asked * 95, "{modest} of {asked}");
    // Ten windows and the one that follows.
    assert!((greedy + modest) * 100 >= 11 * 200 * 75, "{greedy} and {modest}");
}

/// Four replicas share a budget while the network between them breaks.
mod replicas {
    use super::*;
    use crate::partitions::{Outage, Outcome, Scenario, Scheme, Spread, run};

    const WINDOW: Duration = Duration::from_secs(20);
    const SCENARIO: Scenario = Scenario {
        scheme: Scheme::Shared,
        quota: Quota { requests: 200, window: WINDOW },
        load: 3.0,
        spread: Spread::Even,
        outage: Outage::None,
        lasts: Duration::from_secs(30),
        tells: false,
        windows: 6,
        seed: 1,
    };

    #[track_caller]
    fn assert_good(scenario: Scenario, least: f64) -> Outcome {
        let outcome = run(scenario);
        assert_eq!(outcome.tripped, 0, "{scenario:?}: {outcome:?}");
        assert!(outcome.share() >= least, "{scenario:?}: {outcome:?} {}", outcome.share());
        outcome
    }

    #[test]
    fn one_budget_is_used_up_by_all_together_however_they_are_asked() {
        for spread in [Spread::Even, Spread::Skewed] {
            let outcome = assert_good(Scenario { spread, ..SCENARIO }, 0.95);
            assert!(outcome.exchanges_per_call() < 3.0, "{}", outcome.exchanges_per_call());
        }
    }

    #[test]
    fn what_upstream_tells_takes_nothing_away() {
        assert_good(Scenario { tells: true, ..SCENARIO }, 0.95);
    }

    #[test]
    fn no_outage_spends_more_than_there_is_and_most_is_used() {
        let outages = [Outage::Server, Outage::DataLost, Outage::Some(1), Outage::Some(3), Outage::Killed];
        for outage in outages {
            for (spread, lasts, tells) in [(Spread::Even, 50, true), (Spread::Skewed, 5, false)] {
                let lasts = Duration::from_secs(lasts);
                assert_good(Scenario { outage, spread, lasts, tells, ..SCENARIO }, 0.80);
            }
        }
    }

    #[test]
    fn nor_does_one_fault_after_another() {
        for seed in 0..4 {
            let outcome = run(Scenario { outage: Outage::Random, tells: seed % 2 == 0, seed, ..SCENARIO });
            assert_eq!(outcome.tripped, 0, "{seed}: {outcome:?}");
            assert!(outcome.share() >= 0.6, "{seed}: {outcome:?} {}", outcome.share());
        }
    }

    #[test]
    fn a_part_of_it_each_or_all_of_it_each_would_not_do() {
        let split = run(Scenario { scheme: Scheme::Split, spread: Spread::Skewed, ..SCENARIO });
        assert!(split.share() < 0.7, "{split:?}");
        let alone = run(Scenario { scheme: Scheme::Alone, ..SCENARIO });
        assert!(alone.tripped > 100, "{alone:?}");
    }

    #[test]
    fn a_run_depends_on_its_scenario_alone() {
        let scenario = Scenario { outage: Outage::Some(2), windows: 4, ..SCENARIO };
        assert_eq!(run(scenario), run(scenario));
    }
}
