//! Assembly and lifecycle: configuration → stores → pipelines → listeners, and back down again.
//!
//! What must not forget (budgets, client limits, pages, queues) is made once and lives as long as the process; pipelines
//! are made from it and a configuration, one per worker. A reload makes others and puts them in force in one step.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::edge::activation::{self, Passed};
use crate::edge::admin::Dashboard;
use crate::edge::notify::{self, Beat};
use crate::edge::redis::RedisLink;
use crate::edge::state_file::{self, Past};
use crate::edge::worker::Worker;
use crate::edge::{admin, listener, otlp};
use crate::store::clients::ClientLimits;
use crate::store::limits::{Limits, SpentBudget};
use crate::store::link::Names;
use crate::telemetry::metrics::Metrics;
use crate::time::{Instant, sleep, timeout_at};

mod assembly;
mod engine;
pub mod explain;
mod reload;
mod restart;
mod view;
mod wire;

use assembly::Lasting;
pub use assembly::pipeline_over;
use engine::{Engine, Prepared};
pub use reload::Origin;
use view::ServerView;

/// The proxy does not start, and why: one sentence with the place and the cure.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {message}")]
pub struct StartError {
    /// The key of the configuration.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl StartError {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }

    fn bind(place: &str, address: SocketAddr, error: &io::Error) -> Self {
        let message = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!(
                    "{address} is in use, perhaps by another instance: stop it, or choose another address"
                )
            }
            io::ErrorKind::PermissionDenied => {
                format!("{address} may not be bound: choose a port above 1023, or grant CAP_NET_BIND_SERVICE")
            }
            io::ErrorKind::AddrNotAvailable => format!("{address} is not an address of this machine"),
            _ => format!("{address} cannot be bound: {error}"),
        };
        Self::new(place, message)
    }
}

impl From<StartError> for Vec<StartError> {
    fn from(error: StartError) -> Self {
        vec![error]
    }
}

/// A running proxy.
pub struct Server {
    addresses: Vec<SocketAddr>,
    admin: SocketAddr,
    view: Arc<ServerView>,
    engine: Arc<Engine>,
    reload: Arc<Notify>,
    state: Option<State>,
    workers: Vec<JoinHandle<usize>>,
    background: TaskTracker,
    drain: CancellationToken,
    cut: CancellationToken,
    stop: CancellationToken,
}

/// The state file, and what it keeps.
struct State {
    path: PathBuf,
    _lock: File,
}

impl Server {
    /// Binds every address and serves. To be called within a tokio runtime, which serves the admin port.
    ///
    /// # Errors
    /// All that keeps it from starting.
    pub fn start(config: &Config) -> Result<Self, Vec<StartError>> {
        Self::start_on(config, Passed::default())
    }

