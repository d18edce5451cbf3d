use std::collections::VecDeque;

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;

use super::*;
use crate::domain::quota::Quota;
use crate::time::{Instant, sleep_until};
use crate::virtual_redis::{VirtualLink, VirtualRedis};

const CLIENT: ClientKey = ClientKey(0xc633_6407);
const SECOND: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(10);

/// Replicas that share a server.
struct Fleet {
    replicas: Vec<Arc<ClientLimits>>,
    redis: VirtualRedis,
    link: VirtualLink,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fleet {
    async fn of(replicas: u32) -> Self {
        let redis = VirtualRedis::start(7, Duration::from_millis(3));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let mut all = Vec::new();
        for _ in 0..replicas {
            let limits = Arc::new(ClientLimits::shared(Quota::PER_IP, 10_000));
            all.push(limits.clone());
            let (link, stop) = (redis.link(), stop.clone());
            tasks.spawn(async move {
                ClientLimits::share(|| limits.clone(), link, Names::new("test"), || replicas, stop).await
            });
            // They were not started at the same moment.
            sleep(Duration::from_millis(17)).await;
        }
        let link = redis.link();
        Self { replicas: all, redis, link, stop, tasks }
    }

    /// Whether `replica` admits one more.
    fn admits(&self, replica: usize) -> bool {
        self.replicas[replica].check(CLIENT).is_ok()
    }

    /// How many of `requests` at once it admits.
    fn burst(&self, replica: usize, requests: u32) -> usize {
        (0..requests).filter(|_| self.admits(replica)).count()
    }

    async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let answer = self.link.command(&words).await.expect("an answer");
        redis::from_redis_value(answer).expect("as expected")
    }

    /// Keys of clients.
    async fn names(&self) -> Vec<String> {
        self.ask(&["KEYS", "{test}:client:*"]).await
    }

    /// Sends `rate` a second for so many seconds, each to the replica that `route` says; when those were that were admitted.
    async fn sends(&self, rate: u32, seconds: u32, mut route: impl FnMut(u32) -> usize) -> Vec<Duration> {
        let start = Instant::now();
        let mut admitted = Vec::new();
        for nth in 0..rate * seconds {
            sleep_until(start + SECOND * nth / rate).await;
            if self.admits(route(nth)) {
                admitted.push(start.elapsed());
            }
        }
        admitted
    }

