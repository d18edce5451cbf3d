//! The limit per client IP, kept by all replicas together.
//!
//! Each replica decides alone and at once, from its own table. In the background it tells a server that all share what those
//! clients spent that spend much, hears what each of them owes in all, and raises its own bucket to that: one call for all of
//! them, every fraction of a window. So the sum over all replicas is what one would give, but for what is spent between two
//! calls, and that is paid back. Nobody waits for the server; while it cannot be reached each replica limits on its own, and
//! what was spent meanwhile is not held against anybody.
//!
//! Addresses stay here: the server knows clients by a keyed hash. The key lies beside them, where all replicas find it: whoever
//! reads all of the server can try out addresses, who sees names of keys alone (a log, a listing) cannot.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use redis::Value;
use tokio_util::sync::CancellationToken;

use super::recent::{Recent, TOLD};
use super::{ClientLimits, Table};
use crate::domain::client_ip::ClientKey;
use crate::store::link::{Link, Lost, Names, Script};
use crate::time::sleep;

/// Clients in one call.
const BATCH: usize = 512;

static SHARE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("share.lua")));

impl ClientLimits {
    /// Shares what clients spend with the other replicas, of which there are so many in all, until `stop`. `limits`: as they
    /// stand, over one and the same table.
    pub async fn share(
        limits: impl Fn() -> Arc<Self>,
        link: impl Link,
        names: Names,
        replicas: impl Fn() -> u32,
        stop: CancellationToken,
    ) {
        let current = limits();
        let table = current.table.table.clone();
        let (Some(recent), Some(salt)) = (table.recent.clone(), random()) else { return };
        let clients = HashMap::new();
        let mut sharing = Sharing {
            limits: current,
            table,
            recent,
            link,
            names,
            salt,
            replicas: 1,
            clients,
            refused: false,
        };
        loop {
            (sharing.limits, sharing.replicas) = (limits(), replicas().max(1));
            sharing.recent.tell_from(sharing.noteworthy(), sharing.window());
            tokio::select! {
                () = stop.cancelled() => return sharing.leave().await,
                () = sleep(sharing.interval()) => sharing.exchange().await,
            }
        }
    }
}

/// One replica's part.
struct Sharing<L> {
    limits: Arc<ClientLimits>,
    table: Arc<Table>,
    recent: Arc<Recent>,
    link: L,
    names: Names,
    /// The key of the hash that clients are known by.
    salt: String,
    replicas: u32,
    /// Those that are told of.
    clients: HashMap<ClientKey, Client>,
    /// The server refused, and that was told.
    refused: bool,
}

#[derive(Default)]
struct Client {
    /// What the server knows it by; empty as long as nobody asked.
    name: String,
    /// When it was last told of.
    told: u64,
    /// When it last had spent something.
    spent: u64,
    /// When it owes nothing any more, as far as is known.
    arrival: u64,
}

impl<L: Link> Sharing<L> {
    /// Between two calls: what flows back meanwhile, once for each replica, is a fiftieth of the limit.
    fn interval(&self) -> Duration {
        let part = self.limits.quota.window / self.replicas.saturating_mul(50);
        part.clamp(Duration::from_millis(10), Duration::from_millis(250))
    }

    /// What a replica may keep to itself in a window: a twentieth of the limit, all replicas together.
    fn noteworthy(&self) -> u32 {
        (self.limits.quota.requests / self.replicas.saturating_mul(20)).max(1)
    }

    fn window(&self) -> u64 {
        nanos(self.limits.quota.window)
    }

    /// Tells what there is to tell.
    async fn exchange(&mut self) {
        let due = self.due(self.table.now());
        if !due.is_empty() {
            self.tell(&due).await;
        }
    }

    /// Tells all that was spent: this replica goes.
    async fn leave(&mut self) {
        self.welcome(self.table.now());
        let mut spent: Vec<ClientKey> = self.clients.keys().copied().collect();
        spent.retain(|key| self.recent.of(*key).cells > 0);
        for batch in spent.chunks(BATCH) {
            self.tell(batch).await;
        }
    }

    /// Takes in who has come so far.
    fn welcome(&mut self, now: u64) {
        for key in self.recent.fresh() {
            match self.clients.len() < TOLD {
                true => drop(self.clients.insert(key, Client { spent: now, ..Client::default() })),
                // Limited by each replica on its own, until there is room.
                false => self.recent.forget(key),
            }
        }
    }

