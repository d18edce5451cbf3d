//! What every limit store promises. `suite!(store)` runs it over a backend, on paused time.

use std::time::Duration;

use super::{BudgetId, Draw, LimitStore};
use crate::domain::quota::{Quota, RingPlan};
use crate::domain::ratelimit::Observation;
use crate::time::{Timestamp, sleep};

fn plan(requests: u32, seconds: u64) -> RingPlan {
    RingPlan::of(Quota { requests, window: Duration::from_secs(seconds) })
}

fn draw(budget: BudgetId, egress: BudgetId, ahead: u32) -> Draw {
    Draw { budgets: [budget, egress], ahead, held_back: 0 }
}

pub(crate) async fn a_draw_takes_from_both_budgets_or_from_neither(store: impl LimitStore) {
    let (small, large) = (store.budget("small", plan(2, 600)), store.budget("large", plan(10, 600)));
    assert!(store.acquire(draw(small, large, 0)).await.is_ok());
    assert!(store.acquire(draw(small, large, 0)).await.is_ok());
    let refused = store.acquire(draw(small, large, 0)).await.expect_err("spent");
    assert_eq!((refused.budget, refused.gate), (small, false));
    assert_eq!(store.snapshot(large, 0).remaining, 8, "a refusal charges nothing");
}

pub(crate) async fn a_caller_that_waits_as_long_as_it_was_told_is_served(store: impl LimitStore) {
    let (budget, egress) = (store.budget("b", plan(3, 4)), store.budget("e", plan(1000, 10)));
    for _ in 0..2 {
        assert!(store.acquire(draw(budget, egress, 0)).await.is_ok());
        sleep(Duration::from_millis(333)).await;
    }
    let refused = store.acquire(draw(budget, egress, 0)).await.expect_err("spent");
    sleep(refused.until.since(Timestamp::now())).await;
    assert!(store.acquire(draw(budget, egress, 0)).await.is_ok());
}

pub(crate) async fn those_ahead_are_counted_into_the_wait(store: impl LimitStore) {
    let (budget, egress) = (store.budget("b", plan(2, 600)), store.budget("e", plan(1000, 10)));
    assert!(store.acquire(draw(budget, egress, 0)).await.is_ok());
    sleep(Duration::from_secs(10)).await;
    assert!(store.acquire(draw(budget, egress, 0)).await.is_ok());
    let first = store.acquire(draw(budget, egress, 0)).await.expect_err("spent").until;
    let second = store.acquire(draw(budget, egress, 1)).await.expect_err("spent").until;
    assert_eq!(second.since(first), Duration::from_secs(10));
}

pub(crate) async fn a_refund_gives_back_and_a_penalty_shuts(store: impl LimitStore) {
    let (budget, egress) = (store.budget("b", plan(1, 600)), store.budget("e", plan(1000, 10)));
    let charge = store.acquire(draw(budget, egress, 0)).await.expect("free");
    store.refund(charge).await;
    assert_eq!(store.snapshot(budget, 0).remaining, 1);
    store.penalise(budget, Duration::from_secs(30)).await;
    let refused = store.acquire(draw(budget, egress, 0)).await.expect_err("shut");
    assert!(refused.gate);
    assert_eq!(refused.until.since(Timestamp::now()), Duration::from_secs(30));
    sleep(Duration::from_secs(30)).await;
    assert!(store.acquire(draw(budget, egress, 0)).await.is_ok());
}

pub(crate) async fn what_upstream_counts_more_is_not_handed_out(store: impl LimitStore) {
    let (budget, egress) = (store.budget("b", plan(100, 600)), store.budget("e", plan(1000, 10)));
    assert!(store.acquire(draw(budget, egress, 0)).await.is_ok());
    let observation = Observation { limit: 100, remaining: 40, reset: Duration::from_secs(60) };
    store.observe(budget, observation).await;
    assert_eq!(store.snapshot(budget, 0).remaining, 40);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(store.snapshot(budget, 0).remaining, 99);
}

pub(crate) async fn a_budget_keeps_what_it_spent_under_a_new_plan(store: impl LimitStore) {
    let (budget, egress) = (store.budget("b", plan(100, 600)), store.budget("e", plan(1000, 10)));
    for _ in 0..60 {
        assert!(store.acquire(draw(budget, egress, 0)).await.is_ok());
    }
    assert_eq!(store.budget("b", plan(80, 300)), budget);
    assert_eq!(store.snapshot(budget, 0).remaining, 20);
    assert_eq!(store.views().len(), 2);
    sleep(Duration::from_secs(303)).await;
    assert_eq!(store.snapshot(budget, 0).remaining, 80);
}

pub(crate) async fn what_is_held_back_from_a_caller_is_there_for_others(store: impl LimitStore) {
    let (budget, egress) = (store.budget("b", plan(10, 600)), store.budget("e", plan(1000, 10)));
    let held = Draw { held_back: 2, ..draw(budget, egress, 0) };
    for left in (0..8).rev() {
        assert!(store.acquire(held).await.is_ok());
        assert_eq!(store.snapshot(budget, 2).remaining, left);
    }
    let refused = store.acquire(held).await.expect_err("the rest is held back");
    assert_eq!(Some(refused.until.0), store.snapshot(budget, 2).grows_at);
    assert!(store.acquire(draw(budget, egress, 0)).await.is_ok());
}

/// Runs every promise over `$store`.
macro_rules! suite {
    ($store:expr) => {
        $crate::store::limits::contract::suite!($store;
            a_draw_takes_from_both_budgets_or_from_neither,
            a_caller_that_waits_as_long_as_it_was_told_is_served,
            those_ahead_are_counted_into_the_wait,
            a_refund_gives_back_and_a_penalty_shuts,
            what_upstream_counts_more_is_not_handed_out,
            a_budget_keeps_what_it_spent_under_a_new_plan,
            what_is_held_back_from_a_caller_is_there_for_others
        );
    };
    ($store:expr; $($promise:ident),+) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $promise() {
                $crate::store::limits::contract::$promise($store).await;
            }
        )+
    };
}

pub(crate) use suite;
