//! What the admin port shows of a running server.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::engine::Engine;
use super::explain::explain;
use crate::domain::operation;
use crate::domain::quota::Quota;
use crate::domain::rotation::Which;
use crate::edge::admin::explanation::Question;
use crate::edge::admin::status::{
    BudgetStatus, BuildStatus, CacheStatus, SecretStatus, StoreKind, StoreStatus, UpstreamStatus,
};
use crate::edge::admin::{Explaining, Invalidating, Status, Unknown, View};
use crate::store::limits::{BudgetId, LimitStore, Limits};
use crate::store::pages::PageStore;
use crate::store::queues::Queue;
use crate::store::secrets::Standing;
use crate::telemetry::exposition::Format;
use crate::telemetry::logging;
use crate::telemetry::metrics::{BudgetView, CacheView, Metrics, Scrape, SecretView};
use crate::telemetry::tally::Tally;
use crate::time::Timestamp;

/// A collector that does not answer must not hold up the end for longer.
const FLUSH: Duration = Duration::from_secs(5);

/// Looks at the lasting parts, and at what is in force.
pub(super) struct ServerView(pub(super) Arc<Engine>);

impl ServerView {
    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.lasting.metrics
    }

    /// Delivers the last traces, for at most `within`.
    pub(super) async fn flush(&self, within: Duration) {
        let Some(traces) = self.0.lasting.traces.clone() else { return };
        let within = within.min(FLUSH);
        // A panic of the exporter's is no reason to end in another way.
        tokio::task::spawn_blocking(move || traces.shutdown(within)).await.ok();
    }

    /// Every secret key, and the environment it serves.
    fn secrets(&self) -> Vec<(String, Standing)> {
        let setup = self.0.setup();
        let environments = setup.environments.iter().zip(&setup.secrets);
        let keys = environments.flat_map(|(handle, secrets)| {
            secrets.standings().into_iter().map(|key| (handle.environment.name.clone(), key))
        });
        keys.collect()
    }

    fn store(&self) -> StoreStatus {
        match &*self.0.lasting.limits {
            Limits::Memory(_) => StoreStatus {
                kind: StoreKind::Memory,
                partitioned: false,
                replicas: 1,
                pages_partitioned: false,
            },
            Limits::Shared(limits) => StoreStatus {
                kind: StoreKind::Redis,
                partitioned: limits.cut_off().is_some(),
                replicas: limits.replicas(),
                pages_partitioned: self.0.lasting.pages.cut_off().is_some(),
            },
        }
    }

    /// Every budget under the name operators know it by.
    fn budgets(&self) -> Vec<BudgetStatus> {
        let setup = self.0.setup();
        let views = self.0.lasting.limits.views();
        let now = Timestamp::now();
        let status = |name: &str, budget: BudgetId, quota: Quota, queue: Option<&Queue>| {
            let view = &views[budget.0];
            let grows_in = view.snapshot.grows_at.map_or(Duration::ZERO, |at| Timestamp(at).since(now));
            BudgetStatus {
                name: name.to_owned(),
                limit: quota.requests,
                window: quota.window,
                remaining: view.snapshot.remaining,
                next_slot: if view.snapshot.remaining > 0 { Duration::ZERO } else { grows_in },
                gate: view.gate,
                queued: queue.map_or(0, Queue::len),
                oldest_wait: queue.and_then(Queue::oldest),
            }
        };
        let environments = setup.environments.iter().map(|handle| {
            status(&handle.environment.name, handle.budget, handle.environment.limit, Some(&handle.queue))
        });
        let mut all: Vec<BudgetStatus> = environments.collect();
        all.push(status("egress", setup.egress, setup.config.upstream.egress_limit, None));
        all
    }
}

impl View for ServerView {
    fn ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed)
    }

    fn metrics(&self, format: Format) -> String {
        let budgets = self.budgets().into_iter().map(|budget| BudgetView {
            name: budget.name,
            limit: budget.limit,
            remaining: budget.remaining,
        });
        let secrets = self.secrets().into_iter().map(|(environment, key)| SecretView {
            environment,
            key: match key.which {
                Which::Current => "current",
                Which::Next => "next",
            },
            fingerprint: key.fingerprint,
            age: key.age,
            in_use: key.in_use,
        });
        self.0.lasting.metrics.store_partitioned(self.0.lasting.limits.cut_off().is_some());
        let usage = self.0.lasting.pages.usage();
        let scrape = Scrape {
            budgets: budgets.collect(),
            secrets: secrets.collect(),
            cache: CacheView { entries: usage.entries, bytes: usage.bytes, capacity: usage.capacity },
            tracked_clients: self.0.setup().clients.tracked() as u64,
            log_lines_dropped: logging::dropped(),
            spans_dropped: self.0.lasting.traces.as_ref().map_or(0, |traces| traces.lost()),
        };
        self.0.lasting.metrics.render(format, &scrape)
    }

    fn status(&self) -> Status {
        let mut environments = self.budgets();
        let egress = environments.remove(environments.len() - 1);
        let usage = self.0.lasting.pages.usage();
        Status {
            environments,
            egress,
            cache: CacheStatus {
                entries: usage.entries,
                bytes: usage.bytes,
                capacity_bytes: usage.capacity,
                hit_ratio: self.0.lasting.metrics.hit_ratio(),
            },
            store: self.store(),
            upstream: UpstreamStatus {
                healthy: self.0.lasting.health.healthy(),
                credentials_ok: self.0.setup().secrets.iter().all(|secrets| secrets.ok()),
            },
            secrets: self
                .secrets()
                .into_iter()
                .map(|(environment, key)| SecretStatus {
                    environment,
                    fingerprint: key.fingerprint,
                    age: key.age,
                    in_use: key.in_use,
                })
                .collect(),
            reload: self.0.reload_status(),
            build: BuildStatus { version: env!("CARGO_PKG_VERSION") },
        }
    }

    fn tally(&self) -> Tally {
        self.0.lasting.metrics.tally()
    }

    fn explain(&self, question: Question) -> Explaining<'_> {
        Box::pin(async move {
            let setup = self.0.setup();
            explain(&setup.config, &question).map_err(|error| error.to_string())
        })
    }

    fn invalidate<'a>(&'a self, environment: &'a str, collection: &'a str) -> Invalidating<'a> {
        Box::pin(async move {
            let setup = self.0.setup();
            let mut handles = setup.environments.iter();
            let handle =
                handles.find(|handle| handle.environment.name == environment).ok_or(Unknown::Environment)?;
            if !collection.starts_with('/') || collection.len() < 2 || collection.contains(['?', '#', '%']) {
                return Err(Unknown::Collection);
            }
            let collection = operation::collection(collection).to_owned();
            self.0.lasting.pages.invalidate(&handle.environment.budget, &[collection]).await;
            Ok(())
        })
    }
}
