//! What every limit store promises. `suite!(store)` runs it over a backend, on paused time.

use std::time::Duration;

use super::{BudgetId, Draw, LimitStore};
use crate::domain::quota::{Algorithm, Plan, Quota};
use crate::domain::ratelimit::Observation;
use crate::time::{Timestamp, sleep};

/// A store's budgets, made as a test wants them.
pub(crate) struct Bench<L> {
    pub(crate) store: L,
    pub(crate) algorithm: Algorithm,
}

impl<L: LimitStore> Bench<L> {
    fn budget(&self, name: &str, requests: u32, seconds: u64) -> BudgetId {
        self.of(name, &[], requests, seconds)
    }

    fn of(&self, name: &str, users: &[&str], requests: u32, seconds: u64) -> BudgetId {
        let quota = Quota { requests, window: Duration::from_secs(seconds) };
        self.store.budget(name, users, Plan { quota, algorithm: self.algorithm })
    }

    /// Draws so many that are answered at once.
    async fn spend(&self, budget: BudgetId, egress: BudgetId, n: u32) {
        for _ in 0..n {
            let charge = self.store.acquire(draw(budget, egress, 0)).await.expect("free");
            self.store.settle(charge, None);
        }
    }

    fn remaining(&self, budget: BudgetId) -> u32 {
        self.store.snapshot(budget, 0).remaining
    }
}

fn draw(budget: BudgetId, egress: BudgetId, ahead: u32) -> Draw {
    Draw { budgets: [budget, egress], ahead, held_back: 0 }
}

pub(crate) async fn a_draw_takes_from_both_budgets_or_from_neither(bench: Bench<impl LimitStore>) {
    let (small, large) = (bench.budget("small", 2, 600), bench.budget("large", 10, 600));
    bench.spend(small, large, 2).await;
    let refused = bench.store.acquire(draw(small, large, 0)).await.expect_err("spent");
    assert_eq!((refused.budget, refused.gate), (small, false));
    assert_eq!(bench.remaining(large), 8, "a refusal charges nothing");
}

pub(crate) async fn a_caller_that_waits_as_long_as_it_was_told_is_served(bench: Bench<impl LimitStore>) {
    let (budget, egress) = (bench.budget("b", 2, 4), bench.budget("e", 1000, 10));
    for _ in 0..2 {
        bench.spend(budget, egress, 1).await;
        sleep(Duration::from_millis(333)).await;
    }
    let refused = bench.store.acquire(draw(budget, egress, 0)).await.expect_err("spent");
    assert_eq!(refused.until, bench.store.fits_at(budget, 0, 0));
    sleep(refused.until.since(Timestamp::now())).await;
    assert!(bench.store.acquire(draw(budget, egress, 0)).await.is_ok());
}

pub(crate) async fn those_ahead_are_counted_into_the_wait(bench: Bench<impl LimitStore>) {
    let (budget, egress) = (bench.budget("b", 2, 600), bench.budget("e", 1000, 10));
    bench.spend(budget, egress, 1).await;
    sleep(Duration::from_secs(10)).await;
    bench.spend(budget, egress, 1).await;
    let second = bench.store.acquire(draw(budget, egress, 1)).await.expect_err("spent").until;
    sleep(second.since(Timestamp::now()) - Duration::from_secs(2)).await;
    bench.spend(budget, egress, 1).await;
    assert!(bench.store.acquire(draw(budget, egress, 0)).await.is_err());
    sleep(Duration::from_secs(2)).await;
    bench.spend(budget, egress, 1).await;
}

pub(crate) async fn a_refund_gives_back_and_a_penalty_shuts(bench: Bench<impl LimitStore>) {
    let (budget, egress) = (bench.budget("b", 1, 600), bench.budget("e", 1000, 10));
    let charge = bench.store.acquire(draw(budget, egress, 0)).await.expect("free");
    bench.store.refund(charge);
    assert_eq!(bench.remaining(budget), 1);
    bench.store.penalise(budget, Duration::from_secs(30)).await;
    let refused = bench.store.acquire(draw(budget, egress, 0)).await.expect_err("shut");
    assert!(refused.gate);
    assert_eq!(refused.until.since(Timestamp::now()), Duration::from_secs(30));
    sleep(Duration::from_secs(30)).await;
    assert!(bench.store.acquire(draw(budget, egress, 0)).await.is_ok());
}

pub(crate) async fn what_upstream_counts_more_is_not_handed_out(bench: Bench<impl LimitStore>) {
    let (budget, egress) = (bench.budget("b", 100, 600), bench.budget("e", 1000, 10));
    let observation = |remaining| Some(Observation { remaining, reset: Duration::from_secs(60) });
    let charge = bench.store.acquire(draw(budget, egress, 0)).await.expect("free");
    assert!(!bench.store.settle(charge, observation(40)));
    assert_eq!((bench.remaining(budget), bench.remaining(egress)), (40, 999));
    let charge = bench.store.acquire(draw(budget, egress, 0)).await.expect("free");
    assert!(bench.store.settle(charge, observation(90)), "more is left than was thought");
    assert_eq!(bench.remaining(budget), 90);
    sleep(Duration::from_secs(600)).await;
    assert!(bench.remaining(budget) >= 98);
}

