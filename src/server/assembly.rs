//! Layers from a configuration and the parts that outlive it.

use std::sync::Arc;
use std::time::Duration;

use http::header::FORWARDED;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower::retry::budget::TpsBudget;

use super::StartError;
use crate::config::{ClientIpHeader, Config, RedisUrl, SharedStore};
use crate::domain::client_ip::X_FORWARDED_FOR;
use crate::domain::environment::Environment;
use crate::domain::origin::Origins;
use crate::domain::quota::Plan;
use crate::edge::redis::RedisLink;
use crate::edge::state_file::Past;
use crate::edge::tls;
use crate::exchange::EnvironmentHandle;
use crate::pipeline::{self, Layers, Pipeline};
use crate::policy::admit::AdmitLayer;
use crate::policy::authenticate::{AuthenticateLayer, Callers};
use crate::policy::authorize::AuthorizeLayer;
use crate::policy::budget::{BudgetLayer, Egress};
use crate::policy::cache::{CacheLayer, CacheParts, Fills};
use crate::policy::catch_panic::CatchPanicLayer;
use crate::policy::client_limit::ClientLimitLayer;
use crate::policy::cors::CorsLayer;
use crate::policy::deadline::DeadlineLayer;
use crate::policy::forward::{self, ForwardLayer, Transport};
use crate::policy::identify::{self, IdentifyLayer};
use crate::policy::inject::InjectLayer;
use crate::policy::observe::ObserveLayer;
use crate::policy::respond::RespondLayer;
use crate::policy::retry::{self, RetryLayer};
use crate::store::clients::ClientLimits;
use crate::store::limits::{BudgetId, EGRESS, LimitStore, Limits, MemoryLimits, Settings, SharedLimits};
use crate::store::link::Names;
use crate::store::pages::MemoryPages;
use crate::store::queues::{Queue, Queues};
use crate::store::secrets::Secrets;
use crate::telemetry::health::UpstreamHealth;
use crate::telemetry::metrics::Metrics;

/// No `ttl` of a rule is longer; upstream's `max-age` may be, and ends here.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);

/// What must not forget: made once, shared by every pipeline.
pub(super) struct Lasting {
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Arc<Limits<RedisLink>>,
    pub(super) pages: Arc<MemoryPages>,
    pub(super) clients: Arc<ClientLimits>,
    pub(super) health: Arc<UpstreamHealth>,
    pub(super) environments: Vec<Arc<EnvironmentHandle>>,
    /// Of each environment, in their order.
    pub(super) secrets: Vec<Arc<Secrets>>,
    pub(super) egress: BudgetId,
    egress_queue: Arc<Queue>,
    fills: Arc<Fills>,
    places: Arc<Semaphore>,
    retries: Arc<TpsBudget>,
}

impl Lasting {
    /// `past`: what was spent before this process began, as far as that was kept.
    pub(super) fn new(config: &Config, metrics: Arc<Metrics>, past: Past, links: Option<&Links>) -> Self {
        let plan = Plan::window(config.upstream.egress_limit);
        let limits = Arc::new(match links.zip(config.store.shared.as_ref()) {
            None => Limits::Memory(remembered(past, plan)),
            Some((links, store)) => Limits::Shared(SharedLimits::new(
                links.limits.clone(),
                Settings {
                    prefix: store.prefix.clone(),
                    timeout: store.timeout,
                    min_replicas: store.min_replicas,
                    egress_group: config.upstream.egress_group.clone(),
                },
            )),
        });
        let egress = limits.budget(EGRESS, &[], plan);
        let queues = Queues::default();
        let environments = config.environments.iter().enumerate().map(|(index, environment)| {
            let same = |other: &&Arc<Environment>| other.budget == environment.budget;
            let users: Vec<&str> =
                config.environments.iter().filter(same).map(|user| user.name.as_str()).collect();
            let name = format!("environment:{}", environment.budget);
            let budget = limits.budget(&name, &users, environment.plan());
            let queue = queues.of(budget, environment.limit.window, None);
            Arc::new(EnvironmentHandle {
                environment: environment.clone(),
                budget,
                queue,
                pages: environment.name.as_str().into(),
                index,
            })
        });
        let environments = environments.collect();
        let secrets = config.environments.iter().map(|environment| Arc::new(Secrets::of(environment)));
        let backstop = LONGEST_TTL + config.cache.stale_if_error;
        Self {
            metrics,
            limits,
            pages: Arc::new(MemoryPages::new(config.cache.capacity, backstop)),
            clients: Arc::new(ClientLimits::new(config.clients.limit, config.clients.max_tracked)),
            health: Arc::default(),
            environments,
            secrets: secrets.collect(),
            egress,
            egress_queue: queues.of(egress, config.upstream.egress_limit.window, None),
            fills: Arc::default(),
            places: Arc::new(Semaphore::new(config.server.max_in_flight.min(Semaphore::MAX_PERMITS))),
            retries: Arc::new(retry::budget(&config.upstream.retry)),
        }
    }
}

/// Budgets of a single replica, as they were when it stopped.
fn remembered(mut past: Past, egress: Plan) -> MemoryLimits {
    let limits = MemoryLimits::default();
    if past.unclean {
        // Where an environment's budget is not in the file, upstream's first answer tells of it; of our address nobody does.
        past.assume(EGRESS, egress);
    }
    limits.recall(past.budgets, past.ago);
    limits
}

