use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::contract::suite;
use super::*;
use crate::domain::quota::{Algorithm, Quota, RingPlan};
use crate::virtual_redis::{VirtualLink, VirtualRedis};

const QUOTA: Quota = Quota { requests: 100, window: Duration::from_secs(40) };
const AMPLE: Quota = Quota { requests: 1_000_000, window: Duration::from_secs(1) };

struct Replica {
    limits: SharedLimits<VirtualLink>,
    link: VirtualLink,
    budgets: [BudgetId; 2],
    stop: CancellationToken,
}

impl Replica {
    fn of(redis: &VirtualRedis, min_replicas: u32) -> Self {
        Self::counting(redis, min_replicas, Plan::window(QUOTA))
    }

    fn counting(redis: &VirtualRedis, min_replicas: u32, plan: Plan) -> Self {
        let (link, stop) = (redis.link(), CancellationToken::new());
        let settings = Settings {
            prefix: "test".into(),
            timeout: Duration::from_millis(50),
            min_replicas,
            egress_group: "egress".into(),
        };
        let limits = SharedLimits::new(link.clone(), settings);
        let budget = limits.budget("environment:acme", &["acme"], plan);
        let egress = limits.budget(EGRESS, &[], Plan::window(AMPLE));
        TaskTracker::new().spawn(limits.clone().run(stop.clone()));
        Self { limits, link, budgets: [budget, egress], stop }
    }

    async fn draw(&self) -> Result<Charge, Refused> {
        self.limits.acquire(Draw { budgets: self.budgets, ahead: 0, held_back: 0 }).await
    }

    /// Draws until it is refused, at most so often; how often it got something.
    async fn draws(&self, most: u32) -> u32 {
        for drawn in 0..most {
            match self.draw().await {
                Ok(charge) => drop(self.limits.settle(charge, None)),
                Err(_) => return drawn,
            }
        }
        most
    }

    /// So many at once.
    async fn drawn(&self, n: u32) -> u32 {
        let drawn = futures_util::future::join_all((0..n).map(|_| self.draw())).await;
        let charges = drawn.into_iter().flatten().map(|charge| self.limits.settle(charge, None));
        u32::try_from(charges.count()).expect("few")
    }