    async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The most in any window from the second on, whenever it begins.
fn most(admitted: &[Duration]) -> usize {
    let within = |(at, from): (usize, &Duration)| {
        admitted[at..].iter().take_while(|time| **time < *from + WINDOW).count()
    };
    admitted.iter().enumerate().filter(|(_, from)| **from >= WINDOW).map(within).max().unwrap_or(0)
}

/// Replicas by weight, at random but always the same.
fn skewed(weights: [u32; 4]) -> impl FnMut(u32) -> usize {
    let mut random = fastrand::Rng::with_seed(7);
    move |_| {
        let mut at = random.u32(0..weights.iter().sum());
        weights.iter().position(|weight| at.checked_sub(*weight).map(|left| at = left).is_none()).unwrap_or(0)
    }
}

/// What a single process would have admitted of the same.
async fn alone(rate: u32, seconds: u32) -> Vec<Duration> {
    let limits = ClientLimits::new(Quota::PER_IP, 10_000);
    let start = Instant::now();
    let mut admitted = Vec::new();
    for nth in 0..rate * seconds {
        sleep_until(start + SECOND * nth / rate).await;
        if limits.check(CLIENT).is_ok() {
            admitted.push(start.elapsed());
        }
    }
    admitted
}

#[tokio::test(start_paused = true)]
async fn four_replicas_give_what_one_would_however_a_client_is_spread() {
    let even = |nth: u32| nth as usize % 4;
    for rate in [200, 1000, 5000] {
        let one = alone(rate, 40).await;
        let four = Fleet::of(4).await.sends(rate, 40, even).await;
        assert!(most(&one) <= 1001, "{}", most(&one));
        assert!(most(&four) <= 1050, "{} at {rate}/s", most(&four));
        assert!(four.len() >= one.len() * 99 / 100, "{} of {} at {rate}/s", four.len(), one.len());
    }
    for weights in [[1, 0, 0, 0], [1, 1, 0, 0], [7, 1, 1, 1], [85, 5, 5, 5], [97, 1, 1, 1]] {
        let one = alone(200, 40).await;
        let four = Fleet::of(4).await.sends(200, 40, skewed(weights)).await;
        assert!(most(&four) <= 1050, "{} at {weights:?}", most(&four));
        assert!(four.len() >= one.len() * 99 / 100, "{} of {} at {weights:?}", four.len(), one.len());
    }
}

#[tokio::test(start_paused = true)]
async fn who_keeps_to_the_limit_in_every_window_is_never_refused() {
    for seed in 0..6 {
        let fleet = Fleet::of(4).await;
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut sent, start) = (VecDeque::new(), Instant::now());
        while start.elapsed() < 8 * WINDOW {
            // Now this way, now that.
            let pause = SECOND / [50, 120, 1000, 20_000][random.usize(0..4)];
            let (at, sticky) = (random.usize(0..4), random.bool());
            for nth in 0..random.usize(0..1500) {
                if sent.len() == 1000
                    && let Some(first) = sent.pop_front()
                {
                    // A timer may be late by a millisecond, never early.
                    sleep_until(first + WINDOW).await;
                }
                sent.push_back(Instant::now());
                let replica = if sticky { at } else { nth % 4 };
                assert!(fleet.admits(replica), "by {replica}, seed {seed}");
                if pause > Duration::from_millis(1) || nth % 20 == 19 {
                    sleep(pause).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bursts_of_the_whole_limit_are_served_wherever_they_come() {
    let fleet = Fleet::of(4).await;
    for round in 0..6 {
        let start = Instant::now();
        for nth in 0..1000 {
            assert!(fleet.admits(if round % 2 == 0 { nth % 4 } else { round % 4 }), "{nth} of round {round}");
        }
        sleep_until(start + WINDOW).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_spent_at_one_replica_is_spent_at_all() {
    let fleet = Fleet::of(3).await;
    assert_eq!(fleet.burst(0, 2000), 1000);
    sleep(SECOND / 2).await;
    assert_eq!(fleet.burst(1, 20), 20, "of a stranger it first has to see as much as is told of");
    sleep(SECOND / 2).await;
    let left = fleet.burst(1, 200);
    assert!((79..=85).contains(&left), "what flowed back in a second, less that: {left}");
    assert!(fleet.replicas[1].check(ClientKey(CLIENT.0 + 1)).is_ok(), "others are not touched");
    sleep(WINDOW).await;
    assert!(fleet.admits(1));
}

#[tokio::test(start_paused = true)]
async fn a_failed_authentication_costs_more_everywhere() {
    let fleet = Fleet::of(2).await;
    let mut guesses = 0;
    for nth in 0..4000 {
        let replica = nth % 2;
        if fleet.admits(replica) {
            guesses += 1;
            fleet.replicas[replica].penalise(CLIENT, 9);
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert!((280..=320).contains(&guesses), "a hundred at once and ten per second: {guesses}");
}

#[tokio::test(start_paused = true)]
async fn calls_are_few_and_none_is_for_clients_that_spend_little() {
    let fleet = Fleet::of(4).await;
    for client in 0..5000 {
        assert!(fleet.replicas[client as usize % 4].check(ClientKey(client)).is_ok());
    }
    sleep(WINDOW).await;
    assert_eq!(fleet.redis.calls(), 0);

    // Many that spend much: one call for all of them at a time, bounded whatever they do.
    for round in 1..=5 {
        for client in 0..3000 {
            for _ in 0..20 {
                fleet.replicas[0].check(ClientKey(client)).ok();
            }
        }
        sleep(SECOND / 16).await;
        if round == 1 {
            assert_eq!(fleet.names().await.len(), BATCH);
        }
        sleep(SECOND).await;
    }
    let calls = fleet.redis.calls();
    assert!(calls <= 5 * 22, "twenty a second: {calls}");
    assert_eq!(fleet.names().await.len(), 3000, "each had its turn");
}

#[tokio::test(start_paused = true)]
async fn the_server_holds_no_address_and_forgets_who_owes_nothing() {
    let fleet = Fleet::of(2).await;
    assert_eq!(fleet.burst(0, 500), 500);
    sleep(SECOND).await;
    let names = fleet.names().await;
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(names[0].len(), "{test}:client:".len() + 32);
    for key in fleet.ask::<Vec<String>>(&["KEYS", "*"]).await {
        let left: i64 = fleet.ask(&["PTTL", &key]).await;
        let lasts = (1..=2 * WINDOW.as_millis() as i64).contains(&left);
        assert!(key == "{test}:clients:salt" || lasts, "{key}: {left} ms");
    }
    let other = Fleet::of(1).await;
    assert_eq!(other.burst(0, 500), 500);
    sleep(SECOND).await;
    assert_ne!(other.names().await, names, "another server, another name");
}

#[tokio::test(start_paused = true)]
async fn without_the_server_each_replica_limits_on_its_own_and_they_come_together_again() {
    let fleet = Fleet::of(2).await;
    let even = |nth: u32| nth as usize % 2;
    let together = fleet.sends(400, 10, even).await.len();
    assert!((1980..=2050).contains(&together), "{together}");
    fleet.redis.set_down(true);
    // What each bucket holds is what it held; what flows back flows back to each.
    let apart = fleet.sends(400, 10, even).await.len();
    assert!((1930..=2050).contains(&apart), "{apart}");
    fleet.redis.set_down(false);
    let healed = fleet.sends(400, 40, even).await;
    assert!(most(&healed) <= 1050, "{}", most(&healed));
    assert!(healed.len() >= 3950, "nobody pays for the outage: {}", healed.len());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_all_is_told_anew_under_one_name() {
    let fleet = Fleet::of(2).await;
    let even = |nth: u32| nth as usize % 2;
    fleet.sends(400, 10, even).await;
    let before = fleet.names().await;
    fleet.redis.forget();
    // Another came first, so the replicas' own salt is not the one.
    fleet.ask::<String>(&["SET", "{test}:clients:salt", "another"]).await;
    let admitted = fleet.sends(400, 30, even).await;
    assert!(most(&admitted) <= 1050, "{}", most(&admitted));
    let after = fleet.names().await;
    assert_eq!(after.len(), 1);
    assert_ne!(after, before);
}

#[tokio::test(start_paused = true)]
async fn a_servers_clock_that_is_set_back_adds_to_nobodys_debt_and_forgives_none() {
    for back in [1, 5, 11, 3600] {
        let fleet = Fleet::of(2).await;
        let even = |nth: u32| nth as usize % 2;
        let before = fleet.sends(400, 10, even).await.len();
        assert!((1980..=2050).contains(&before), "{before}");
        fleet.redis.set_back(SECOND * back);
        let after = fleet.sends(400, 20, even).await;
        assert!(after.len() >= 1950, "{} in two windows, {back} s back", after.len());
        assert!(after.len() <= 2050 && most(&after) <= 1050, "{} at once, {back} s back", most(&after));
        // Nor of one that has spent nothing since.
        fleet.redis.set_back(SECOND * back);
        sleep(SECOND).await;
        let left = fleet.burst(0, 200);
        assert!((75..=105).contains(&left), "what flowed back in a second: {left}, {back} s back");
    }
}

#[tokio::test(start_paused = true)]
async fn who_stops_tells_what_is_left_to_tell() {
    let fleet = Fleet::of(1).await;
    assert_eq!(fleet.burst(0, 600), 600);
    // In one instant: no call was due yet.
    assert_eq!(fleet.redis.calls(), 0);
    fleet.stop().await;
    let late = Arc::new(ClientLimits::shared(Quota::PER_IP, 10));
    let (limits, link) = (late.clone(), fleet.redis.link());
    TaskTracker::new().spawn(async move {
        ClientLimits::share(|| limits.clone(), link, Names::new("test"), || 1, CancellationToken::new()).await
    });
    sleep(SECOND / 100).await;
    assert_eq!((0..50).filter(|_| late.check(CLIENT).is_ok()).count(), 50);
    sleep(SECOND / 2).await;
    let left = (0..1000).filter(|_| late.check(CLIENT).is_ok()).count();
    assert!(
        (390..=420).contains(&left),
        "what flowed back in half a second, less what it saw itself: {left}"
    );
}

#[tokio::test(start_paused = true)]
async fn another_limit_is_shared_as_the_first_was() {
    let redis = VirtualRedis::start(7, Duration::from_millis(3));
    let replicas = [0, 1].map(|_| {
        let limits = Arc::new(ArcSwap::from_pointee(ClientLimits::shared(Quota::PER_IP, 10_000)));
        let (current, link) = (limits.clone(), redis.link());
        let stop = CancellationToken::new();
        TaskTracker::new().spawn(async move {
            ClientLimits::share(|| current.load_full(), link, Names::new("test"), || 2, stop).await
        });
        limits
    });
    sleep(SECOND).await;
    for limits in &replicas {
        limits.store(Arc::new(limits.load().with(Quota { requests: 100, window: WINDOW }, 10_000)));
    }
    sleep(SECOND).await;
    let (start, mut admitted) = (Instant::now(), Vec::new());
    for nth in 0..2000 {
        if replicas[nth % 2].load().check(CLIENT).is_ok() {
            admitted.push(start.elapsed());
        }
        sleep(SECOND / 50).await;
    }
    assert!((98..=105).contains(&most(&admitted)), "{}", most(&admitted));
}
