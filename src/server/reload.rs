//! Another configuration, without a restart: read, checked and built whole, its new secret keys proven, and then put in
//! force in one step. Where anything is wrong, all stays as it is, and the log, `/status` and a metric say so.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::assembly::{Keys, Setup, budget_name};
use super::engine::{Engine, Prepared};
use super::{StartError, restart};
use crate::config::{self, Config, Fault, Loaded, Sources, Variables};
use crate::domain::key::SecretKey;
use crate::edge::admin::status::ReloadStatus;
use crate::edge::config_watch::{ConfigWatch, Prints};
use crate::edge::notify;
use crate::edge::outbox::Outbox;
use crate::edge::proof::{Prover, Verdict};
use crate::store::limits::LimitStore;
use crate::telemetry::labels::Reload;
use crate::telemetry::logging;
use crate::time::{Instant, sleep_until, timeout, unix_now};

/// Where the configuration comes from, to be read again.
pub struct Origin {
    file: Option<PathBuf>,
    variables: Variables,
    seen: Prints,
}

impl Origin {
    /// The file named on the command line, and the environment of the process, which does not change; `files` are those that
    /// it depends on. To be called when it was just read: what changes from here on is a reason to reload.
    pub fn new(file: Option<PathBuf>, variables: Variables, files: &[PathBuf]) -> Self {
        Self { file, variables, seen: Prints::of(files) }
    }

    /// Whether there is a configuration file, however it is named.
    fn is_file(&self) -> bool {
        let named = self.variables.get(OsStr::new("METORIAL_PROXY_CONFIG"));
        self.file.is_some() || named.is_some_and(|name| !name.is_empty())
    }
}

/// How long the files may take to be read.
const READ: Duration = Duration::from_secs(10);
/// How long until a key that could not be proven is tried again, at first and at most.
const SOON: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// The same for one that was refused: upstream may not have heard of it everywhere yet, and each try costs the budget.
const LATER: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// Why another configuration is not in force.
struct Failed {
    faults: Vec<Fault>,
    /// Nothing need change for it to work next time: how long until then.
    again: Option<(Duration, Duration)>,
}

impl Failed {
    fn of(faults: Vec<Fault>) -> Self {
        Self { faults, again: None }
    }
}

/// Reloads when `told`, and when a file changes, until `stop`.
pub(super) async fn follow(engine: Arc<Engine>, origin: Origin, told: Arc<Notify>, stop: CancellationToken) {
    let mut watch = ConfigWatch::new(origin.seen.clone()).await;
    let mut again: Option<Instant> = None;
    let mut tries = 0;
    loop {
        let due = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = watch.changed() => tries = 0,
            () = told.notified() => tries = 0,
            () = due => {}
        }
        if !engine.ready.load(Ordering::Relaxed) {
            tracing::warn!("the configuration is not reloaded: the proxy is stopping");
            continue;
        }
        // What changes from here on is a reason for another reload.
        watch.look().await;
        notify::reloading();
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = engine.reload(&origin, &mut watch) => outcome,
        };
        again = None;
        if let Err(Failed { faults, again: retry }) = outcome {
            if let Some((first, most)) = retry {
                let wait = first.saturating_mul(2u32.saturating_pow(tries)).min(most);
                again = Some(Instant::now() + wait);
                tries = (tries + 1).min(16);
            }
            engine.tell_failed(&faults, again);
        }
        notify::ready();
    }
}