/// The connections to what replicas share, where they do.
#[derive(Clone)]
pub(super) struct Links {
    /// To where budgets and clients are.
    pub(super) limits: RedisLink,
    /// To where pages are; often the same.
    pub(super) pages: RedisLink,
}

/// Makes them; they are not connected before they run.
///
/// # Errors
/// What keeps the proxy from starting.
pub(super) fn links(store: &SharedStore) -> Result<Links, StartError> {
    let tls = tls::store(store.ca_certificate.as_deref());
    let tls = tls.map_err(|error| StartError::new("store.ca_certificate", error))?;
    let names = Names::new(&store.prefix);
    let link = |key: &str, url: &RedisUrl, channels: Vec<String>| {
        let link = RedisLink::new(url.clone(), tls.clone(), store.timeout, channels);
        link.map_err(|error| StartError::new(key, error))
    };
    let (budgets, clients, pages) = (names.budgets(), names.clients(), names.pages());
    match &store.pages_url {
        None => {
            let link = link("store.url", &store.url, vec![budgets, clients, pages])?;
            Ok(Links { limits: link.clone(), pages: link })
        }
        Some(pages_url) => Ok(Links {
            limits: link("store.url", &store.url, vec![budgets, clients])?,
            pages: link("store.pages_url", pages_url, vec![pages])?,
        }),
    }
}

/// One pipeline as a worker has it, with stores of its own and over any transport: what a request costs without a socket.
///
/// # Errors
/// What keeps the proxy from starting.
pub fn pipeline_over(config: &Config, transport: impl Transport) -> Result<Pipeline, StartError> {
    let lasting = Lasting::new(config, Arc::new(Metrics::new()), Past::default(), None);
    Ok(pipeline::build(layers(config, &lasting, &TaskTracker::new())?, transport))
}

pub(super) fn layers(
    config: &Config,
    lasting: &Lasting,
    tasks: &TaskTracker,
) -> Result<Layers<Limits<RedisLink>, MemoryPages>, StartError> {
    let Lasting { metrics, limits, clients, environments, .. } = lasting;
    let (server, upstream) = (&config.server, &config.upstream);
    let union = environments.iter().flat_map(|handle| handle.environment.origins.iter().map(str::to_owned));
    let injected = environments.iter().map(|handle| &*handle.environment).zip(&lasting.secrets);
    let client_ip_header = match server.client_ip_header {
        ClientIpHeader::XForwardedFor => X_FORWARDED_FOR,
        ClientIpHeader::Forwarded => FORWARDED,
    };
    Ok(Layers {
        observe: ObserveLayer::new(metrics.clone(), config.telemetry.access_log),
        cors: CorsLayer::new(Origins::new(union.collect())),
        respond: RespondLayer::new(
            limits.clone(),
            clients.quota(),
            environments,
            config.clients.max_retry_after,
        ),
        catch_panic: CatchPanicLayer::new(metrics.clone()),
        admit: AdmitLayer::new(lasting.places.clone(), metrics.clone()),
        deadline: DeadlineLayer::new(server.request_timeout),
        identify: IdentifyLayer::new(
            identify::Rules {
                base_path: server.base_path.clone(),
                hosts: server.hosts.clone(),
                max_uri: server.max_uri,
                max_header_bytes: server.max_header_bytes,
                max_request_body: server.max_request_body,
                trusted_proxies: server.trusted_proxies.clone(),
                client_ip_header,
                ipv6_prefix: config.clients.ipv6_prefix,
            },
            clients.clone(),
            metrics.clone(),
        ),
        client_limit: ClientLimitLayer::new(clients.clone(), metrics.clone()),
        authenticate: AuthenticateLayer::new(Callers::new(environments), clients.clone(), metrics.clone()),
        authorize: AuthorizeLayer::new(metrics.clone(), environments),
        cache: CacheLayer::new(CacheParts {
            pages: lasting.pages.clone(),
            limits: limits.clone(),
            egress: lasting.egress,
            fills: lasting.fills.clone(),
            config: config.cache,
            forward_headers: upstream.forward_headers.clone(),
            request_timeout: server.request_timeout,
            tasks: tasks.clone(),
            metrics: metrics.clone(),
        }),
        retry: RetryLayer::new(upstream.retry, lasting.retries.clone(), metrics.clone()),
        budget: BudgetLayer::new(
            limits.clone(),
            Egress {
                budget: lasting.egress,
                window: upstream.egress_limit.window,
                queue: lasting.egress_queue.clone(),
            },
            upstream.retry,
            metrics.clone(),
        ),
        inject: InjectLayer::new(injected)
            .map_err(|message| StartError { place: "environments".to_owned(), message })?,
        forward: ForwardLayer::new(
            forward::Rules {
                authority: upstream.authority.clone(),
                base_path: upstream.base_path.clone(),
                forward_headers: upstream.forward_headers.clone(),
                attempt_timeout: upstream.attempt_timeout,
                body_idle_timeout: server.body_idle_timeout,
            },
            metrics.clone(),
            lasting.health.clone(),
        ),
    })
}
