//! Layers from a configuration and the parts that outlive it.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use http::header::{FORWARDED, HeaderName};
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
use crate::policy::authenticate::{AuthenticateLayer, Callers, Keyring};
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
use crate::store::pages::{MemoryPages, Rules, Seal, SharedPages, TieredPages};
use crate::store::places::Places;
use crate::store::queues::{Queue, Queues};
use crate::store::secrets::Secrets;
use crate::telemetry::health::UpstreamHealth;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{Sent, Served, Traces};

/// No `ttl` of a rule is longer; upstream's `max-age` may be, and ends here.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
/// No page is served that is stale for longer.
const LONGEST_STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// So much longer than an attempt may take is a page fetched for all replicas, before another one does.
const LEASE_MARGIN: Duration = Duration::from_secs(1);

/// What a page's fields take up in the shared store, beside its body.
const PAGE_MARGIN: usize = 128 * 1024;

/// What must not forget: made once, shared by every pipeline, whatever the configuration becomes.
pub(super) struct Lasting {
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Arc<Limits<RedisLink>>,
    pub(super) pages: Arc<TieredPages<RedisLink>>,
    pub(super) health: Arc<UpstreamHealth>,
    pub(super) places: Places,
    queues: Queues,
    fills: Arc<Fills>,
    pub(super) traces: Option<Arc<Traces>>,
}

impl Lasting {
    /// `past`: what was spent before this process began, as far as that was kept.
    ///
    /// # Errors
    /// What keeps the proxy from starting.
    pub(super) fn new(
        config: &Config,
        metrics: Arc<Metrics>,
        past: Past,
        links: Option<&Links>,
        traces: Option<Arc<Traces>>,
    ) -> Result<Self, StartError> {
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
        let shared = config.store.shared.as_ref().zip(links);
        let shared = shared.map(|(store, links)| shared_pages(config, store, links, &metrics)).transpose()?;
        let memory = MemoryPages::new(config.cache.capacity, LONGEST_TTL + LONGEST_STALE);
        Ok(Self {
            metrics,
            limits,
            pages: Arc::new(TieredPages::new(memory, shared.map(Arc::new))),
            health: Arc::default(),
            places: Places::new(config.server.max_in_flight),
            queues: Queues::default(),
            fills: Arc::default(),
            traces,
        })
    }
}

/// The secret keys of a configuration, ready to be sent.
pub(super) struct Keys {
    /// Of each environment, in their order.
    pub(super) secrets: Vec<Arc<Secrets>>,
    inject: InjectLayer,
}

impl Keys {
    /// What is known of them from the setup that was in force before is known still.
    pub(super) fn of(config: &Config, before: Option<&Setup>) -> Result<Self, StartError> {
        let known: Vec<(&str, &Arc<Secrets>)> = before
            .iter()
            .flat_map(|before| before.environments.iter().zip(&before.secrets))
            .map(|(handle, secrets)| (handle.environment.name.as_str(), secrets))
            .collect();
        let secrets = config.environments.iter().map(|environment| {
            let (own, others): (Vec<_>, Vec<_>) =
                known.iter().partition(|(name, _)| *name == environment.name);
            let before: Vec<Arc<Secrets>> =
                own.into_iter().chain(others).map(|(_, secrets)| (*secrets).clone()).collect();
            Secrets::after(environment, &before)
        });
        let secrets: Vec<Arc<Secrets>> = secrets.collect();
        let inject =
            InjectLayer::new(config.environments.iter().map(|environment| &**environment).zip(&secrets))
                .map_err(|message| StartError::new("environments", message))?;
        Ok(Self { secrets, inject })
    }
}

/// What one configuration makes of the lasting parts.
pub(super) struct Setup {
    pub(super) config: Config,
    pub(super) environments: Vec<Arc<EnvironmentHandle>>,
    /// Their publishable keys.
    pub(super) keyring: Arc<Keyring>,
    /// Of each environment, in their order.
    pub(super) secrets: Vec<Arc<Secrets>>,
    pub(super) egress: BudgetId,
    pub(super) clients: Arc<ClientLimits>,
    egress_queue: Arc<Queue>,
    retries: Arc<TpsBudget>,
    inject: InjectLayer,
}

impl Setup {
    /// That of a process that begins.
    pub(super) fn first(config: &Config, lasting: &Lasting) -> Result<Self, StartError> {
        Ok(Self::new(config.clone(), lasting, Keys::of(config, None)?, None))
    }

