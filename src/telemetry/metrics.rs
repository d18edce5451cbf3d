//! Every figure the proxy exposes, behind methods that leave no label to chance.
//!
//! What is counted per request is a held handle: an addition, no look-up. What somebody else knows better (budgets, the
//! age of secrets) is asked for when it is scraped, in a [`Scrape`]. Counters of known labels start at zero, so that the
//! first refusal is an increase and not a new series.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::telemetry::durations::{ClientDurations, ServerDurations};
use crate::telemetry::exposition::Format;
use crate::telemetry::gauge::Level;
use crate::telemetry::labels::{
    CacheResult, Label, Labels, Outcome, Policy, RefusedConnection, Reload, RetryReason, SharedPage,
};
use crate::telemetry::tally::Tally;

mod scrape;
#[cfg(test)]
mod tests;

pub use scrape::{BudgetView, CacheView, Scrape, SecretView};

/// All families. One per process, shared by every pipeline that a reload builds.
#[derive(Debug)]
pub struct Metrics {
    /// Requests of callers.
    pub server: ServerDurations,
    /// Attempts towards upstream.
    pub client: ClientDurations,
    /// `metorial_proxy_requests_in_flight`
    pub in_flight: Level,
    registry: Registry,
    decisions: Box<[Counter]>,
    cache: Box<[Counter]>,
    shared_pages: Box<[Counter]>,
    retries: Box<[Counter]>,
    connections_refused: Box<[Counter]>,
    reloads: Box<[Counter]>,
    rate_limited: Family<Labels, Counter>,
    credentials_refused: Family<Labels, Counter>,
    shadow_refused: Family<Labels, Counter>,
    connections: Family<Labels, Gauge>,
    secret_guard: Counter,
    panics: Counter,
    store_partitioned: Gauge,
}

impl Metrics {
    /// All families, registered; every counter of known labels at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let server = ServerDurations::register(&mut registry);
        let client = ClientDurations::register(&mut registry);
        let r = &mut registry;
        let build_info: Family<Labels, Gauge> =
            family(r, "metorial_proxy_build_info", "The running version; always 1");
        let version = ("version", Cow::Borrowed(env!("CARGO_PKG_VERSION")));
        build_info.get_or_create(&vec![version]).set(1);

