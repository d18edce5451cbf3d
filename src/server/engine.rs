//! What runs: the parts that last, and what the configuration in force makes of them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::StartError;
use super::assembly::{self, Keys, Lasting, Setup};
use super::wire::Wire;
use crate::config::Config;
use crate::edge::admin::Access;
use crate::edge::admin::status::ReloadStatus;
use crate::edge::admission::{Admission, Bounds};
use crate::edge::connection::{self, Server as Connections};
use crate::edge::deadlines::Limits;
use crate::edge::descriptors;
use crate::edge::in_force::{Current, InForce, Lane, Terms};
use crate::edge::outbox::Outbox;
use crate::edge::tls;
use crate::pipeline;
use crate::time::unix_now;

/// The proxy without its sockets.
pub(super) struct Engine {
    pub(super) lasting: Arc<Lasting>,
    pub(super) admission: Arc<Admission>,
    /// Who may ask the admin port.
    pub(super) access: Arc<ArcSwap<Access>>,
    pub(super) ready: Arc<AtomicBool>,
    /// Of each worker, for what outlives its request.
    pub(super) tasks: Arc<[TaskTracker]>,
    pub(super) current: Arc<Current>,
    setup: ArcSwap<Setup>,
    wire: Mutex<Arc<Wire>>,
    reload: Mutex<ReloadStatus>,
}

/// What is made of files before anything is changed: it may fail.
pub(super) struct Prepared {
    tls: Option<TlsAcceptor>,
    pub(super) wire: Wire,
}

impl Prepared {
    /// # Errors
    /// Everything that is wrong.
    pub(super) fn of(config: &Config) -> Result<Self, Vec<StartError>> {
        let files = config.server.tls.as_ref();
        let tls = files.map(tls::server).transpose().map_err(|error| StartError::new("server.tls", error));
        match (tls, Wire::of(&config.upstream)) {
            (Ok(tls), Ok(wire)) => Ok(Self { tls: tls.map(TlsAcceptor::from), wire }),
            (tls, wire) => Err([tls.err(), wire.err()].into_iter().flatten().collect()),
        }
    }
}

impl Engine {
    pub(super) fn new(config: &Config, lasting: Lasting, prepared: Prepared) -> Result<Self, StartError> {
        let (setup, lasting) = (Arc::new(Setup::first(config, &lasting)?), Arc::new(lasting));
        let workers = config.server.workers.max(1);
        let tasks: Arc<[TaskTracker]> = (0..workers).map(|_| TaskTracker::new()).collect();
        let Prepared { tls, wire } = prepared;
        let (ready, wire) = (Arc::new(AtomicBool::new(true)), Arc::new(wire));
        let first = in_force(&setup, &lasting, &ready, &tasks, tls, &wire);
        let reload = ReloadStatus { ok: true, at: unix_now(), errors: Vec::new(), needs_restart: Vec::new() };
        Ok(Self {
            admission: Arc::new(Admission::new(bounds(config), config.clients.ipv6_prefix)),
            access: Arc::new(ArcSwap::from_pointee(access(config))),
            ready,
            tasks,
            current: Arc::new(Current::new(first)),
            setup: ArcSwap::new(setup),
            wire: Mutex::new(wire),
            reload: Mutex::new(reload),
            lasting,
        })
    }

    /// What the configuration in force makes of the lasting parts.
    pub(super) fn setup(&self) -> Arc<Setup> {
        self.setup.load_full()
    }

    /// How the last reload went.
    pub(super) fn reload_status(&self) -> ReloadStatus {
        self.reload.lock().clone()
    }

    pub(super) fn set_reload_status(&self, status: ReloadStatus) {
        *self.reload.lock() = status;
    }