    /// From here on nothing fails: budgets move to where the configuration has them.
    pub(super) fn new(config: Config, lasting: &Lasting, keys: Keys, before: Option<&Self>) -> Self {
        let Lasting { limits, queues, .. } = lasting;
        let egress = limits.budget(EGRESS, &[], Plan::window(config.upstream.egress_limit));
        let environments = config.environments.iter().enumerate().map(|(index, environment)| {
            let same = |other: &&Arc<Environment>| other.budget == environment.budget;
            let users: Vec<&str> =
                config.environments.iter().filter(same).map(|user| user.name.as_str()).collect();
            let budget = limits.budget(&budget_name(environment), &users, environment.plan());
            let stood = before.and_then(|before| before.stood(environment, &config.environments));
            let queue = queues.of(budget, environment.limit.window, stood);
            let pages = whose_pages(&config, environment);
            Arc::new(EnvironmentHandle { environment: environment.clone(), budget, queue, pages, index })
        });
        let environments: Vec<Arc<EnvironmentHandle>> = environments.collect();
        // Here, not where a worker makes its layers: they count from zero before anybody asks.
        for handle in &environments {
            let rules = handle.environment.access.shadow_rules();
            rules.for_each(|rule| lasting.metrics.shadow_rule(&handle.environment.name, rule));
        }
        let keyring = Arc::new(Keyring::of(config.environments.iter().map(|environment| &**environment)));
        let egress_queue = queues.of(egress, config.upstream.egress_limit.window, None);
        let (limit, most) = (config.clients.limit, config.clients.max_tracked);
        let clients = match before {
            None if config.store.shared.is_some() => ClientLimits::shared(limit, most),
            None => ClientLimits::new(limit, most),
            Some(before) => before.clients.with(limit, most),
        };
        let same_retries =
            before.filter(|before| before.config.upstream.retry.budget == config.upstream.retry.budget);
        let retries = match same_retries {
            Some(before) => before.retries.clone(),
            None => Arc::new(retry::budget(&config.upstream.retry)),
        };
        let Keys { secrets, inject } = keys;
        let clients = Arc::new(clients);
        Self { config, environments, keyring, secrets, egress, clients, egress_queue, retries, inject }
    }

    /// The environments, for one worker: whoever holds one is counted by that worker alone.
    pub(super) fn handles(&self) -> Vec<Rc<EnvironmentHandle>> {
        self.environments.iter().map(|handle| Rc::new((**handle).clone())).collect()
    }

    /// The queue that `environment` stood in and goes on with. Where others stood there too that are to have a budget of their
    /// own, one of `all` has it: who still draws from that budget, else the first. What each spent there tells nothing of the
    /// new ones.
    fn stood(&self, environment: &Environment, all: &[Arc<Environment>]) -> Option<&Arc<Queue>> {
        let before = self.handle(environment)?;
        let heirs = all.iter().filter(|other| {
            self.handle(other).is_some_and(|handle| Arc::ptr_eq(&handle.queue, &before.queue))
        });
        let heir =
            heirs.clone().find(|heir| heir.budget == before.environment.budget).or(heirs.clone().next());
        heir.filter(|heir| heir.budget == environment.budget).map(|_| &before.queue)
    }

    /// The environment that draws from the same budget, or at least goes by the same name.
    pub(super) fn handle(&self, environment: &Environment) -> Option<&Arc<EnvironmentHandle>> {
        let find = |same: &dyn Fn(&Environment) -> bool| {
            self.environments.iter().find(|handle| same(&handle.environment))
        };
        find(&|other| other.budget == environment.budget)
            .or_else(|| find(&|other| other.name == environment.name))
    }
}

/// What a budget is known by in its store.
pub(super) fn budget_name(environment: &Environment) -> String {
    format!("environment:{}", environment.budget)
}

