//! The pages of all replicas, in Redis or Valkey: read, fetched by one for all, and shared.
//!
//! Whoever is to fetch a page takes a lease on it (`SET NX PX` with a token of its own); others wait until it tells that the page is
//! there, or that it will not be, and go on at once. Where the lease lapses, because its holder is gone, one of them takes it.
//! Whatever the store cannot do or does not do in time, each replica does for itself.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::clock;
use super::generations::{Generations, RENEWAL, random};
use super::known::{self, Change};
use super::seal::Seal;
use super::waits::{Waits, Word};
use super::{Claim, Entry, Fetched, Lease, Page, format};
use crate::domain::page_key::PageKey;
use crate::store::link::{Link, Lost, Names, News, Script};
use crate::telemetry::labels::SharedPage;
use crate::telemetry::metrics::Metrics;
use crate::time::{Instant, Timestamp, sleep, timeout};

static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/claim.lua")));
static EXTEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/extend.lua")));
static SHARE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/share.lua")));

/// How pages are shared.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long a call to the store may take.
    pub timeout: Duration,
    /// How long the right to fetch a page holds without being renewed: longer than an attempt takes.
    pub lease: Duration,
    /// Nobody waits longer for a page that another replica fetches.
    pub longest_wait: Duration,
    /// No larger value is written or read.
    pub largest: usize,
}

/// See the module.
pub struct SharedPages<L> {
    link: L,
    names: Names,
    seal: Seal,
    rules: Rules,
    pub(super) generations: Generations<L>,
    waits: Waits,
    metrics: Arc<Metrics>,
}

/// A lease that we took.
#[derive(Debug)]
pub(super) struct Held {
    name: String,
    token: String,
}

/// What became of a claim.
enum Claimed {
    Page(Entry),
    /// Something that is no page of ours.
    Broken,
    Ours,
    Taken(Duration),
    Nothing,
}

/// What replicas tell each other.
#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    Changed(Change),
    Applied {
        #[serde(deserialize_with = "known::number")]
        epoch: u64,
        last: u64,
        replica: String,
    },
    Left {
        replica: String,
    },
    Fetched {
        name: String,
        word: Word,
    },
}

impl<L: Link> SharedPages<L> {
    /// Over a connection; see [`run`](Self::run).
    pub fn new(link: L, names: Names, seal: Seal, rules: Rules, metrics: Arc<Metrics>) -> Self {
        // Three calls without an answer, after which a connection is given up, and one more.
        let generations = Generations::new(link.clone(), &names, rules.timeout * 4);
        Self { link, names, seal, rules, generations, waits: Waits::default(), metrics }
    }

    /// Follows what other replicas tell, and keeps what we know of generations good, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut news = self.link.news();
        let mut due = tokio::time::interval(RENEWAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connecting = Box::pin(sleep(self.rules.timeout * 4));
        let (mut began, mut cut) = (false, false);
        loop {
            let mut renew = tokio::select! {
                () = stop.cancelled() => return,
                heard = news.recv() => self.hear(heard),
                () = self.generations.wanted.notified() => true,
                _ = due.tick() => true,
                () = &mut connecting, if !began => {
                    began = true;
                    if !self.generations.is_known() {
                        self.generations.unreachable();
                    }
                    false
                }
            };
            // What came meanwhile is acknowledged along with it.
            while let Ok(heard) = news.try_recv() {
                renew |= self.hear(Ok(heard));
            }
            if renew {
                self.generations.renew().await;
            }
            if began && cut == self.generations.is_known() {
                cut = !cut;
                match cut {
                    true => tracing::warn!(
                        "cut off from the pages of other replicas: only fresh pages are served"
                    ),
                    false => tracing::info!("pages are shared with other replicas again"),
                }
            }
        }
    }

    /// Stops sharing: other replicas do not wait for this one any more.
    pub async fn leave(&self) {
        self.generations.leave().await;
    }