    /// Puts another configuration in force, in one step for all workers. Nothing here fails.
    pub(super) fn put_in_force(&self, config: Config, prepared: Prepared, keys: Keys) {
        let Prepared { tls, wire } = prepared;
        let setup = Arc::new(Setup::new(config, &self.lasting, keys, Some(&self.setup())));
        let config = &setup.config;
        self.lasting.places.resize(config.server.max_in_flight);
        self.admission.bound(bounds(config));
        self.access.store(Arc::new(access(config)));
        let mut kept = self.wire.lock();
        // Connections to upstream stay where it is the same upstream.
        if !kept.is_like(&wire) {
            *kept = Arc::new(wire);
        }
        let next = in_force(&setup, &self.lasting, &self.ready, &self.tasks, tls, &kept);
        drop(kept);
        self.current.swap(next);
        self.setup.store(setup);
    }
}

fn in_force(
    setup: &Arc<Setup>,
    lasting: &Arc<Lasting>,
    ready: &Arc<AtomicBool>,
    tasks: &Arc<[TaskTracker]>,
    tls: Option<TlsAcceptor>,
    wire: &Arc<Wire>,
) -> InForce {
    let lane = {
        let (setup, lasting, tasks, wire) = (setup.clone(), lasting.clone(), tasks.clone(), wire.clone());
        move |worker: usize, outbox: &Outbox, before: Option<&Lane>| {
            let upstream = before.map(|lane| &lane.upstream).filter(|upstream| wire.made(upstream));
            let upstream = upstream.cloned().unwrap_or_else(|| {
                before.iter().for_each(|lane| lane.upstream.retire());
                wire.pool(tasks.len(), outbox)
            });
            let layers = assembly::layers(&setup, &lasting, &tasks[worker]);
            Lane { pipeline: pipeline::build(layers, upstream.clone()), upstream }
        }
    };
    for doubt in doubts(&setup.config) {
        tracing::warn!(key = "server.tls", "{doubt}");
    }
    let server = &setup.config.server;
    let rules = connection::Rules {
        max_uri: server.max_uri,
        max_header_bytes: server.max_header_bytes,
        deadlines: Limits {
            head: server.header_read_timeout,
            idle: server.idle_timeout,
            silence: server.body_idle_timeout,
        },
    };
    InForce {
        lane: Box::new(lane),
        terms: Arc::new(Terms {
            tls,
            proxy_protocol: server.proxy_protocol.then(|| server.trusted_proxies.clone()),
            server: Connections::new(rules, ready.clone(), lasting.metrics.clone()),
        }),
        max_request_body: server.max_request_body,
        body_idle_timeout: server.body_idle_timeout,
    }
}

/// What callers will not accept although it can be served.
pub(super) fn doubts(config: &Config) -> Vec<String> {
    let tls = config.server.tls.as_ref();
    tls.map(|files| tls::doubts(files, &config.server.hosts)).unwrap_or_default()
}

fn bounds(config: &Config) -> Bounds {
    Bounds {
        max: max_connections(config),
        max_per_ip: config.server.max_connections_per_ip,
        exempt: config.server.trusted_proxies.clone(),
    }
}

/// As many as are configured, or as there are descriptors for.
fn max_connections(config: &Config) -> usize {
    let server = &config.server;
    let limit = descriptors::raise();
    let allowed =
        descriptors::connections(limit, server.max_connections, server.max_in_flight, server.workers.max(1));
    let (descriptors, configured) = (limit, server.max_connections);
    // A few less than were asked for is no reason to worry.
    if allowed < configured / 2 {
        tracing::warn!(
            key = "server.max_connections",
            descriptors,
            configured,
            allowed,
            "too few file descriptors for that many connections: raise `ulimit -n` (systemd: LimitNOFILE=)"
        );
    } else if allowed < configured {
        tracing::info!(
            descriptors,
            configured,
            allowed,
            "fewer connections, so that upstream has descriptors too"
        );
    }
    allowed
}

fn access(config: &Config) -> Access {
    Access { token: config.server.admin_token.clone(), hosts: config.server.hosts.clone() }
}
