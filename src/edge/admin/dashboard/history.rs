//! The last ten minutes: rings of fixed size that each sample goes into, and the figures that come out of them.
//!
//! A slot keeps the least that was left of each budget, so that a short drought is seen, and what had been counted when it
//! began. Two of those make a rate, or the percentiles of what lies between them.

use std::time::Duration;

use super::figures::{
    Budget, Cache, Credential, Ended, Figures, Latency, Refusals, Reload, Store, Traffic, Upstream,
};
use crate::edge::admin::status::{BudgetStatus, Status, StoreKind};
use crate::telemetry::labels::{Label, Policy};
use crate::telemetry::tally::{Tally, Times};
use crate::time::{Instant, unix_now};

/// How long one slot is.
pub(super) const STEP: Duration = Duration::from_secs(5);
/// How many there are.
pub(super) const SLOTS: usize = 120;
/// What the present rate is taken over.
const PRESENT: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

/// So many slots and no more; the newest takes the place of the oldest.
struct Ring<T> {
    slots: Vec<Option<T>>,
    newest: u64,
}

impl<T> Ring<T> {
    fn new(slot: u64) -> Self {
        Self { slots: (0..SLOTS).map(|_| None).collect(), newest: slot }
    }

    /// The slot of this number, which is the newest from now on; those that were passed over are empty.
    fn at(&mut self, slot: u64) -> &mut Option<T> {
        for passed in self.newest.saturating_add(1)..=slot.min(self.newest + SLOTS as u64) {
            self.slots[passed as usize % SLOTS] = None;
        }
        self.newest = self.newest.max(slot);
        &mut self.slots[slot as usize % SLOTS]
    }

    fn oldest_first(&self) -> impl DoubleEndedIterator<Item = Option<&T>> {
        let first = self.newest as usize % SLOTS + 1;
        (first..first + SLOTS).map(|at| self.slots[at % SLOTS].as_ref())
    }
}

/// What had been counted at a moment.
struct Mark {
    at: Instant,
    tally: Tally,
}

/// The rings.
pub(super) struct History {
    began: Instant,
    marks: Ring<Mark>,
    environments: Vec<(String, Ring<u32>)>,
    egress: Ring<u32>,
}

impl History {
    /// Of a process that begins, with what it has counted so far.
    pub(super) fn new(tally: Tally) -> Self {
        let began = Instant::now();
        let mut marks = Ring::new(0);
        *marks.at(0) = Some(Mark { at: began, tally });
        Self { began, marks, environments: Vec::new(), egress: Ring::new(0) }
    }

    /// Takes a sample in; what it makes of it and of those before.
    pub(super) fn take(&mut self, status: Status, tally: &Tally, ready: bool) -> Figures {
        let now = Instant::now();
        let slot = now.saturating_duration_since(self.began).as_nanos() / STEP.as_nanos();
        let slot = u64::try_from(slot).unwrap_or(u64::MAX);
        self.marks.at(slot).get_or_insert_with(|| Mark { at: now, tally: tally.clone() });
        // What a reload took away is no longer told of.
        let known = |name: &String| status.environments.iter().any(|budget| budget.name == *name);
        self.environments.retain(|(name, _)| known(name));

        let (seconds, recent) = self.since(now, PRESENT, tally);
        let (_, minute) = self.since(now, MINUTE, tally);
        let (_, all) = self.since(now, STEP * SLOTS as u32, tally);
        Figures {
            version: status.build.version.to_owned(),
            at: unix_now(),
            up_seconds: now.saturating_duration_since(self.began).as_secs_f64(),
            ready,
            history_step_seconds: STEP.as_secs(),
            environments: status
                .environments
                .into_iter()
                .map(|budget| told(self.least(&budget.name, slot), budget, slot))
                .collect(),
            egress: told(&mut self.egress, status.egress, slot),
            traffic: Traffic {
                per_second: recent.server.count() as f64 / seconds,
                in_flight: tally.in_flight,
                latency: latency(&minute.server),
                answers: ended(&minute.server, &all.server),
                refusals: refusals(&minute, &all),
                history: self.rates(now, tally),
            },
            cache: Cache {
                entries: status.cache.entries,
                bytes: status.cache.bytes,
                capacity_bytes: status.cache.capacity_bytes,
                hit_ratio: all.hit_ratio(),
                hit_ratio_since_start: status.cache.hit_ratio,
            },
            upstream: Upstream {
                healthy: status.upstream.healthy,
                credentials_ok: status.upstream.credentials_ok,
                per_second: recent.client.count() as f64 / seconds,
                latency: latency(&minute.client),
                answers: ended(&minute.client, &all.client),
            },
            credentials: status
                .secrets
                .into_iter()
                .map(|secret| Credential {
                    environment: secret.environment,
                    fingerprint: secret.fingerprint,
                    age_seconds: secret.age.as_secs_f64(),
                    in_use: secret.in_use,
                })
                .collect(),
            store: Store {
                kind: match status.store.kind {
                    StoreKind::Memory => "memory",
                    StoreKind::Redis => "redis",
                }
                .to_owned(),
                partitioned: status.store.partitioned,
                replicas: status.store.replicas,
                pages_partitioned: status.store.pages_partitioned,
            },
            reload: Reload {
                ok: status.reload.ok,
                at: status.reload.at,
                errors: status.reload.errors,
                needs_restart: status.reload.needs_restart,
            },
        }
    }