    /// As [`start`](Self::start), on sockets that were passed where there are any, and else on those that it binds.
    ///
    /// # Errors
    /// All that keeps it from starting.
    pub fn start_on(config: &Config, mut passed: Passed) -> Result<Self, Vec<StartError>> {
        let prepared = Prepared::of(config)?;
        let links = config.store.shared.as_ref().map(assembly::links).transpose()?;
        let metrics = Arc::new(Metrics::new());
        // Before it is read: another instance may be writing it.
        let lock = config.store.state_file.as_deref().map(state_file::lock).transpose();
        let lock = lock.map_err(|message| StartError::new("store.state_file", message))?;
        let past = config.store.state_file.as_deref().map(past).unwrap_or_default();
        let traces = config.telemetry.otlp.as_ref().map(otlp::traces).transpose();
        let traces = traces.map_err(|error| StartError::new("telemetry.otlp", error))?.map(Arc::new);
        let lasting = Lasting::new(config, metrics.clone(), past, links.as_ref(), traces)?;
        let engine = Arc::new(Engine::new(config, lasting, prepared)?);
        let workers = config.server.workers.max(1);
        // Everything is bound before anything is served: a half-started proxy would be worse than none.
        let mut faults = Vec::new();
        let mut bind = |place: &str, purpose: &str, address: SocketAddr, workers: usize| {
            let bound = listening(place, (purpose, &mut passed), address, workers);
            bound.map_err(|fault| faults.push(fault)).unwrap_or_default()
        };
        let admin = bind("server.admin", activation::ADMIN, config.server.admin, 1).pop();
        let mut sockets: Vec<Vec<StdListener>> = (0..workers).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for (at, address) in config.server.listen.iter().enumerate() {
            let place = format!("server.listen[{at}]");
            let bound = bind(&place, activation::PROXY, *address, workers);
            addresses.extend(bound.first().and_then(|listener| listener.local_addr().ok()));
            for (worker, listener) in sockets.iter_mut().zip(bound) {
                worker.push(listener);
            }
        }
        faults.extend(passed.is_spent().err().map(|message| StartError::new("LISTEN_FDS", message)));
        let (Some(admin), []) = (admin, &faults[..]) else { return Err(faults) };
        let admin = TcpListener::from_std(admin)
            .map_err(|error| StartError::new("server.admin", error.to_string()))?;
        // Now rather than when stopping, when nobody can mend it any more.
        if let Some(path) = &config.store.state_file {
            let written = state_file::write(path, &spent(&engine.lasting), false);
            let wrong =
                |error: io::Error| StartError::new("store.state_file", state_file::cannot(path, &error));
            written.map_err(wrong)?;
        }
        let (drain, cut, stop) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (mut threads, mut beats) = (Vec::new(), Vec::new());
        for (index, (listeners, tasks)) in sockets.into_iter().zip(&*engine.tasks).enumerate() {
            let beat = Beat::default();
            beats.push(beat.clone());
            let worker = Worker {
                listeners,
                current: engine.current.clone(),
                admission: engine.admission.clone(),
                open: metrics.connections("proxy"),
                metrics: metrics.clone(),
                beat,
                tasks: tasks.clone(),
                drain: drain.clone(),
                cut: cut.clone(),
            };
            match worker.spawn(index) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Those that have begun serve already.
                    cut.cancel();
                    threads.into_iter().for_each(|thread| drop(thread.join()));
                    return Err(vec![StartError::new("server.workers", error.to_string())]);
                }
            }
        }
        let view = Arc::new(ServerView(engine.clone()));
        let admin_addr = admin.local_addr().unwrap_or(config.server.admin);
        let access = engine.access.clone();
        let background = TaskTracker::new();
        if let Some((links, shared)) = links.zip(config.store.shared.as_ref()) {
            let (users, last) = (TaskTracker::new(), CancellationToken::new());
            users.spawn(clients(
                engine.clone(),
                links.limits.clone(),
                Names::new(&shared.prefix),
                stop.clone(),
            ));
            if let Limits::Shared(limits) = &*engine.lasting.limits {
                users.spawn(limits.clone().run(stop.clone()));
            }
            background.spawn(links.limits.run(last.clone()));
            if shared.pages_url.is_some() {
                background.spawn(links.pages.run(last.clone()));
            }
            // The links go when those that use them have said their last.
            let stop = stop.clone();
            background.spawn(async move {
                stop.cancelled().await;
                users.close();
                users.wait().await;
                last.cancel();
            });
        }
        if let Some(pages) = engine.lasting.pages.shared() {
            background.spawn(pages.clone().run(stop.clone()));
        }
        let dashboard = Dashboard::new(view.clone(), stop.clone());
        background.spawn(dashboard.clone().run());
        background.spawn(admin::serve(admin, admin::router(view.clone(), dashboard, access), stop.clone()));
        background.spawn(notify::watchdog(beats, engine.ready.clone(), stop.clone()));
        background.spawn(housekeeping(engine.clone(), stop.clone()));
        let state_file = config.store.state_file.clone();
        if let Some(path) = state_file.clone() {
            background.spawn(keep(path, engine.clone(), stop.clone()));
        }
        let server = Self {
            addresses,
            admin: admin_addr,
            view,
            engine,
            reload: Arc::default(),
            state: state_file.zip(lock).map(|(path, lock)| State { path, _lock: lock }),
            workers: threads,
            background,
            drain,
            cut,
            stop,
        };
        server.announce();
        Ok(server)
    }

    /// What would keep a proxy with this configuration from starting, as far as can be said without binding its addresses.
    pub fn faults(config: &Config) -> Vec<StartError> {
        let links = config.store.shared.as_ref().map_or(Ok(()), |store| assembly::links(store).map(|_| ()));
        Prepared::of(config).err().into_iter().flatten().chain(links.err()).collect()
    }

    /// Reloads from now on when asked to (see [`reload`](Self::reload)) and when a file changes that the configuration
    /// depends on.
    pub fn follow(&self, origin: Origin) {
        let (engine, told, stop) = (self.engine.clone(), self.reload.clone(), self.stop.clone());
        self.background.spawn_local(reload::follow(engine, origin, told, stop));
    }

    /// Has a server that [follows](Self::follow) its configuration read it again.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// The configuration that is in force.
    pub fn config(&self) -> Config {
        self.engine.setup().config.clone()
    }

    /// What does not keep it from starting, but its callers from using it.
    pub fn doubts(config: &Config) -> Vec<String> {
        engine::doubts(config)
    }

    fn announce(&self) {
        for address in &self.addresses {
            tracing::info!(listener = "proxy", addr = %address, "listening");
        }
        tracing::info!(listener = "admin", addr = %self.admin, "listening");
    }

    /// Where callers are served.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where the admin port is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The proxy's state.
    pub fn status(&self) -> admin::Status {
        admin::View::status(&*self.view)
    }

    /// Figures of the process.
    pub fn metrics(&self) -> &Metrics {
        self.view.metrics()
    }

    /// Stops: readiness fails at once, and HTTP/1 connections end with their next answer; new connections are accepted for
    /// `settle`, then HTTP/2 connections and idle ones are closed, and what is in flight finishes.
    /// What is still open at `deadline`, counted from now, is cut; so many were. `hurry` cuts at once.
    pub async fn drain(self, settle: Duration, deadline: Duration, hurry: impl Future<Output = ()>) -> usize {
        let deadline = Instant::now() + deadline;
        self.engine.ready.store(false, Ordering::Relaxed);
        tokio::pin!(hurry);
        let workers = self.workers;
        let gone = async {
            tokio::select! {
                () = sleep(settle) => {}
                // Whoever is in a hurry does not wait for load balancers.
                () = self.cut.cancelled() => {}
            }
            tracing::info!("draining");
            self.drain.cancel();
            joined(workers).await
        };
        tokio::pin!(gone);
        let cut = tokio::select! {
            finished = timeout_at(deadline, &mut gone) => finished.ok(),
            () = &mut hurry => None,
        };
        let hurried = cut.is_none();
        let cut = match cut {
            Some(cut) => cut,
            None => {
                self.drain.cancel();
                self.cut.cancel();
                gone.await
            }
        };
        if let Limits::Shared(limits) = &*self.engine.lasting.limits {
            limits.leave().await;
        }
        if let Some(pages) = self.engine.lasting.pages.shared() {
            pages.leave().await;
        }
        // The admin port answers probes to the end.
        self.stop.cancel();
        self.background.close();
        let due = if hurried { Instant::now() } else { deadline };
        timeout_at(due, self.background.wait()).await.ok();
        if let Some(State { path, .. }) = &self.state {
            // Here and not in a task, which a deadline could cut.
            told(path, state_file::write(path, &spent(&self.engine.lasting), true));
        }
        self.view.flush(due.saturating_duration_since(Instant::now())).await;
        cut
    }
}