pub(crate) async fn a_budget_keeps_what_it_spent_under_a_new_plan(bench: Bench<impl LimitStore>) {
    let (budget, egress) = (bench.budget("b", 100, 600), bench.budget("e", 1000, 10));
    bench.spend(budget, egress, 60).await;
    assert_eq!(bench.budget("b", 80, 300), budget);
    assert_eq!(bench.remaining(budget), 20);
    assert_eq!(bench.store.views().len(), 2);
    sleep(Duration::from_secs(303)).await;
    assert_eq!(bench.remaining(budget), 80);
}

pub(crate) async fn a_budget_that_is_new_by_its_name_begins_with_what_its_users_spent(
    bench: Bench<impl LimitStore>,
) {
    let egress = bench.budget("e", 1000, 10);
    let before = bench.of("secret:1", &["production"], 100, 600);
    bench.spend(before, egress, 60).await;
    let after = bench.of("secret:2", &["production"], 100, 600);
    assert_ne!(before, after);
    assert_eq!(bench.remaining(after), 40, "another secret is no amnesty");
    assert_eq!(bench.remaining(bench.of("secret:3", &["staging"], 100, 600)), 100);
    bench.spend(after, egress, 10).await;
    assert_eq!(bench.of("secret:2", &["renamed"], 100, 600), after);
    assert_eq!(bench.remaining(after), 30);
    let third = bench.of("secret:4", &["renamed"], 100, 600);
    bench.spend(third, egress, 5).await;
    assert_eq!(bench.remaining(third), 25, "nor is a third one,");
    assert_eq!(bench.remaining(bench.of("secret:1", &["renamed"], 100, 600)), 25, "or the first again");
}

/// Not of token buckets, which flow back meanwhile.
pub(crate) async fn what_is_under_way_while_its_budget_gets_another_name_counts_there(
    bench: Bench<impl LimitStore>,
) {
    let egress = bench.budget("e", 1000, 10);
    let before = bench.of("secret:1", &["production"], 100, 600);
    let charge = bench.store.acquire(draw(before, egress, 0)).await.expect("free");
    let refunded = bench.store.acquire(draw(before, egress, 0)).await.expect("free");
    let mut after = bench.of("secret:2", &["production"], 100, 600);
    bench.spend(before, egress, 10).await;
    assert_eq!(bench.remaining(after), 88, "whoever knows it by its old name draws from it too");
    after = bench.of("secret:3", &["production"], 100, 600);
    bench.store.refund(refunded);
    bench.store.settle(charge, None);
    bench.spend(before, egress, 10).await;
    assert_eq!((bench.remaining(before), bench.remaining(after)), (79, 79));
    // None of them is taken for one of upstream's other users for good.
    let observation = Some(Observation { remaining: 78, reset: Duration::from_secs(60) });
    for left in [78, 77] {
        let charge = bench.store.acquire(draw(after, egress, 0)).await.expect("free");
        let observation = observation.map(|seen| Observation { remaining: left, ..seen });
        bench.store.settle(charge, observation);
        assert_eq!(bench.remaining(after), left);
    }
    assert_eq!(bench.remaining(bench.of("secret:1", &["production"], 100, 600)), 77, "and back again");
    bench.spend(after, egress, 7).await;
    assert_eq!(bench.remaining(before), 70);
}

pub(crate) async fn what_is_held_back_from_a_caller_is_there_for_others(bench: Bench<impl LimitStore>) {
    let (budget, egress) = (bench.budget("b", 10, 600), bench.budget("e", 1000, 10));
    let held = Draw { held_back: 2, ..draw(budget, egress, 0) };
    for left in (0..8).rev() {
        assert!(bench.store.acquire(held).await.is_ok());
        assert_eq!(bench.store.snapshot(budget, 2).remaining, left);
    }
    let refused = bench.store.acquire(held).await.expect_err("the rest is held back");
    assert_eq!(Some(refused.until.0), bench.store.snapshot(budget, 2).grows_at);
    assert!(bench.store.acquire(draw(budget, egress, 0)).await.is_ok());
}

/// Runs every promise over `$store`, whose budgets count by `$algorithm`.
macro_rules! suite {
    ($store:expr, $algorithm:ident) => {
        $crate::store::limits::contract::suite!($store, $algorithm;
            a_draw_takes_from_both_budgets_or_from_neither,
            a_caller_that_waits_as_long_as_it_was_told_is_served,
            those_ahead_are_counted_into_the_wait,
            a_refund_gives_back_and_a_penalty_shuts,
            what_upstream_counts_more_is_not_handed_out,
            a_budget_keeps_what_it_spent_under_a_new_plan,
            a_budget_that_is_new_by_its_name_begins_with_what_its_users_spent,
            what_is_held_back_from_a_caller_is_there_for_others
        );
    };
    ($store:expr, $algorithm:ident; $($promise:ident),+) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $promise() {
                use $crate::domain::quota::Algorithm;
                use $crate::store::limits::contract;

                let bench = contract::Bench { store: $store, algorithm: Algorithm::$algorithm };
                contract::$promise(bench).await;
            }
        )+
    };
}

pub(crate) use suite;