    /// What was counted in the last `window`, or since the beginning where that is not so long ago, and in how many seconds.
    fn since(&self, now: Instant, window: Duration, tally: &Tally) -> (f64, Tally) {
        let mut marks = self.marks.oldest_first().flatten();
        let first = marks.next();
        let old_enough = |mark: &&Mark| now.saturating_duration_since(mark.at) >= window;
        let Some(mark) = marks.rfind(old_enough).or(first) else { return (1.0, Tally::default()) };
        // At the very beginning a single request is not a thousand per second.
        let seconds = now.saturating_duration_since(mark.at).as_secs_f64().max(1.0);
        (seconds, tally.since(&mark.tally))
    }

    /// The ring of this environment.
    fn least(&mut self, name: &str, slot: u64) -> &mut Ring<u32> {
        let known = self.environments.iter().position(|(known, _)| known == name);
        let at = known.unwrap_or_else(|| {
            self.environments.push((name.to_owned(), Ring::new(slot)));
            self.environments.len() - 1
        });
        &mut self.environments[at].1
    }

    /// Requests per second of each slot, up to the present in the last.
    fn rates(&self, now: Instant, tally: &Tally) -> Vec<Option<f64>> {
        let present = Mark { at: now, tally: tally.clone() };
        let marks: Vec<Option<&Mark>> = self.marks.oldest_first().collect();
        let rate = |at: usize| {
            let (from, to) =
                (marks[at]?, marks[at + 1..].iter().flatten().next().copied().unwrap_or(&present));
            let seconds = to.at.saturating_duration_since(from.at).as_secs_f64().max(1.0);
            Some(to.tally.server.count().saturating_sub(from.tally.server.count()) as f64 / seconds)
        };
        (0..marks.len()).map(rate).collect()
    }
}

fn told(least: &mut Ring<u32>, status: BudgetStatus, slot: u64) -> Budget {
    let kept = least.at(slot);
    *kept = Some(kept.map_or(status.remaining, |least| least.min(status.remaining)));
    Budget {
        name: status.name,
        limit: status.limit,
        window_seconds: status.window.as_secs_f64(),
        remaining: status.remaining,
        next_slot_seconds: status.next_slot.as_secs_f64(),
        gate_seconds: status.gate.as_secs_f64(),
        waiting: status.queued as u64,
        oldest_wait_seconds: status.oldest_wait.map(|wait| wait.as_secs_f64()),
        history: least.oldest_first().map(Option::<&u32>::copied).collect(),
    }
}

fn latency(times: &Times) -> Latency {
    Latency {
        p50_seconds: times.quantile(0.5),
        p90_seconds: times.quantile(0.9),
        p99_seconds: times.quantile(0.99),
    }
}

fn ended(minute: &Times, all: &Times) -> Vec<Ended> {
    let ended = all.ends.iter().map(|(end, count)| Ended {
        end: end.to_string(),
        last_minute: minute.ends.get(end).copied().unwrap_or(0),
        last_ten_minutes: *count,
    });
    ended.collect()
}