        Self {
            server,
            client,
            in_flight: Level(single(
                r,
                "metorial_proxy_requests_in_flight",
                "Requests being served at this moment",
            )),
            decisions: decisions(r),
            cache: counters::<CacheResult>(
                r,
                "metorial_proxy_cache_requests",
                "List requests by where their answer came from",
            ),
            shared_pages: counters::<SharedPage>(
                r,
                "metorial_proxy_shared_pages",
                "Pages asked for in the store that replicas share",
            ),
            retries: counters::<RetryReason>(
                r,
                "metorial_proxy_retries",
                "Attempts towards upstream after the first one, by what was wrong with the one before",
            ),
            connections_refused: counters::<RefusedConnection>(
                r,
                "metorial_proxy_connections_refused",
                "Connections closed before a request was read from them",
            ),
            reloads: counters::<Reload>(
                r,
                "metorial_proxy_config_reloads",
                "Reloads of the configuration; after a failed one the last good configuration stays",
            ),
            rate_limited: family(
                r,
                "metorial_proxy_upstream_rate_limited",
                "Answers of 429 by upstream, by the budget they were charged to",
            ),
            credentials_refused: family(
                r,
                "metorial_proxy_upstream_credentials_refused",
                "Answers of 401 by upstream to our secret key",
            ),
            shadow_refused: family(
                r,
                "metorial_proxy_shadow_refused",
                "Requests that were allowed and that a shadow rule would have refused",
            ),
            connections: family(r, "metorial_proxy_connections", "Connections open at this moment"),
            secret_guard: single(
                r,
                "metorial_proxy_secret_guard",
                "Answers withheld because they held the secret key",
            ),
            panics: single(r, "metorial_proxy_panics", "Requests that ended in a panic"),
            store_partitioned: single(
                r,
                "metorial_proxy_store_partitioned",
                "1 while the shared store can't be reached and this replica lives on its own share",
            ),
            registry,
        }
    }

    /// A policy let a request pass, or didn't.
    #[inline]
    pub fn decision(&self, policy: Policy, outcome: Outcome) {
        self.decisions[policy.index() * Outcome::ALL.len() + outcome.index()].inc();
    }

    /// A list request was answered, or a page fetched ahead.
    #[inline]
    pub fn cache(&self, result: CacheResult) {
        self.cache[result.index()].inc();
    }

    /// The shared store was asked for a page.
    pub fn shared_page(&self, result: SharedPage) {
        self.shared_pages[result.index()].inc();
    }

    /// Share of list requests answered without a request of their own to upstream; `None` before the first.
    pub fn hit_ratio(&self) -> Option<f64> {
        Tally { cache: self.cached(), ..Tally::default() }.hit_ratio()
    }

    /// What was counted so far, for whoever looks. Costs as much as a scrape of the histograms.
    pub fn tally(&self) -> Tally {
        let refused = |policy: usize| policy * Outcome::ALL.len() + Outcome::Refused.index();
        Tally {
            server: self.server.read(),
            client: self.client.read(),
            refused: std::array::from_fn(|policy| self.decisions[refused(policy)].get()),
            cache: self.cached(),
            in_flight: self.in_flight.get(),
        }
    }

    fn cached(&self) -> [u64; CacheResult::ALL.len()] {
        std::array::from_fn(|result| self.cache[result].get())
    }

    /// List requests answered so far in this way.
    pub fn cache_count(&self, result: CacheResult) -> u64 {
        self.cache[result.index()].get()
    }

    /// A request goes upstream once more.
    pub fn retry(&self, reason: RetryReason) {
        self.retries[reason.index()].inc();
    }

    /// A connection was closed before a request was read.
    pub fn connection_refused(&self, reason: RefusedConnection) {
        self.connections_refused[reason.index()].inc();
    }

    /// A reload ended.
    pub fn reload(&self, result: Reload) {
        self.reloads[result.index()].inc();
    }

    /// Upstream answered 429 and `budget` has to pause.
    pub fn upstream_rate_limited(&self, budget: &str) {
        self.rate_limited.get_or_create(&named("budget", budget)).inc();
    }

    /// Upstream refused the secret of `environment`.
    pub fn upstream_credentials_refused(&self, environment: &str) {
        self.credentials_refused.get_or_create(&named("environment", environment)).inc();
    }

    /// A shadow rule there is: it counts from zero.
    pub fn shadow_rule(&self, environment: &str, rule: &str) {
        drop(self.shadow_refused.get_or_create(&shadow(environment, rule)));
    }

    /// A shadow rule would have refused a request.
    pub fn shadow_refused(&self, environment: &str, rule: &str) {
        self.shadow_refused.get_or_create(&shadow(environment, rule)).inc();
    }

    /// Open connections of `listener`; each holds one of these as long as it lives.
    pub fn connections(&self, listener: &str) -> Level {
        Level(self.connections.get_or_create_owned(&named("listener", listener)))
    }

    /// An answer held our secret.
    pub fn secret_guard(&self) {
        self.secret_guard.inc();
    }

    /// A request ended in a panic.
    pub fn panic(&self) {
        self.panics.inc();
    }

    /// Whether the shared store is out of reach.
    pub fn store_partitioned(&self, partitioned: bool) {
        self.store_partitioned.set(i64::from(partitioned));
    }

    /// All of it as text, with what was asked for this scrape.
    pub fn render(&self, format: Format, scrape: &Scrape) -> String {
        // Known budgets and environments count from zero too.
        for budget in &scrape.budgets {
            drop(self.rate_limited.get_or_create(&named("budget", &budget.name)));
        }
        for secret in &scrape.secrets {
            drop(self.credentials_refused.get_or_create(&named("environment", &secret.environment)));
        }
        let mut text = String::with_capacity(16 * 1024);
        if self.encode(&mut text, scrape).is_err() {
            // Without its end mark the text is refused by a scraper, rather than believed.
            tracing::error!("the metrics could not be written in full");
        }
        format.convert(text)
    }

    fn encode(&self, text: &mut String, scrape: &Scrape) -> fmt::Result {
        encode_registry(text, &self.registry)?;
        encode_registry(text, &scrape.registry())?;
        encode_eof(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn named(key: &'static str, value: &str) -> Labels {
    vec![(key, Cow::Owned(value.to_owned()))]
}

fn shadow(environment: &str, rule: &str) -> Labels {
    vec![("environment", Cow::Owned(environment.to_owned())), ("rule", Cow::Owned(rule.to_owned()))]
}

fn single<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn family<M>(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, M>
where
    Family<Labels, M>: prometheus_client::registry::Metric,
    M: Default,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

/// One handle for each value of `L`, in its order.
fn counters<L: Label>(registry: &mut Registry, name: &str, help: &str) -> Box<[Counter]> {
    let family: Family<Labels, Counter> = family(registry, name, help);
    L::ALL.iter().map(|value| family.get_or_create_owned(&vec![value.pair()])).collect()
}

fn decisions(registry: &mut Registry) -> Box<[Counter]> {
    let help = "What each policy said of the requests it saw";
    let family: Family<Labels, Counter> = family(registry, "metorial_proxy_decisions", help);
    let both = |policy: &Policy| {
        let policy = policy.pair();
        Outcome::ALL.iter().map(move |outcome| vec![outcome.pair(), policy.clone()])
    };
    Policy::ALL.iter().flat_map(both).map(|labels| family.get_or_create_owned(&labels)).collect()
}
