//! Figures that are asked for when somebody looks, from those who know them.

use std::borrow::Cow;
use std::time::Duration;

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use super::{family, named};
use crate::telemetry::labels::Labels;

/// What is known at the moment of a scrape. Names that a reload removed are simply no longer in it.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// Each budget once, `egress` too.
    pub budgets: Vec<BudgetView>,
    /// Each environment's secrets.
    pub secrets: Vec<SecretView>,
    /// The cache.
    pub cache: CacheView,
    /// Client IPs that a token bucket is held for.
    pub tracked_clients: u64,
    /// Log lines lost because stderr was slower than the proxy or failed.
    pub log_lines_dropped: u64,
    /// Spans that the collector did not take.
    pub spans_dropped: u64,
}

/// A budget as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetView {
    /// Its name.
    pub name: String,
    /// Requests per window.
    pub limit: u32,
    /// Requests that are still free.
    pub remaining: u32,
}

/// The cache as it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheView {
    /// Pages kept.
    pub entries: u64,
    /// Bytes they take up.
    pub bytes: u64,
    /// Bytes they may take up.
    pub capacity: u64,
}

/// A secret as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretView {
    /// The environment it serves.
    pub environment: String,
    /// `current` or `next`.
    pub key: &'static str,
    /// Its name: it gives nothing away.
    pub fingerprint: String,
    /// Since it was put in place.
    pub age: Duration,
    /// It is the one that upstream took last.
    pub in_use: bool,
}

impl Scrape {
    /// A registry of its own for each scrape: two at once don't see each other's half.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        let r = &mut registry;
        let limit: Family<Labels, Gauge> =
            family(r, "metorial_proxy_budget_limit", "Requests that a budget grants per window");
        let remaining: Family<Labels, Gauge> =
            family(r, "metorial_proxy_budget_remaining", "Requests that a budget grants at this moment");
        for budget in &self.budgets {
            let labels = named("budget", &budget.name);
            limit.get_or_create(&labels).set(i64::from(budget.limit));
            remaining.get_or_create(&labels).set(i64::from(budget.remaining));
        }

        let age = Family::<Labels, Gauge>::default();
        for secret in &self.secrets {
            let seconds = i64::try_from(secret.age.as_secs()).unwrap_or(i64::MAX);
            let labels = vec![
                ("environment", Cow::Owned(secret.environment.clone())),
                ("key", Cow::Borrowed(secret.key)),
                ("fingerprint", Cow::Owned(secret.fingerprint.clone())),
                ("in_use", Cow::Borrowed(if secret.in_use { "true" } else { "false" })),
            ];
            age.get_or_create(&labels).set(seconds);
        }
        let help = "Time since an environment's secret key was put in place";
        r.register_with_unit("metorial_proxy_secret_age", help, Unit::Seconds, age);

        let CacheView { entries, bytes, capacity } = self.cache;
        r.register("metorial_proxy_cache_entries", "Pages kept", ConstGauge::new(entries));
        for (name, help, bytes) in [
            ("metorial_proxy_cache", "Bytes that pages take up", bytes),
            ("metorial_proxy_cache_capacity", "Bytes that pages may take up", capacity),
        ] {
            r.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes));
        }

        let clients = ConstGauge::new(self.tracked_clients);
        r.register("metorial_proxy_tracked_clients", "Client IPs that a token bucket is held for", clients);
        let dropped = ConstCounter::new(self.log_lines_dropped);
        let help = "Log lines lost because stderr was slower than the proxy or failed";
        r.register("metorial_proxy_log_lines_dropped", help, dropped);
        let spans = ConstCounter::new(self.spans_dropped);
        let help = "Spans lost because the collector was slower than the proxy or did not take them";
        r.register("metorial_proxy_spans_dropped", help, spans);
        registry
    }
}