/// Who sees the same pages: the same in every replica, and another where anything is another that an answer comes of. A key
/// that takes the place of another may be that of another instance.
fn whose_pages(config: &Config, environment: &Environment) -> Box<str> {
    let upstream = &config.upstream;
    let forwarded = upstream.forward_headers.iter().map(HeaderName::as_str);
    let parts = [
        &environment.budget,
        environment.secret_key.expose(),
        upstream.scheme.as_str(),
        upstream.authority.as_str(),
        &upstream.base_path,
    ];
    let mut digest = digest::Context::new(&digest::SHA256);
    for part in parts.into_iter().chain(forwarded) {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    let digest = digest.finish();
    let digest: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{digest}", environment.name).into()
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

/// The pages of all replicas that are configured alike.
fn shared_pages(
    config: &Config,
    store: &SharedStore,
    links: &Links,
    metrics: &Arc<Metrics>,
) -> Result<SharedPages<RedisLink>, StartError> {
    let upstream = &config.upstream;
    let keys = config.environments.iter().map(|environment| environment.secret_key.expose().as_bytes());
    // In one order, whatever that of the environments is.
    let keys: Vec<&[u8]> = keys.collect::<BTreeSet<_>>().into_iter().collect();
    let seal = Seal::new(&keys).map_err(|error| StartError::new("store.url", error))?;
    let rules = Rules {
        timeout: store.timeout,
        lease: upstream.attempt_timeout + LEASE_MARGIN,
        longest_wait: config.server.request_timeout,
        // The body, two smaller ones in codings, and the fields.
        largest: config.cache.max_page.saturating_mul(3).saturating_add(PAGE_MARGIN),
    };
    Ok(SharedPages::new(links.pages.clone(), Names::new(&store.prefix), seal, rules, metrics.clone()))
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
    let lasting = Lasting::new(config, Arc::new(Metrics::new()), Past::default(), None, None)?;
    let setup = Setup::first(config, &lasting)?;
    Ok(pipeline::build(layers(&setup, &lasting, &TaskTracker::new()), transport))
}

/// The layers of one worker, whose tasks outlive their requests.
pub(super) fn layers(
    setup: &Setup,
    lasting: &Lasting,
    tasks: &TaskTracker,
) -> Layers<Limits<RedisLink>, TieredPages<RedisLink>> {
    let Lasting { metrics, limits, .. } = lasting;
    let Setup { config, clients, .. } = setup;
    let environments = &setup.handles();
    let (server, upstream) = (&config.server, &config.upstream);
    let union = environments.iter().flat_map(|handle| handle.environment.origins.iter().map(str::to_owned));
    let client_ip_header = match server.client_ip_header {
        ClientIpHeader::XForwardedFor => X_FORWARDED_FOR,
        ClientIpHeader::Forwarded => FORWARDED,
    };
    Layers {
        observe: ObserveLayer::new(
            metrics.clone(),
            config.telemetry.access_log,
            lasting.traces.clone().map(|traces| Served::new(traces, server.tls.is_some())),
        ),
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
        authenticate: AuthenticateLayer::new(
            Callers::new(setup.keyring.clone(), environments),
            clients.clone(),
            metrics.clone(),
        ),
        authorize: AuthorizeLayer::new(metrics.clone()),
        cache: CacheLayer::new(CacheParts {
            pages: lasting.pages.clone(),
            limits: limits.clone(),
            egress: setup.egress,
            fills: lasting.fills.clone(),
            config: config.cache,
            forward_headers: upstream.forward_headers.clone(),
            request_timeout: server.request_timeout,
            tasks: tasks.clone(),
            metrics: metrics.clone(),
        }),
        retry: RetryLayer::new(upstream.retry, setup.retries.clone(), metrics.clone()),
        budget: BudgetLayer::new(
            limits.clone(),
            Egress {
                budget: setup.egress,
                window: upstream.egress_limit.window,
                queue: setup.egress_queue.clone(),
            },
            upstream.retry,
            config.clients.max_retry_after,
            metrics.clone(),
        ),
        inject: setup.inject.clone(),
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
            lasting.traces.clone().map(|traces| {
                let (host, port) = upstream.host_and_port();
                Sent::new(traces, upstream.scheme.as_str(), host, port)
            }),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    /// Two environments that draw from these budgets.
    fn config(budgets: [&str; 2]) -> Config {
        let env = [
            ("METORIAL_SECRET_KEY", "metorial_sk_0123456789abcdef"),
            ("METORIAL_PUBLISHABLE_KEYS", "metorial_pk_0123456789abcdef"),
        ];
        let env = env.map(|(name, value)| (name.into(), value.into())).into_iter().collect();
        let mut config = load(&Sources { file: None, env: &env }).expect("a configuration").config;
        let environment = |(name, budget): (&str, &str)| {
            Arc::new(Environment { budget: budget.to_owned(), ..Environment::example(name) })
        };
        config.environments = ["one", "two"].into_iter().zip(budgets).map(environment).collect();
        config
    }

    #[tokio::test]
    async fn of_environments_that_part_one_goes_on_with_the_queue() {
        for (after, goes_on) in [
            (["acme", "acme"], [true, true]),
            (["a", "b"], [true, false]),
            (["a", "acme"], [false, true]),
            (["acme", "b"], [true, false]),
            (["new", "new"], [true, true]),
        ] {
            let before = config(["acme"; 2]);
            let lasting = Lasting::new(&before, Arc::new(Metrics::new()), Past::default(), None, None);
            let lasting = lasting.expect("it starts");
            let setup = Setup::first(&before, &lasting).expect("it starts");
            let common = setup.environments[0].queue.clone();
            let config = config(after);
            let keys = Keys::of(&config, Some(&setup)).expect("keys");
            let setup = Setup::new(config, &lasting, keys, Some(&setup));
            let queues = [0, 1].map(|at| Arc::ptr_eq(&setup.environments[at].queue, &common));
            assert_eq!(queues, goes_on, "{after:?}");
        }
    }
}
