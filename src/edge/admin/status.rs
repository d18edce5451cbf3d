//! What `/status` says: the proxy's state as one JSON object, without a secret in it.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// The whole answer.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Each environment and its budget.
    pub environments: Vec<BudgetStatus>,
    /// The budget of our own IP.
    pub egress: BudgetStatus,
    /// Pages held.
    pub cache: CacheStatus,
    /// Where budgets are kept.
    pub store: StoreStatus,
    /// The API.
    pub upstream: UpstreamStatus,
    /// Our keys, by name.
    pub secrets: Vec<SecretStatus>,
    /// The last time the configuration was read.
    pub reload: ReloadStatus,
    /// What is running.
    pub build: BuildStatus,
}

/// A budget at this moment.
#[derive(Debug, Clone, Serialize)]
pub struct BudgetStatus {
    /// The environment's name, or `egress`.
    pub name: String,
    /// Requests per window.
    pub limit: u32,
    /// Length of the window, in seconds.
    #[serde(rename = "window_seconds", serialize_with = "seconds")]
    pub window: Duration,
    /// Requests that are still free.
    pub remaining: u32,
    /// Until a request is free again, in seconds; zero where one is.
    #[serde(rename = "next_slot_seconds", serialize_with = "seconds")]
    pub next_slot: Duration,
    /// How long a 429 by upstream still holds everything back, in seconds; zero where nothing does.
    #[serde(rename = "gate_seconds", serialize_with = "seconds")]
    pub gate: Duration,
    /// Requests that wait for this budget.
    pub queued: usize,
    /// For how long the first of them has waited, in seconds; null where none does.
    #[serde(rename = "oldest_wait_seconds", serialize_with = "maybe_seconds")]
    pub oldest_wait: Option<Duration>,
}

/// Pages held.
#[derive(Debug, Clone, Serialize)]
pub struct CacheStatus {
    /// How many.
    pub entries: u64,
    /// How large they are.
    pub bytes: u64,
    /// How large they may be.
    pub capacity_bytes: u64,
    /// Share of list requests answered without upstream, 0 to 1; null before the first.
    pub hit_ratio: Option<f64>,
}

/// Where budgets are kept.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StoreStatus {
    /// Which kind.
    pub kind: StoreKind,
    /// Whether it is out of reach, and this replica goes on with its share of each budget.
    pub partitioned: bool,
    /// Replicas that share it, as far as this one knows.
    pub replicas: u32,
    /// Whether pages are cut off from those of other replicas: only fresh ones are served then.
    pub pages_partitioned: bool,
}

/// The kinds of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// This process.
    Memory,
    /// Redis or Valkey, shared by all replicas.
    Redis,
}

/// The API as the proxy sees it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct UpstreamStatus {
    /// It answered when it was last asked.
    pub healthy: bool,
    /// It took every secret.
    pub credentials_ok: bool,
}

/// A secret key, of which only a name is shown.
#[derive(Debug, Clone, Serialize)]
pub struct SecretStatus {
    /// The environment it serves.
    pub environment: String,
    /// The first eight hexadecimal digits of its SHA-256.
    pub fingerprint: String,
    /// Since it was read, in seconds.
    #[serde(rename = "age_seconds", serialize_with = "seconds")]
    pub age: Duration,
    /// Whether upstream took it last, or it is the only one.
    pub in_use: bool,
}

/// The last time the configuration was read.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadStatus {
    /// It is in use.
    pub ok: bool,
    /// When, in seconds since 1970; shown as a date of RFC 3339.
    #[serde(serialize_with = "date")]
    pub at: u64,
    /// Why it is not.
    pub errors: Vec<String>,
    /// Keys that say something else than what is in force, which only a restart changes.
    pub needs_restart: Vec<String>,
}

/// What is running.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BuildStatus {
    /// Its version.
    pub version: &'static str,
}

impl Default for BuildStatus {
    fn default() -> Self {
        Self { version: env!("CARGO_PKG_VERSION") }
    }
}

/// Whole seconds as an integer, parts of them to the millisecond and rounded up: a wait is never told too short.
fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    match u64::try_from(millis) {
        Ok(millis) if millis % 1000 > 0 => {
            serializer.serialize_f64(Duration::from_millis(millis).as_secs_f64())
        }
        Ok(millis) => serializer.serialize_u64(millis / 1000),
        Err(_) => serializer.serialize_u64(duration.as_secs()),
    }
}

fn maybe_seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => seconds(duration, serializer),
        None => serializer.serialize_none(),
    }
}

fn date<S: Serializer>(at: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    /// The last second of the year 9999, which no date of RFC 3339 lies beyond.
    const LAST: u64 = 253_402_300_799;
    let at = UNIX_EPOCH + Duration::from_secs((*at).min(LAST));
    serializer.collect_str(&humantime::format_rfc3339_seconds(at))
}

#[cfg(test)]
pub(super) fn example() -> Status {
    let budget = |name: &str, limit, seconds, remaining| BudgetStatus {
        name: name.to_owned(),
        limit,
        window: Duration::from_secs(seconds),
        remaining,
        next_slot: Duration::from_millis(if remaining == 0 { 1_250 } else { 0 }),
        gate: Duration::ZERO,
        queued: if remaining == 0 { 3 } else { 0 },
        oldest_wait: (remaining == 0).then_some(Duration::from_millis(750)),
    };
    Status {
        environments: vec![budget("production", 5000, 600, 4211), budget("development", 100, 600, 0)],
        egress: budget("egress", 1000, 10, 990),
        cache: CacheStatus { entries: 12, bytes: 34_567, capacity_bytes: 268_435_456, hit_ratio: Some(0.75) },
        store: StoreStatus {
            kind: StoreKind::Memory,
            partitioned: false,
            replicas: 1,
            pages_partitioned: false,
        },
        upstream: UpstreamStatus { healthy: true, credentials_ok: true },
        secrets: vec![SecretStatus {
            environment: "production".into(),
            fingerprint: "0f1e2d3c".into(),
            age: Duration::from_secs(90),
            in_use: true,
        }],
        reload: ReloadStatus {
            ok: false,
            at: 1_795_447_527,
            errors: vec!["server.listen: no address".into()],
            needs_restart: vec!["server.workers".into()],
        },
        build: BuildStatus { version: "1.2.3" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_documented_one() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&example()).expect("serialises"));
    }

    #[test]
    fn figures_stay_valid_at_their_ends() {
        let mut status = example();
        status.cache.hit_ratio = None;
        status.reload.at = u64::MAX;
        status.egress.gate = Duration::MAX;
        status.egress.next_slot = Duration::from_nanos(1);
        let json = serde_json::to_value(&status).expect("serialises");
        assert_eq!(json["cache"]["hit_ratio"], serde_json::Value::Null);
        assert_eq!(json["reload"]["at"], "9999-12-31T23:59:59Z");
        assert_eq!(json["egress"]["gate_seconds"], u64::MAX);
        assert_eq!(json["egress"]["next_slot_seconds"], 0.001);
    }
}