/// Every reason there is, those too that nobody was refused for: a list that grows is hard to read.
fn refusals(minute: &Tally, all: &Tally) -> Vec<Refusals> {
    let told = |policy: &Policy| {
        let (status, code) = match policy {
            Policy::Client | Policy::Environment | Policy::Egress | Policy::Upstream => {
                (429, "rate_limit_exceeded")
            }
            Policy::Authenticate => (401, "unauthorized"),
            Policy::Authorize => (403, "forbidden"),
            Policy::Admit => (503, "overloaded"),
        };
        Refusals {
            policy: policy.as_str().to_owned(),
            code: code.to_owned(),
            status,
            last_minute: minute.refused[policy.index()],
            last_ten_minutes: all.refused[policy.index()],
        }
    };
    Policy::ALL.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::edge::admin::status;
    use crate::telemetry::labels::Outcome;
    use crate::telemetry::metrics::Metrics;
    use crate::time::sleep;

    fn with_left(left: u32) -> Status {
        let mut status = status::example();
        status.environments[0].remaining = left;
        status
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_of_each_slot_is_kept_for_ten_minutes_and_no_longer() {
        let metrics = Metrics::new();
        let mut history = History::new(metrics.tally());
        let mut take = |left| history.take(with_left(left), &metrics.tally(), true);
        take(5000);
        let figures = take(4000);
        let history = &figures.environments[0].history;
        assert_eq!((history.len(), history[SLOTS - 1], history[SLOTS - 2]), (SLOTS, Some(4000), None));
        take(4500);
        sleep(STEP * 2).await;
        let figures = take(4700);
        assert_eq!(figures.environments[0].history[SLOTS - 3..], [Some(4000), None, Some(4700)]);
        sleep(STEP * (SLOTS as u32 - 3)).await;
        let figures = take(1);
        assert_eq!(figures.environments[0].history[..3], [Some(4000), None, Some(4700)]);
        sleep(STEP).await;
        let figures = take(2);
        assert_eq!(figures.environments[0].history[..3], [None, Some(4700), None], "the oldest is gone");
        sleep(STEP * 1000).await;
        let figures = take(3);
        let kept: Vec<_> = figures.environments[0].history.iter().flatten().collect();
        assert_eq!(kept, [&3], "after a sleep nothing of before is left");
    }

    #[tokio::test(start_paused = true)]
    async fn rates_and_percentiles_are_of_what_lies_between_two_samples() {
        let metrics = Metrics::new();
        let mut history = History::new(metrics.tally());
        let record = |count, millis| {
            for _ in 0..count {
                metrics.server.record(&Method::GET, 200, "/providers", Duration::from_millis(millis));
            }
        };
        record(100, 400);
        metrics.decision(Policy::Authorize, Outcome::Refused);
        let figures = history.take(status::example(), &metrics.tally(), true);
        assert_eq!((figures.traffic.per_second, figures.traffic.history[SLOTS - 1]), (100.0, Some(100.0)));
        // A minute later the slow ones are no longer among those of the last minute.
        for _ in 0..70 {
            sleep(Duration::from_secs(1)).await;
            record(2, 4);
            history.take(status::example(), &metrics.tally(), true);
        }
        let figures = history.take(status::example(), &metrics.tally(), true);
        assert!((figures.traffic.per_second - 2.0).abs() < 0.4, "{}", figures.traffic.per_second);
        assert!(figures.traffic.latency.p99_seconds.is_some_and(|p99| p99 <= 0.005));
        let answers = &figures.traffic.answers;
        assert_eq!((answers.len(), answers[0].end.as_str(), answers[0].last_ten_minutes), (1, "200", 240));
        assert!((118..=132).contains(&answers[0].last_minute), "{answers:?}");
        let forbidden = figures.traffic.refusals.iter().find(|refusals| refusals.code == "forbidden");
        assert_eq!(forbidden.map(|told| (told.last_minute, told.last_ten_minutes)), Some((0, 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_environment_that_a_reload_took_away_is_forgotten() {
        let mut history = History::new(Tally::default());
        history.take(status::example(), &Tally::default(), true);
        let mut status = status::example();
        status.environments.truncate(1);
        history.take(status, &Tally::default(), true);
        let names: Vec<_> = history.environments.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["production"]);
    }
}