    /// Whom to tell of now: who spent something worth telling or a while ago, and who is near the limit, since what flows
    /// back to it goes to all replicas.
    fn due(&mut self, now: u64) -> Vec<ClientKey> {
        let window = self.window();
        self.clients.retain(|key, client| {
            let idle = now > client.arrival && now.saturating_sub(client.spent) > window;
            if idle {
                self.recent.forget(*key);
            }
            !idle
        });
        self.welcome(now);
        let noteworthy = self.noteworthy();
        let mut due = Vec::new();
        for (key, client) in &mut self.clients {
            let spent = self.recent.of(*key);
            if spent.cells > 0 {
                client.spent = now;
            }
            let waited = spent.cells > 0 && now.saturating_sub(spent.since) > window / 20;
            if spent.cells >= noteworthy || waited || client.arrival > now.saturating_add(window / 2) {
                due.push((client.told, *key));
            }
        }
        if due.len() > BATCH {
            // Who has waited longest comes first.
            due.select_nth_unstable(BATCH);
            due.truncate(BATCH);
        }
        due.into_iter().map(|(_, key)| key).collect()
    }

    /// One call. What it does not get through is not told again: it may have been counted, and nothing is counted twice.
    async fn tell(&mut self, clients: &[ClientKey]) {
        let spent: Vec<_> = clients.iter().map(|key| self.recent.take(*key)).collect();
        // Once more where the salt was another one.
        for _ in 0..2 {
            let sent = self.table.now();
            let mut keys = vec![self.names.of("clients:salt")];
            let mut arguments = vec![self.salt.clone(), micros(self.window())];
            for (key, spent) in clients.iter().zip(&spent) {
                keys.push(self.name(*key));
                let debt = u64::from(spent.cells).saturating_mul(nanos(self.limits.period));
                arguments.extend([micros(debt), micros(sent.saturating_sub(spent.since))]);
            }
            let arguments = arguments.into_iter().map(String::into_bytes).collect();
            let answer = match self.link.run(&SHARE, &keys, arguments).await {
                Ok(answer) => read(answer),
                Err(lost) => return self.lost(&lost),
            };
            let Some(answer) = answer else {
                return self.lost(&Lost::Refused("an answer that makes no sense".to_owned()));
            };
            self.refused = false;
            if answer.salt == self.salt {
                for (key, debt) in clients.iter().zip(answer.debts) {
                    self.hear(*key, sent, debt);
                }
                return;
            }
            self.salt = answer.salt;
            self.clients.values_mut().for_each(|client| client.name.clear());
        }
    }

    /// What `key` owes all replicas together is owed to this one.
    fn hear(&mut self, key: ClientKey, sent: u64, debt: u64) {
        let untold = u64::from(self.recent.of(key).cells).saturating_mul(nanos(self.limits.period));
        // Less than it owes rather than more: others' calls were under way for longer, perhaps.
        let arrival = sent.saturating_add(debt).saturating_sub(nanos(self.interval() / 2));
        if let Some(client) = self.clients.get_mut(&key) {
            (client.told, client.arrival) = (sent, arrival);
        }
        if arrival > sent {
            self.table.delay(key, arrival.saturating_add(untold));
        }
    }

    fn lost(&mut self, lost: &Lost) {
        // The link tells of what is unreachable itself.
        if let Lost::Refused(error) = lost
            && !std::mem::replace(&mut self.refused, true)
        {
            tracing::warn!(
                error,
                "the shared store does not count clients: each replica limits them on its own"
            );
        }
    }

    /// What the server knows `key` by.
    fn name(&mut self, key: ClientKey) -> String {
        let client = self.clients.entry(key).or_default();
        if client.name.is_empty() {
            let salt = hmac::Key::new(hmac::HMAC_SHA256, self.salt.as_bytes());
            let hash = hmac::sign(&salt, &key.0.to_be_bytes());
            client.name = self.names.of(&format!("client:{}", hex(&hash.as_ref()[..16])));
        }
        client.name.clone()
    }
}

/// What the script says.
struct Answer {
    salt: String,
    /// Of each client, in nanoseconds.
    debts: Vec<u64>,
}

fn read(answer: Value) -> Option<Answer> {
    let Value::Array(parts) = answer else { return None };
    let mut parts = parts.into_iter();
    let salt = redis::from_redis_value(parts.next()?).ok()?;
    let debt = |part| redis::from_redis_value::<u64>(part).map(|micros| micros.saturating_mul(1000));
    Some(Answer { salt, debts: parts.map(debt).collect::<Result<_, _>>().ok()? })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Of nanoseconds, as text.
fn micros(nanos: u64) -> String {
    (nanos / 1000).to_string()
}

/// 128 bits that nobody guesses.
fn random() -> Option<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok()?;
    Some(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
