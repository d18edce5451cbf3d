//! While all is well: the whole budget is used, wherever the demand is, and the API has nothing to refuse.

use std::time::Duration;

use metorial_proxy::domain::quota::Quota;

use crate::fleet::Fleet;
use crate::load::{EVEN, Load, Outcome, SKEWED};

const QUOTA: Quota = Quota { requests: 200, window: Duration::from_millis(2500) };

async fn run(shares: [f64; 4]) -> Outcome {
    let fleet = Fleet::start(QUOTA, 4).await;
    let load = Load::start(&fleet.mock, QUOTA, fleet.proxies.iter().map(|proxy| proxy.address), &shares);
    fleet.windows(4.05).await;
    load.finish(&fleet.mock).await
}

async fn assert_whole(shares: [f64; 4]) {
    let outcome = run(shares).await;
    outcome.assert_clean();
    assert!(outcome.used >= 0.95, "{outcome:?}");
    assert_eq!(outcome.sum(200), outcome.counted);
}

#[tokio::test]
async fn four_replicas_use_one_budget_and_never_trip_the_api() {
    assert_whole(EVEN).await;
}

#[tokio::test]
async fn nor_do_they_where_nearly_all_of_the_demand_is_on_one_of_them() {
    assert_whole(SKEWED).await;
}
