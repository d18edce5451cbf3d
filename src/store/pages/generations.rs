//! Generations that all replicas know, so that a write through one is never followed by an older list from another.
//!
//! A replica answers from what it knows while it holds a *lease*: for a second from the moment it asked for it. It is granted only
//! to who has applied every change so far. A write's answer is held until its change is stored and every replica with a lease has
//! said that it applied it, or a second has gone by: whatever lease was granted before the change has lapsed then, and none is
//! granted afterwards without the change. So nothing depends on messages arriving, on two clocks agreeing, or on replicas saying
//! farewell. (The server's clock only tells which replicas are gone for good: it looks after each for two leases.)
//!
//! A replica whose lease has lapsed asks for another before it answers; one that is cut off goes on without, and says so.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::rand;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use redis::{FromRedisValue, Value};
use tokio::sync::{Notify, watch};

use super::Generation;
use super::clock::ServerClock;
use super::known::{Change, Known, field};
use crate::store::link::{Link, Lost, Names, Script};
use crate::time::{Instant, Timestamp, sleep_until, timeout, timeout_at};

/// What a replica knows is good for so long from when it asked.
const LEASE: Duration = Duration::from_secs(1);
/// It asks so often.
pub(super) const RENEWAL: Duration = Duration::from_millis(300);
/// The store looks after a replica for so long.
pub(super) const LOOKED_AFTER: Duration = Duration::from_secs(2);
/// Answers that tell of further changes, one after the other, before the next attempt is left for later.
const CATCHING_UP: usize = 8;

static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/renew.lua")));
static BUMP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/bump.lua")));
static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/leave.lua")));

/// See the module.
pub(super) struct Generations<L> {
    link: L,
    /// Generations, leases.
    keys: [String; 2],
    channel: String,
    /// Our name among the replicas, of this process alone.
    replica: String,
    /// How long a request waits for a lease where the store may be there.
    patience: Duration,
    known: RwLock<Known>,
    /// When our lease lapses, as a [`Timestamp`].
    lapses: AtomicU64,
    /// Whether the store may be there; told whenever that or the lease changes.
    reachable: watch::Sender<bool>,
    /// A request needs a lease.
    pub(super) wanted: Notify,
    pub(super) clock: ServerClock,
    acknowledged: Acknowledged,
    left: AtomicBool,
    /// The store refuses, and that was told.
    refused: AtomicBool,
}

/// A change as the store took it.
struct Stored {
    epoch: u64,
    last: u64,
    /// The store is so new that there may be leases it does not know of.
    unsure: bool,
    counts: Vec<u64>,
    waiting: Vec<String>,
}

impl<L: Link> Generations<L> {
    pub(super) fn new(link: L, names: &Names, patience: Duration) -> Self {
        Self {
            link,
            keys: [names.of("generations"), names.of("leases")],
            channel: names.pages(),
            replica: format!("{:016x}", random()),
            patience,
            known: RwLock::new(Known::new(random())),
            lapses: AtomicU64::new(0),
            reachable: watch::Sender::new(true),
            wanted: Notify::new(),
            clock: ServerClock::default(),
            acknowledged: Acknowledged::default(),
            left: AtomicBool::new(false),
            refused: AtomicBool::new(false),
        }
    }

    /// The generation of a collection, and whether it is the newest.
    pub(super) async fn generation(&self, budget: &str, collection: &str) -> Generation {
        // In this order: what is read afterwards is at least as new as when the lease was looked at.
        let known = self.is_known() || Box::pin(self.becomes_known()).await;
        Generation { number: self.read().generation(budget, collection), known }
    }

    /// The same, where we hold a lease.
    pub(super) fn at_hand(&self, budget: &str, collection: &str) -> Option<Generation> {
        let read = || Generation { number: self.read().generation(budget, collection), known: true };
        self.is_known().then(read)
    }

    /// Whether we hold a lease.
    pub(super) fn is_known(&self) -> bool {
        Timestamp::now().0 < self.lapses.load(Ordering::Acquire)
    }

    /// Since when we hold none. It may be that we never held one.
    pub(super) fn lapsed(&self) -> Option<Timestamp> {
        let lapses = Timestamp(self.lapses.load(Ordering::Acquire));
        (lapses <= Timestamp::now()).then_some(lapses)
    }