impl Engine {
    /// Reads the configuration again and puts it in force, where it is good. What it depends on is watched from now on.
    async fn reload(&self, origin: &Origin, watch: &mut ConfigWatch) -> Result<(), Failed> {
        let (file, variables) = (origin.file.clone(), origin.variables.clone());
        let read = move || config::read(&Sources { file: file.as_deref(), env: &variables });
        let (loaded, named) = match timeout(READ, tokio::task::spawn_blocking(read)).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => {
                let fault =
                    fault("", "the configuration could not be read", "report this error of the proxy's");
                return Err(Failed::of(vec![fault]));
            }
            Err(_) => {
                let message = format!("one of its files could not be read within {READ:?}");
                let cure = "see whether it is a pipe that nobody writes to, or on a file system that hangs";
                return Err(Failed::of(vec![fault("", &message, cure)]));
            }
        };
        watch.follow(&named).await;
        let Loaded { config, warnings, .. } = loaded.map_err(Failed::of)?;
        for warning in warnings {
            tracing::warn!(key = warning.path, cure = warning.cure, "{}", warning.message);
        }
        self.apply(config, origin).await
    }

    async fn apply(&self, mut config: Config, origin: &Origin) -> Result<(), Failed> {
        let before = self.setup();
        let kept = restart::keep(&before.config, &mut config);
        restart::check(&config).map_err(Failed::of)?;
        let files = config.clone();
        let prepared = tokio::task::spawn_blocking(move || Prepared::of(&files)).await;
        let wrong = |errors: Vec<StartError>| Failed::of(errors.into_iter().map(of_files).collect());
        let prepared = match prepared {
            Ok(prepared) => prepared.map_err(wrong)?,
            Err(error) => return Err(wrong(vec![StartError::new("server", error.to_string())])),
        };
        let keys = Keys::of(&config, Some(&before)).map_err(|error| wrong(vec![error]))?;
        self.prove(&config, &prepared, &keys, &before, origin).await?;

        if let Err(error) = logging::refilter(&config.telemetry.log) {
            return Err(Failed::of(vec![fault("telemetry.log", &error, "write a level, such as info")]));
        }
        self.put_in_force(config, prepared, keys);
        self.lasting.metrics.reload(Reload::Ok);
        for key in &kept {
            tracing::warn!(key, "this change takes effect with a restart only: the rest is in force");
        }
        let needs_restart = kept.into_iter().map(str::to_owned).collect();
        self.set_reload_status(ReloadStatus { ok: true, at: unix_now(), errors: Vec::new(), needs_restart });
        tracing::info!(environments = self.setup().environments.len(), "configuration reloaded");
        Ok(())
    }

    /// Asks upstream about each secret key that is news, before it takes the place of one that works.
    async fn prove(
        &self,
        config: &Config,
        prepared: &Prepared,
        keys: &Keys,
        before: &Setup,
        origin: &Origin,
    ) -> Result<(), Failed> {
        let transport = prepared.wire.pool(1, &Outbox::default());
        let prover = Prover {
            limits: &self.lasting.limits,
            transport: &transport,
            authority: &config.upstream.authority,
            base_path: &config.upstream.base_path,
            attempt_timeout: config.upstream.attempt_timeout,
            metrics: &self.lasting.metrics,
            health: &self.lasting.health,
        };
        let (mut faults, mut again) = (Vec::new(), None);
        let mut asked: Vec<&SecretKey> = Vec::new();
        for (index, (environment, secrets)) in config.environments.iter().zip(&keys.secrets).enumerate() {
            let key = &environment.secret_key;
            if !secrets.is_news_to(&before.secrets) || asked.iter().any(|asked| asked.is(key)) {
                continue;
            }
            asked.push(key);
            let fingerprint = key.fingerprint();
            let budget = match before.handle(environment) {
                Some(handle) => handle.budget,
                // Those who will draw from it don't yet.
                None => self.lasting.limits.budget(&budget_name(environment), &[], environment.plan()),
            };
            let verdict = prover.prove(key, &environment.name, [budget, before.egress]).await;
            let (message, cure, retry) = match verdict {
                Verdict::Taken => {
                    tracing::info!(
                        environment = environment.name,
                        fingerprint,
                        "upstream took the new secret key"
                    );
                    continue;
                }
                Verdict::Refused => (
                    format!("upstream refused the new key {fingerprint} with 401: the old one stays in use"),
                    "put a key there that is not revoked, from the Metorial dashboard",
                    LATER,
                ),
                Verdict::Unknown(why) => (
                    format!("the new key {fingerprint} could not be tried: {why}; the old one stays in use"),
                    "nothing: it is tried again by itself",
                    SOON,
                ),
            };
            let place = match origin.is_file() {
                true => format!("environments[{index}].secret_key"),
                false => "METORIAL_SECRET_KEY_FILE".to_owned(),
            };
            faults.push(fault(&place, &message, cure));
            // The soonest, where several wait.
            again = again.min(Some(retry)).or(Some(retry));
        }
        if faults.is_empty() { Ok(()) } else { Err(Failed { faults, again }) }
    }

    fn tell_failed(&self, faults: &[Fault], again: Option<Instant>) {
        self.lasting.metrics.reload(Reload::Failed);
        for fault in faults {
            tracing::error!(key = fault.path, cure = fault.cure, "{}", fault.message);
        }
        let next_try = again.map(|at| at.saturating_duration_since(Instant::now()).as_secs());
        tracing::error!(
            errors = faults.len(),
            retry_in_seconds = next_try,
            "the configuration was not reloaded: the last good one stays in force"
        );
        let errors = faults.iter().map(ToString::to_string).collect();
        let needs_restart = self.reload_status().needs_restart;
        self.set_reload_status(ReloadStatus { ok: false, at: unix_now(), errors, needs_restart });
    }
}

fn of_files(error: StartError) -> Fault {
    fault(&error.place, &error.message, "correct the file; it is read again when it changes")
}

fn fault(path: &str, message: &str, cure: &str) -> Fault {
    Fault { path: path.to_owned(), message: message.to_owned(), cure: cure.to_owned(), excerpt: None }
}