    fn remaining(&self) -> u32 {
        self.limits.snapshot(self.budgets[0], 0).remaining
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn four(redis: &VirtualRedis) -> [Replica; 4] {
    let replicas = [1, 1, 1, 1].map(|min| Replica::of(redis, min));
    // Each has heard of all.
    sleep(Duration::from_secs(3)).await;
    replicas
}

fn network() -> VirtualRedis {
    VirtualRedis::start(1, Duration::from_millis(2))
}

#[tokio::test(start_paused = true)]
async fn replicas_draw_from_one_budget_and_one_of_them_may_have_all_of_it() {
    let redis = network();
    let [a, b, ..] = &four(&redis).await;
    assert_eq!(b.draws(10).await, 10);
    assert_eq!(a.draws(200).await, 90, "though the others were promised parts of it");
    assert_eq!(b.draws(1).await, 0);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((a.remaining(), b.remaining()), (0, 0));
    sleep(Duration::from_secs(41)).await;
    assert_eq!(b.draws(200).await, 100);
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_before_it_takes_what_was_drawn_for_it_has_it_given_back() {
    let redis = network();
    let replica = Replica::of(&redis, 1);
    sleep(Duration::from_secs(3)).await;
    for _ in 0..10 {
        let mut draw = Box::pin(replica.draw());
        assert!(draw.as_mut().now_or_never().is_none());
        // It is drawn by then, and nobody has looked.
        sleep(Duration::from_millis(50)).await;
        assert_eq!(replica.limits.lock().ledgers[0].in_flight, 1);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(replica.limits.lock().ledgers[0].in_flight, 0);
    assert_eq!(replica.remaining(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_busy_replica_asks_less_often_than_it_sends() {
    let redis = network();
    let replica = Replica::of(&redis, 1);
    sleep(Duration::from_secs(1)).await;
    let before = redis.calls();
    let draws = (0..100).map(|_| replica.draw());
    assert!(futures_util::future::join_all(draws).await.iter().all(Result::is_ok));
    assert!(redis.calls() - before < 10, "{}", redis.calls() - before);
}

#[tokio::test(start_paused = true)]
async fn one_replicas_429_stops_all() {
    let redis = network();
    let [a, b, ..] = &four(&redis).await;
    a.limits.penalise(a.budgets[0], Duration::from_secs(30)).await;
    sleep(Duration::from_millis(10)).await;
    let refused = b.draw().await.expect_err("shut");
    assert!(refused.gate);
    let wait = refused.until.since(Timestamp::now());
    assert!(wait > Duration::from_secs(29) && wait <= Duration::from_millis(30_010), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn what_upstream_tells_one_all_know() {
    let redis = network();
    let [a, b, ..] = &four(&redis).await;
    let charge = a.draw().await.expect("free");
    let observation = Observation { remaining: 5, reset: Duration::from_secs(20) };
    a.limits.settle(charge, Some(observation));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(b.draws(100).await, 5);
}

#[tokio::test(start_paused = true)]
async fn what_one_had_in_flight_is_not_taken_for_the_spending_of_strangers_by_another() {
    let redis = network();
    let [a, b, ..] = &four(&redis).await;
    let mut charges = Vec::new();
    for _ in 0..10 {
        charges.push(a.draw().await.expect("free"));
    }
    // They are answered, and nothing has told so yet when upstream answers another.
    for remaining in [89, 88, 87, 86] {
        let charge = b.draw().await.expect("free");
        for charge in charges.drain(..) {
            a.limits.settle(charge, None);
        }
        b.limits.settle(charge, Some(Observation { remaining, reset: Duration::from_secs(20) }));
    }
    assert_eq!(b.draws(100).await, 86);
}

#[tokio::test(start_paused = true)]
async fn replicas_that_are_cut_off_have_the_budget_between_them_and_no_more() {
    let redis = network();
    let replicas = &four(&redis).await;
    assert_eq!(replicas[0].draws(40).await, 40);
    sleep(Duration::from_secs(2)).await;
    redis.set_down(true);
    let mut drawn = Vec::new();
    for replica in replicas {
        drawn.push(replica.draws(100).await);
        assert!(replica.limits.cut_off().is_some());
    }
    let sum: u32 = drawn.iter().sum();
    assert!((48..=60).contains(&sum) && drawn.iter().all(|drawn| (12..=15).contains(drawn)), "{drawn:?}");
    redis.set_down(false);
    sleep(Duration::from_secs(2)).await;
    for replica in replicas {
        assert!(replica.limits.cut_off().is_none());
    }
    // What is left is there for whoever comes, and what was spent without asking is known to all.
    assert_eq!(replicas[3].draws(100).await, 60 - sum);
}

#[tokio::test(start_paused = true)]
async fn what_lapses_while_all_are_cut_off_is_dealt_out_too() {
    let redis = network();
    let replicas = &four(&redis).await;
    assert_eq!(replicas[0].draws(100).await, 100);
    redis.set_down(true);
    for replica in replicas {
        assert_eq!(replica.draws(10).await, 0);
    }
    sleep(Duration::from_secs(41)).await;
    for round in 0..3 {
        let mut sum = 0;
        for replica in replicas {
            sum += replica.draws(100).await;
        }
        assert!((96..=100).contains(&sum), "{round}: {sum}");
        sleep(Duration::from_secs(41)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_stays_leaves_to_one_that_is_cut_off_what_it_was_promised() {
    let redis = network();
    let [a, b, c, d] = &four(&redis).await;
    d.link.set_cut(true);
    let connected = a.draws(200).await + b.draws(200).await + c.draws(200).await;
    let alone = d.draws(200).await;
    assert!(connected + alone <= 100 && connected + alone >= 96, "{connected} {alone}");
    assert!((20..=25).contains(&alone), "{alone}");
    d.link.set_cut(false);
    sleep(Duration::from_secs(2)).await;
    sleep(Duration::from_secs(41)).await;
    assert_eq!(a.draws(200).await, 100);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_its_data_is_told_what_was_spent() {
    let redis = network();
    let replicas = &four(&redis).await;
    assert_eq!(replicas[0].draws(30).await, 30);
    assert_eq!(replicas[1].draws(20).await, 20);
    redis.forget();
    let mut sum = 50;
    for _ in 0..10 {
        for replica in replicas {
            sum += replica.draws(2).await;
        }
        sleep(Duration::from_millis(500)).await;
    }
    sleep(Duration::from_secs(5)).await;
    for replica in replicas {
        sum += replica.draws(200).await;
    }
    assert!((95..=100).contains(&sum), "{sum}");
}

#[tokio::test(start_paused = true)]
async fn what_one_drew_before_another_heard_of_it_and_what_that_one_drew_since_are_told_as_two() {
    // In one sub-window of a second; and one of the two has heard of the other's draws, or not.
    let plan = Plan::window(Quota { window: Duration::from_secs(600), ..QUOTA });
    for after in (0..250).step_by(25) {
        let redis = network();
        let b = Replica::counting(&redis, 1, plan);
        sleep(Duration::from_millis(60)).await;
        let a = Replica::counting(&redis, 1, plan);
        sleep(Duration::from_millis(3000 + after)).await;
        assert_eq!(b.drawn(20).await, 20);
        sleep(Duration::from_millis(60)).await;
        assert_eq!(a.drawn(30).await, 30);
        redis.forget();
        sleep(Duration::from_secs(5)).await;
        let sum = 50 + a.draws(200).await + b.draws(200).await;
        assert!((70..=100).contains(&sum), "{sum}, begun {after} ms later");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_its_data_is_told_what_a_token_bucket_lacks() {
    let redis = network();
    let plan = Plan { quota: QUOTA, algorithm: Algorithm::TokenBucket };
    let [a, b] = &[(); 2].map(|()| Replica::counting(&redis, 1, plan));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(a.draws(60).await, 60);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(b.draws(20).await, 20);
    redis.forget();
    sleep(Duration::from_secs(4)).await;
    // 2.5 a second flow back.
    let drawn = a.draws(200).await + b.draws(200).await;
    assert!((20..=34).contains(&drawn), "{drawn}");
}

#[tokio::test(start_paused = true)]
async fn what_upstream_counted_late_lapses_late_though_the_server_lost_its_data() {
    let redis = network();
    let [a, b, ..] = &four(&redis).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        slow.push(a.draw().await.expect("free"));
    }
    sleep(Duration::from_secs(20)).await;
    for charge in slow {
        a.limits.settle(charge, None);
    }
    // Told, but nobody has asked for the whole account since.
    sleep(Duration::from_millis(20)).await;
    assert_eq!(a.draws(1).await, 1);
    redis.forget();
    sleep(Duration::from_secs(25)).await;
    let drawn = a.draws(200).await + b.draws(200).await;
    assert!(drawn < 50, "{drawn}, and upstream counts 51");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_cut_off_while_the_server_loses_its_data_keeps_its_part_though_nothing_was_spent() {
    let redis = network();
    let [a, b, c, d] = &four(&redis).await;
    d.link.set_cut(true);
    redis.forget();
    sleep(Duration::from_secs(5)).await;
    let connected = a.draws(200).await + b.draws(200).await + c.draws(200).await;
    let alone = d.draws(200).await;
    assert!(alone >= 20 && connected + alone <= 100, "{connected} {alone}");
}

#[tokio::test(start_paused = true)]
async fn who_begins_meanwhile_takes_nobodys_part() {
    let redis = network();
    let [a, b, c, d] = &four(&redis).await;
    d.link.set_cut(true);
    redis.forget();
    sleep(Duration::from_secs(1)).await;
    let e = Replica::of(&redis, 1);
    sleep(Duration::from_secs(5)).await;
    let mut connected = 0;
    for replica in [a, b, c, &e] {
        connected += replica.draws(200).await;
    }
    let alone = d.draws(200).await;
    assert!(alone >= 20 && connected + alone <= 100, "{connected} {alone}");
}

#[tokio::test(start_paused = true)]
async fn one_that_begins_while_all_tell_what_they_know_asks_again_when_they_have() {
    let redis = network();
    let [a, ..] = &four(&redis).await;
    redis.forget();
    assert_eq!(a.draws(1).await, 1);
    let e = Replica::of(&redis, 1);
    let mut refused = None;
    for _ in 0..40 {
        sleep(Duration::from_millis(10)).await;
        refused = refused.or(e.draw().await.err());
    }
    // It has its part until it has asked, and then none before all have told.
    let refused = refused.expect("it has nothing yet");
    let wait = refused.until.since(Timestamp::now());
    assert!(wait <= LOOK_AGAIN, "{wait:?}");
    assert_eq!(e.draws(10).await, 10);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_new_may_be_the_first_to_find_the_data_lost() {
    let redis = network();
    let [a, b, c, d] = &four(&redis).await;
    assert_eq!(a.draws(60).await, 60);
    sleep(Duration::from_secs(1)).await;
    d.link.set_cut(true);
    redis.forget();
    let e = Replica::of(&redis, 1);
    sleep(Duration::from_secs(5)).await;
    let mut sum = 60 + d.draws(200).await;
    for replica in [a, b, c, &e] {
        sum += replica.draws(200).await;
    }
    assert!((90..=100).contains(&sum), "{sum}");
}

#[tokio::test(start_paused = true)]
async fn what_was_spent_while_all_told_what_they_know_is_told_should_the_server_lose_its_data_again() {
    for after in (0..250).step_by(25) {
        let redis = network();
        let [a, b, ..] = &four(&redis).await;
        assert_eq!(a.draws(20).await, 20);
        sleep(Duration::from_millis(200 + after)).await;
        redis.forget();
        sleep(Duration::from_millis(135)).await;
        // Promised before; told with the next draw.
        let mut sum = 20 + a.draws(10).await;
        sleep(Duration::from_millis(10)).await;
        sum += a.draws(1).await;
        redis.forget();
        sleep(Duration::from_secs(5)).await;
        sum += a.draws(200).await + b.draws(200).await;
        assert!((90..=100).contains(&sum), "{sum} in all, begun {after} ms later");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_promised_more_until_all_had_the_time_to_tell_what_they_know() {
    for after in (0..125).step_by(25) {
        let redis = network();
        let [a, b] = &[(); 2].map(|()| Replica::of(&redis, 1));
        sleep(Duration::from_millis(3000 + after)).await;
        // Most of it, for which the other gives up what it was promised; then it is not there when all tell.
        assert_eq!(a.drawn(70).await, 70);
        sleep(Duration::from_millis(10)).await;
        a.link.set_cut(true);
        redis.forget();
        let mut sum = 70 + b.drawn(1).await;
        sleep(Duration::from_millis(20)).await;
        sum += b.drawn(100).await;
        a.link.set_cut(false);
        sleep(Duration::from_secs(5)).await;
        sum += a.draws(200).await + b.draws(200).await;
        assert!((90..=100).contains(&sum), "{sum} in all, begun {after} ms later");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_a_window_is_nobodys_death() {
    let redis = network();
    let replicas = &four(&redis).await;
    redis.set_down(true);
    sleep(Duration::from_secs(50)).await;
    redis.set_down(false);
    sleep(Duration::from_millis(50)).await;
    redis.set_down(true);
    let mut sum = 0;
    for replica in replicas {
        sum += replica.draws(200).await;
    }
    assert!((90..=100).contains(&sum), "{sum}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_back_a_little_is_told_though_others_have_gone_on_since() {
    for after in (0..250).step_by(25) {
        let redis = network();
        let [a, b, c, d] = &four(&redis).await;
        sleep(Duration::from_millis(after)).await;
        run(a, KEEP).await;
        assert_eq!(b.drawn(20).await, 20);
        run(a, REWIND).await;
        // More exchanges than it lost.
        let mut sum = 20 + a.draws(10).await;
        sleep(Duration::from_secs(5)).await;
        for replica in [a, b, c, d] {
            sum += replica.draws(200).await;
        }
        assert!((90..=100).contains(&sum), "{sum} in all, begun {after} ms later");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slower_answer_after_an_outage_makes_nothing_lapse_sooner() {
    let ring = RingPlan::of(QUOTA);
    let lapse = ring.sub_window * u32::try_from(ring.sub_windows()).expect("few");
    for seed in 0..10 {
        let redis = VirtualRedis::start(seed, Duration::from_millis(20));
        let replica = Replica::of(&redis, 1);
        sleep(Duration::from_secs(3)).await;
        redis.set_down(true);
        // The first moment of a sub-window.
        let now = replica.limits.lock().now();
        sleep(Duration::from_nanos(nanos(ring.sub_window) - now % nanos(ring.sub_window))).await;
        let spent = Timestamp::now();
        assert_eq!(replica.draws(100).await, 100);
        sleep(Duration::from_secs(11)).await;
        redis.forget();
        redis.set_down(false);
        sleep((spent + lapse).since(Timestamp::now()) - ring.sub_window / 2).await;
        assert!(replica.limits.cut_off().is_none());
        assert_eq!(replica.draws(1).await, 0, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_its_data_is_told_that_upstream_wants_nothing() {
    let redis = network();
    let [a, b, ..] = &four(&redis).await;
    a.limits.penalise(a.budgets[0], Duration::from_secs(30)).await;
    sleep(Duration::from_secs(1)).await;
    redis.forget();
    sleep(Duration::from_secs(6)).await;
    for replica in [a, b] {
        assert!(replica.draw().await.expect_err("shut").gate);
    }
}

/// Seconds: a few, about a window, and many.
const BACK: [u64; 4] = [2, 39, 41, 3600];

#[tokio::test(start_paused = true)]
async fn a_servers_clock_that_is_set_back_makes_nothing_lapse_sooner_or_later() {
    for back in BACK {
        let redis = network();
        let [a, b, c, d] = &four(&redis).await;
        assert_eq!(a.draws(60).await, 60);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(b.draws(100).await, 40);
        redis.set_back(Duration::from_secs(back));
        for _ in 0..18 {
            for replica in [a, b, c, d] {
                assert_eq!(replica.draws(100).await, 0, "{back} s back");
            }
            sleep(Duration::from_secs(1)).await;
        }
        for lapses in [60, 40] {
            sleep(Duration::from_secs(3)).await;
            let drawn = c.draws(200).await;
            assert_eq!(drawn, lapses, "{back} s back");
            sleep(Duration::from_secs(17)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_servers_clock_that_is_set_back_makes_a_token_bucket_fill_no_later() {
    for back in BACK {
        let redis = network();
        let plan = Plan { quota: QUOTA, algorithm: Algorithm::TokenBucket };
        let [a, b] = &[(); 2].map(|()| Replica::counting(&redis, 1, plan));
        sleep(Duration::from_secs(3)).await;
        assert!((100..=101).contains(&a.draws(200).await));
        redis.set_back(Duration::from_secs(back));
        sleep(Duration::from_secs(10)).await;
        // 2.5 a second flow back.
        let drawn = b.draws(200).await;
        assert!((20..=26).contains(&drawn), "{drawn}, {back} s back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_servers_clock_that_is_set_back_shuts_no_gate_for_longer() {
    for back in BACK {
        let redis = network();
        let [a, b, ..] = &four(&redis).await;
        a.limits.penalise(a.budgets[0], Duration::from_secs(60)).await;
        sleep(Duration::from_secs(10)).await;
        redis.set_back(Duration::from_secs(back));
        sleep(Duration::from_secs(2)).await;
        let refused = b.draw().await.expect_err("shut");
        let wait = refused.until.since(Timestamp::now());
        assert!(refused.gate && wait > Duration::from_secs(46) && wait < Duration::from_secs(50), "{wait:?}");
        sleep(wait).await;
        assert!(b.draw().await.is_ok(), "{back} s back");
        redis.set_back(Duration::from_secs(back));
        sleep(Duration::from_secs(10)).await;
        assert!(b.draws(100).await > 1, "the slow start goes on, {back} s back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_servers_clock_that_is_set_back_makes_nobody_stay_a_stranger_or_alive_for_longer() {
    for back in BACK {
        let redis = network();
        let [a, b, c, d] = four(&redis).await;
        for remaining in [9, 8] {
            let charge = a.draw().await.expect("free");
            a.limits.settle(charge, Some(Observation { remaining, reset: Duration::from_secs(20) }));
        }
        sleep(Duration::from_secs(1)).await;
        drop((c, d));
        redis.set_back(Duration::from_secs(back));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(b.draws(100).await, 8);
        // Nobody is known to have spent anything for a window; upstream's count of strangers keeps those who died.
        sleep(Duration::from_secs(45)).await;
        let drawn = b.draws(200).await;
        assert_eq!(drawn, 100, "{back} s back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_servers_clock_that_is_set_back_while_all_tell_what_they_know_gives_them_the_time_once_more() {
    for back in BACK {
        let redis = network();
        let [a, b, c, d] = &four(&redis).await;
        assert_eq!(a.draws(60).await, 60);
        sleep(Duration::from_secs(1)).await;
        redis.forget();
        sleep(Duration::from_millis(1500)).await;
        redis.set_back(Duration::from_secs(back));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(a.limits.replicas(), 4, "{back} s back");
        let mut sum = 60;
        for replica in [d, c, b, a] {
            sum += replica.drawn(30).await;
        }
        assert!((90..=100).contains(&sum), "{sum}, {back} s back");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_spent_where_nobody_can_tell_when_counts_from_now_on() {
    let redis = network();
    let [a, b, ..] = &four(&redis).await;
    assert_eq!(a.draws(100).await, 100);
    let set =
        "return redis.call('HSET', '{test}:budget:environment:acme', 'head', '99999999999', 'sum', '9e15')";
    run(a, set).await;
    for _ in 0..39 {
        assert_eq!(b.draws(100).await, 0);
        sleep(Duration::from_secs(1)).await;
    }
    sleep(Duration::from_secs(3)).await;
    assert_eq!(b.draws(200).await, 100);
}

#[tokio::test(start_paused = true)]
async fn nonsense_in_a_budgets_state_keeps_no_script_busy() {
    let redis = network();
    let replica = Replica::of(&redis, 1);
    assert_eq!(replica.draws(10).await, 10);
    for field in ["head", "tail", "sum", "sub", "expected", "born"] {
        for value in ["99999999999", "9e15", "-1", "1", "nonsense"] {
            let key = if ["expected", "born"].contains(&field) { "epoch" } else { "budget:environment:acme" };
            let set = format!("return redis.call('HSET', '{{test}}:{key}', '{field}', '{value}')");
            run(&replica, set.leak()).await;
            sleep(Duration::from_secs(1)).await;
        }
    }
    sleep(Duration::from_secs(60)).await;
    assert!(replica.draw().await.is_ok());
}

const KEEP: &str =
    "for _, key in ipairs(redis.call('KEYS', '{test}*')) do redis.call('COPY', key, 'kept:' .. key) end";
const REWIND: &str = "for _, key in ipairs(redis.call('KEYS', '{test}*')) do redis.call('DEL', key) end
    for _, key in ipairs(redis.call('KEYS', 'kept:*')) do redis.call('COPY', key, string.sub(key, 6)) end";

/// What the server does as one that comes back with an old copy of its data.
async fn run(replica: &Replica, script: &'static str) {
    let done = Link::run(&replica.link, &crate::store::link::Script::new(script), &[], Vec::new()).await;
    assert!(done.is_ok(), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_back_to_what_it_once_knew_is_told_too_and_counts_nobody_twice() {
    let redis = network();
    let replicas = &four(&redis).await;
    assert_eq!(replicas[0].draws(30).await, 30);
    run(&replicas[0], KEEP).await;
    assert_eq!(replicas[1].draws(20).await, 20);
    sleep(Duration::from_secs(1)).await;
    run(&replicas[0], REWIND).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(replicas.iter().map(|replica| replica.limits.replicas()).max(), Some(4));
    let mut sum = 50;
    for replica in replicas {
        sum += replica.draws(200).await;
    }
    assert_eq!(sum, 100);
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_late_counts_though_its_charge_is_not_found() {
    let redis = network();
    let replica = Replica::of(&redis, 1);
    sleep(Duration::from_secs(3)).await;
    let charge = replica.draw().await.expect("free");
    let forget = "redis.call('DEL', '{test}:budget:environment:acme:spent')
        redis.call('HSET', '{test}:budget:environment:acme', 'sum', 0)";
    run(&replica, forget).await;
    sleep(Duration::from_secs(1)).await;
    replica.limits.settle(charge, None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(replica.draws(200).await, 99);
}

#[test]
fn what_was_spent_in_one_sub_window_goes_by_the_last_of_it_when_the_clock_is_set() {
    let sub_window = nanos(RingPlan::of(QUOTA).sub_window);
    let mut ledger = Ledger::new("environment:acme", Plan::window(QUOTA), 1);
    ledger.spend_blind(10 * sub_window);
    ledger.spend_blind(11 * sub_window - 1);
    ledger.shift(-i128::from(sub_window / 2));
    let told: Vec<(Nanos, u32)> = ledger.blind.tell().map(|entry| (entry.at / sub_window, entry.n)).collect();
    assert_eq!(told, [(10, 2)]);
}

#[tokio::test(start_paused = true)]
async fn one_that_leaves_leaves_everything_and_one_that_dies_leaves_it_a_window_later() {
    let redis = network();
    let [a, b, c, d] = four(&redis).await;
    assert_eq!(d.draws(10).await, 10);
    d.limits.leave().await;
    drop(d);
    drop(c);
    sleep(Duration::from_secs(1)).await;
    let drawn = a.draws(200).await + b.draws(200).await;
    assert!((60..=72).contains(&drawn), "what one that may live was promised is kept: {drawn}");
    sleep(Duration::from_secs(43)).await;
    assert_eq!(a.draws(200).await, 100);
}

#[tokio::test(start_paused = true)]
async fn one_that_begins_without_the_server_has_its_share() {
    let redis = network();
    redis.set_down(true);
    let replica = Replica::of(&redis, 4);
    assert_eq!(replica.draws(100).await, 25);
    redis.set_down(false);
    sleep(Duration::from_secs(2)).await;
    let other = Replica::of(&redis, 4);
    assert_eq!(other.draws(200).await + replica.draws(200).await, 75);
}

/// Alone with a server to itself.
fn alone() -> SharedLimits<VirtualLink> {
    let link = VirtualRedis::start(1, Duration::ZERO).link();
    let settings = Settings {
        prefix: "test".into(),
        timeout: Duration::from_millis(50),
        min_replicas: 1,
        egress_group: "egress".into(),
    };
    let limits = SharedLimits::new(link, settings);
    TaskTracker::new().spawn(limits.clone().run(CancellationToken::new()));
    limits
}

mod window {
    use super::*;
    suite!(alone(), Window);
    suite!(alone(), Window; what_is_under_way_while_its_budget_gets_another_name_counts_there);
}

mod token_bucket {
    use super::*;
    suite!(alone(), TokenBucket);
}