    /// A lease that lapsed because we were slow is had again at once.
    async fn becomes_known(&self) -> bool {
        if self.left.load(Ordering::Relaxed) {
            return false;
        }
        let mut reachable = self.reachable.subscribe();
        self.wanted.notify_one();
        timeout(self.patience, reachable.wait_for(|reachable| !reachable || self.is_known())).await.ok();
        self.is_known()
    }

    /// Makes the pages of these collections unreachable: here at once, elsewhere when it resolves.
    pub(super) async fn invalidate(&self, budget: &str, collections: &[String]) {
        self.write().begin(budget, collections, random());
        let acknowledged = self.acknowledged.listen();
        let Ok(stored) = self.store(budget, collections).await else { return };
        let lapsed = Instant::now() + LEASE;
        match stored.unsure {
            true => sleep_until(lapsed).await,
            // Those who did not say so in time have no lease any more.
            false => drop(timeout_at(lapsed, acknowledged.by(&stored)).await),
        }
    }

    /// Stores a change that has begun.
    async fn store(&self, budget: &str, collections: &[String]) -> Result<Stored, Lost> {
        let mut storing = Storing { known: &self.known, budget, collections, done: false };
        let mut arguments = self.arguments(LOOKED_AFTER);
        arguments.extend(collections.iter().map(|collection| field(budget, collection).into_bytes()));
        let answer = self.link.run(&BUMP, &self.keys, arguments).await?;
        let (epoch, last, unsure, counts, waiting) = read::<(String, _, i64, _, _)>(answer)?;
        let epoch = epoch.parse().map_err(|_| Lost::Refused("the store holds no epoch".to_owned()))?;
        let stored = Stored { epoch, last, unsure: unsure != 0, counts, waiting };
        storing.done = true;
        self.write().stored(budget, collections, stored.epoch, &stored.counts);
        Ok(stored)
    }

    /// A change was published. Whether there is something to acknowledge, or to ask for.
    pub(super) fn hear(&self, change: &Change) -> bool {
        let before = self.read().position();
        let complete = self.write().hear(change);
        !complete || self.read().position() != before
    }

    /// A replica has said how far it is.
    pub(super) fn applied(&self, epoch: u64, last: u64, replica: String) {
        self.acknowledged.note(replica, epoch, last);
    }

    /// A replica has left.
    pub(super) fn gone(&self, replica: String) {
        self.acknowledged.leave(replica);
    }

    /// The store cannot be reached: nobody is to wait for it.
    pub(super) fn unreachable(&self) {
        self.reachable.send_replace(false);
    }

    /// Says what we have applied, learns what we lack, and asks for a lease.
    pub(super) async fn renew(&self) {
        for _ in 0..CATCHING_UP {
            if self.left.load(Ordering::Relaxed) {
                return;
            }
            let (epoch, applied) = self.read().position();
            let mut arguments = self.arguments(LOOKED_AFTER);
            arguments.extend([epoch.to_string().into_bytes(), applied.to_string().into_bytes()]);
            let asked = Timestamp::now();
            let answer = self.link.run(&RENEW, &self.keys, arguments).await.and_then(renewal);
            match answer {
                // Asked for before we left.
                Ok(Renewal { state: None, .. }) if self.left.load(Ordering::Relaxed) => return,
                Ok(Renewal { server, state: None }) => {
                    self.clock.heard(server, Timestamp::now());
                    self.lapses.store((asked + LEASE).0, Ordering::Release);
                    self.refused.store(false, Ordering::Relaxed);
                    self.reachable.send_replace(true);
                    return self.store_owed().await;
                }
                Ok(Renewal { state: Some(State { epoch, last, counts }), .. }) => {
                    self.write().adopt(epoch, last, &counts);
                }
                // The connection is being made, or will be found to be broken.
                Err(Lost::Late | Lost::Unreachable) => return,
                Err(error @ Lost::Refused(_)) => {
                    if !self.refused.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "the shared store refuses what keeps pages of replicas together");
                    }
                    return self.unreachable();
                }
            }
        }
    }

    async fn store_owed(&self) {
        let owed = self.write().owed();
        for (budget, collections) in owed {
            // What fails is owed again.
            self.store(&budget, &collections).await.ok();
        }
    }

    /// Gives the lease back: nobody is to wait for us.
    pub(super) async fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.lapses.store(0, Ordering::Release);
        let arguments = vec![self.replica.clone().into_bytes(), self.channel.clone().into_bytes()];
        self.link.run(&LEAVE, &self.keys[1..], arguments).await.ok();
    }

    fn arguments(&self, looked_after: Duration) -> Vec<Vec<u8>> {
        let millis = looked_after.as_millis().to_string();
        [random().to_string(), self.replica.clone(), millis, self.channel.clone()]
            .map(String::into_bytes)
            .into()
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write()
    }
}