    /// Whether something is to be acknowledged or asked for.
    fn hear(&self, heard: Result<News, RecvError>) -> bool {
        match heard {
            // Who waits may have missed what it waits for, or will not hear it.
            Ok(News::Connected) | Err(RecvError::Lagged(_)) => {
                self.waits.tell_all(Word::Again);
                true
            }
            Ok(News::Disconnected) | Err(RecvError::Closed) => {
                self.generations.unreachable();
                self.waits.tell_all(Word::Again);
                false
            }
            Ok(News::Message { channel, payload }) if channel == self.names.pages() => self.told(&payload),
            Ok(News::Message { .. }) => false,
        }
    }

    fn told(&self, payload: &[u8]) -> bool {
        match serde_json::from_slice(payload) {
            Ok(Told::Changed(change)) => return self.generations.hear(&change),
            Ok(Told::Applied { epoch, last, replica }) => self.generations.applied(epoch, last, replica),
            Ok(Told::Left { replica }) => self.generations.gone(replica),
            Ok(Told::Fetched { name, word }) => self.waits.tell(&name, word),
            Err(error) => tracing::debug!(%error, "a message about pages that is none"),
        }
        false
    }

    /// The page that some replica has.
    pub(super) async fn find(&self, key: &PageKey) -> Option<Entry> {
        self.look(&self.seal.name(key)).await
    }

    async fn look(&self, name: &str) -> Option<Entry> {
        match self.ask(name, None).await {
            Ok(Claimed::Page(entry)) => Some(entry),
            _ => None,
        }
    }

    /// See [`PageStore::claim`](super::PageStore::claim).
    pub(super) async fn claim(&self, key: &PageKey, good: impl Fn(&Page) -> bool) -> Claim {
        let alone = || Claim::Lead(Lease::default());
        let name = self.seal.name(key);
        let token = format!("{:016x}{:016x}", random(), random());
        let held = || Claim::Lead(Lease(Some(Held { name: name.clone(), token: token.clone() })));
        let (mut anyway, until) = (false, Instant::now() + self.rules.longest_wait);
        loop {
            // Before anybody can tell.
            let told = self.waits.wait(&name);
            match self.ask(&name, Some((&token, anyway))).await {
                Ok(Claimed::Page(Entry::Page(page))) if !good(&page) => anyway = true,
                Ok(Claimed::Page(entry)) => return Claim::Found { entry, awaited: false },
                Ok(Claimed::Broken) => anyway = true,
                // Without an answer it may be ours all the same, and is to be given back then.
                Ok(Claimed::Ours) | Err(Lost::Late) => return held(),
                Ok(Claimed::Taken(left)) if Instant::now() < until => {
                    match timeout(left.min(self.rules.lease), told.word()).await {
                        Ok(Word::Kept) => {
                            let entry = self.look(&name).await;
                            return entry.map_or_else(alone, |entry| Claim::Found { entry, awaited: true });
                        }
                        Ok(Word::Alone) => return alone(),
                        // The page may be there by now.
                        Ok(Word::Again) | Err(_) => anyway = false,
                    }
                }
                Ok(Claimed::Taken(_) | Claimed::Nothing) | Err(_) => return alone(),
            }
        }
    }

    /// Reads a page; with a token, takes the lease where there is none, or `anyway`.
    async fn ask(&self, name: &str, token: Option<(&str, bool)>) -> Result<Claimed, Lost> {
        let mut arguments = vec![self.rules.largest.to_string().into_bytes()];
        if let Some((token, anyway)) = token {
            let lease = self.rules.lease.as_millis().to_string();
            let anyway = u8::from(anyway).to_string();
            arguments.extend([token.into(), lease.into_bytes(), anyway.into_bytes()]);
        }
        let asked = Timestamp::now();
        let answer = self.link.run(&CLAIM, &[self.page(name), self.lease(name)], arguments).await;
        let claimed = answer.map(|answer| self.claimed(name, answer, asked));
        let result = match &claimed {
            Ok(Claimed::Page(_)) => SharedPage::Hit,
            Ok(Claimed::Broken) => SharedPage::Broken,
            Ok(Claimed::Ours | Claimed::Taken(_) | Claimed::Nothing) => SharedPage::Miss,
            Err(_) => SharedPage::Lost,
        };
        self.metrics.shared_page(result);
        claimed
    }