/// The sockets of `workers` workers for `address`: what was passed for this purpose, or bound here.
fn listening(
    place: &str,
    (purpose, passed): (&str, &mut Passed),
    address: SocketAddr,
    workers: usize,
) -> Result<Vec<StdListener>, StartError> {
    let taken = passed.take(purpose, address).map_err(|message| StartError::new(place, message))?;
    let sockets = match taken {
        Some(socket) => listener::share(socket, workers),
        None => listener::bind(address, workers),
    };
    sockets.map_err(|error| StartError::bind(place, address, &error))
}

/// Waits for the worker threads off the runtime's thread.
async fn joined(workers: Vec<JoinHandle<usize>>) -> usize {
    let join = || workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum();
    tokio::task::spawn_blocking(join).await.unwrap_or(0)
}

/// Limits clients together with the other replicas.
async fn clients(engine: Arc<Engine>, link: RedisLink, names: Names, stop: CancellationToken) {
    let replicas = || match &*engine.lasting.limits {
        Limits::Memory(_) => 1,
        Limits::Shared(limits) => limits.replicas(),
    };
    ClientLimits::share(|| engine.setup().clients.clone(), link, names, replicas, stop).await;
}

/// Forgets clients that have been idle and pages that have expired, every few seconds.
async fn housekeeping(engine: Arc<Engine>, stop: CancellationToken) {
    let mut clients = tokio::time::interval(Duration::from_secs(10));
    let mut pages = tokio::time::interval(Duration::from_secs(1));
    clients.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pages.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = clients.tick() => engine.setup().clients.forget_idle(),
            _ = pages.tick() => engine.lasting.pages.tidy().await,
        }
    }
}

/// What the state file says. Without it upstream's first answer tells as much, only later: no reason not to start.
fn past(path: &Path) -> Past {
    match state_file::read(path) {
        Ok(past) => past.unwrap_or_default(),
        Err(error) => {
            tracing::error!(
                path = %path.display(), error,
                "the state file cannot be read: what was spent before is not known until upstream's first answer"
            );
            Past::default()
        }
    }
}

/// What this process alone knows that was spent.
fn spent(lasting: &Lasting) -> Vec<SpentBudget> {
    match &*lasting.limits {
        Limits::Memory(limits) => limits.spent(),
        Limits::Shared(_) => Vec::new(),
    }
}

/// Writes the state file every second.
async fn keep(path: PathBuf, engine: Arc<Engine>, stop: CancellationToken) {
    let mut due = tokio::time::interval(state_file::INTERVAL);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = due.tick() => {}
        }
        let (at, spent) = (path.clone(), spent(&engine.lasting));
        let written = tokio::task::spawn_blocking(move || state_file::write(&at, &spent, false)).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        // A full disk is told once, not every second.
        match std::mem::replace(&mut failing, written.is_err()) {
            true if written.is_ok() => {
                tracing::info!(path = %path.display(), "the state file is written again")
            }
            true => {}
            false => told(&path, written),
        }
    }
}

fn told(path: &Path, written: io::Result<()>) {
    if let Err(error) = written {
        tracing::error!(
            path = %path.display(), %error,
            "the state file cannot be written: the next start will not know what was spent"
        );
    }
}