/// A change on its way to the store; dropped on the way, it is owed.
struct Storing<'a> {
    known: &'a RwLock<Known>,
    budget: &'a str,
    collections: &'a [String],
    done: bool,
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        if !self.done {
            let mut known = self.known.write();
            known.failed(self.budget, self.collections);
        }
    }
}

struct Renewal {
    server: i64,
    /// Where we lacked something; the lease is not granted then.
    state: Option<State>,
}

/// All that the store knows.
struct State {
    epoch: u64,
    last: u64,
    counts: Vec<(String, u64)>,
}

fn renewal(answer: Value) -> Result<Renewal, Lost> {
    let Value::Array(parts) = answer else { return Err(odd()) };
    let mut parts = parts.into_iter();
    let mut next = || parts.next().ok_or_else(odd);
    let (granted, server): (i64, i64) = (read(next()?)?, read(next()?)?);
    let (epoch, last): (String, u64) = (read(next()?)?, read(next()?)?);
    if granted != 0 {
        return Ok(Renewal { server, state: None });
    }
    let all: Vec<(String, String)> = read(next()?)?;
    let counts = all
        .iter()
        .filter_map(|(name, count)| Some((name.strip_prefix("of:")?.to_owned(), count.parse().ok()?)));
    let epoch = epoch.parse().map_err(|_| odd())?;
    Ok(Renewal { server, state: Some(State { epoch, last, counts: counts.collect() }) })
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, Lost> {
    redis::from_redis_value(value).map_err(|_| odd())
}

fn odd() -> Lost {
    Lost::Refused("the store holds something else under our names".to_owned())
}

/// A number that nobody else has.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    match rand::fill(&mut bytes) {
        Ok(()) => u64::from_be_bytes(bytes),
        Err(_) => fastrand::u64(..),
    }
}

/// What replicas have said of how far they are, as long as somebody wants to know.
#[derive(Default)]
struct Acknowledged {
    table: Mutex<Table>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Table {
    listeners: usize,
    /// By replica and epoch.
    applied: HashMap<(String, u64), u64>,
    gone: Vec<String>,
}

impl Acknowledged {
    /// From here on.
    fn listen(&self) -> Listening<'_> {
        self.lock().listeners += 1;
        Listening { all: self, changed: self.changed.subscribe() }
    }

    fn note(&self, replica: String, epoch: u64, last: u64) {
        let mut table = self.lock();
        if table.listeners > 0 {
            let applied = table.applied.entry((replica, epoch)).or_default();
            *applied = last.max(*applied);
            self.changed.send_replace(());
        }
    }

    fn leave(&self, replica: String) {
        let mut table = self.lock();
        if table.listeners > 0 {
            table.gone.push(replica);
            self.changed.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

struct Listening<'a> {
    all: &'a Acknowledged,
    changed: watch::Receiver<()>,
}

impl Listening<'_> {
    /// Resolves when every replica that was to be waited for has applied the change, or has left.
    async fn by(mut self, stored: &Stored) {
        while !self.is_by(stored) && self.changed.changed().await.is_ok() {}
    }

    fn is_by(&self, stored: &Stored) -> bool {
        let table = self.all.lock();
        stored.waiting.iter().all(|replica| {
            let applied = table.applied.get(&(replica.clone(), stored.epoch));
            applied.is_some_and(|applied| *applied >= stored.last) || table.gone.contains(replica)
        })
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        let mut table = self.all.lock();
        table.listeners -= 1;
        if table.listeners == 0 {
            *table = Table::default();
        }
    }
}