    fn claimed(&self, name: &str, answer: Value, asked: Timestamp) -> Claimed {
        let Value::Array(mut parts) = answer else { return Claimed::Broken };
        let Some((Value::BulkString(word), rest)) = parts.split_first_mut() else { return Claimed::Broken };
        match (word.as_slice(), rest) {
            (b"yours", _) => Claimed::Ours,
            (b"none", _) => Claimed::Nothing,
            // Without an end it is none of ours.
            (b"taken", [Value::Int(-1)]) => Claimed::Nothing,
            // Rounded down by the server; below zero where it has just lapsed.
            (b"taken", [Value::Int(left)]) => {
                Claimed::Taken(Duration::from_millis(u64::try_from(*left).unwrap_or(0) + 1))
            }
            (b"page", [Value::Int(server), Value::BulkString(sealed)]) => {
                let opened = self.seal.open(name, std::mem::take(sealed));
                let moment = |made| clock::moment(made, *server, asked);
                let entry = opened.and_then(|plain| format::decode(Bytes::from(plain), moment));
                entry.map_or(Claimed::Broken, Claimed::Page)
            }
            _ => Claimed::Broken,
        }
    }

    /// Keeps a lease for as long as it is polled.
    pub(super) async fn hold(&self, held: &Held) -> std::convert::Infallible {
        loop {
            sleep(self.rules.lease / 3).await;
            let lease = self.rules.lease.as_millis().to_string();
            let arguments = vec![held.token.clone().into_bytes(), lease.into_bytes()];
            // Where it cannot be renewed it lapses, and another replica may fetch the page once more.
            self.link.run(&EXTEND, &[self.lease(&held.name)], arguments).await.ok();
        }
    }

    /// See [`PageStore::share`](super::PageStore::share).
    pub(super) async fn share(&self, lease: Lease, fetched: Fetched) {
        let mut held = lease.0;
        let (entries, useful, word) = match fetched {
            Fetched::Entries(entries, useful) => (entries, useful, "alone"),
            Fetched::Unshared => (Vec::new(), Duration::ZERO, "alone"),
            Fetched::GivenUp => (Vec::new(), Duration::ZERO, "again"),
        };
        let mut entries: Vec<_> =
            entries.into_iter().map(|(key, entry)| (self.seal.name(&key), entry)).collect();
        // Who waits is told last: what it is told of may lead to the others.
        entries.sort_by_key(|(name, _)| held.as_ref().is_some_and(|held| held.name == *name));
        for (name, entry) in entries {
            let value = self.sealed(&name, &entry).filter(|_| !useful.is_zero());
            let ours = held.take_if(|held| held.name == name);
            if value.is_some() || ours.is_some() {
                self.give(&name, ours.as_ref(), word, value.map(|value| (value, useful))).await;
            }
        }
        if let Some(held) = held {
            self.give(&held.name, Some(&held), word, None).await;
        }
    }

    async fn give(&self, name: &str, held: Option<&Held>, word: &str, value: Option<(Vec<u8>, Duration)>) {
        let token = held.map(|held| held.token.clone()).unwrap_or_default();
        let mut arguments =
            vec![token.into_bytes(), self.names.pages().into_bytes(), name.into(), word.into()];
        if let Some((value, useful)) = value {
            arguments.extend([value, useful.as_millis().max(1).to_string().into_bytes()]);
        }
        if let Err(error) = self.link.run(&SHARE, &[self.lease(name), self.page(name)], arguments).await {
            tracing::debug!(%error, "a page could not be shared");
        }
    }

    fn sealed(&self, name: &str, entry: &Entry) -> Option<Vec<u8>> {
        let made = match entry {
            Entry::Page(page) => self.generations.clock.of(page.at)?,
            Entry::Varies(_) => 0,
        };
        let sealed = self.seal.seal(name, format::encode(entry, made))?;
        (sealed.len() <= self.rules.largest).then_some(sealed)
    }

    pub(super) async fn remove(&self, key: &PageKey) {
        self.link.command(&[b"DEL", self.page(&self.seal.name(key)).as_bytes()]).await.ok();
    }

    fn page(&self, name: &str) -> String {
        self.names.of(&format!("page:{name}"))
    }

    fn lease(&self, name: &str) -> String {
        self.names.of(&format!("lease:{name}"))
    }
}

#[cfg(test)]
mod tests;
