//! Replicas over a real Redis, each with a connection of its own.

use std::collections::HashSet;

use futures_util::future::join_all;
use tokio_util::task::TaskTracker;

use super::super::contract::{body, key, page};
use super::super::{Generation, MemoryPages, PageStore, TieredPages};
use super::*;
use crate::config::RedisUrl;
use crate::edge::redis::RedisLink;
use crate::edge::tls;
use crate::redis_server::RedisServer;

/// A replica; gone at once when dropped, like one that was killed.
struct Replica {
    pages: TieredPages<RedisLink>,
    link: RedisLink,
    metrics: Arc<Metrics>,
    /// Ends what keeps its lease, and no more.
    deaf: CancellationToken,
    stop: CancellationToken,
}

/// Long enough for any machine.
const CALM: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);
const RULES: Rules = Rules { timeout: CALM, lease: HOUR, longest_wait: HOUR, largest: 1 << 20 };

impl Replica {
    async fn start(server: &RedisServer) -> Self {
        let replica = Self::with(server, RULES, "secret");
        assert!(replica.things().await.known, "connected");
        replica
    }

    fn with(server: &RedisServer, rules: Rules, secret: &str) -> Self {
        let place = RedisUrl {
            tls: false,
            host: "127.0.0.1".into(),
            port: server.port(),
            database: 0,
            username: None,
            password: None,
        };
        let names = Names::new("test");
        let tls = tls::store(None).expect("roots");
        let link = RedisLink::new(place, tls, rules.timeout, vec![names.pages()]).expect("a link");
        let seal = Seal::new(&[secret.as_bytes()]).expect("keys");
        let metrics = Arc::new(Metrics::new());
        let shared = Arc::new(SharedPages::new(link.clone(), names, seal, rules, metrics.clone()));
        let (deaf, stop) = (CancellationToken::new(), CancellationToken::new());
        TaskTracker::new().spawn(shared.clone().run(deaf.clone()));
        TaskTracker::new().spawn(link.clone().run(stop.clone()));
        let pages = TieredPages::new(MemoryPages::new(1 << 20, HOUR), Some(shared));
        Self { pages, link, metrics, deaf, stop }
    }

    async fn things(&self) -> Generation {
        self.pages.generation("b", "/things").await
    }

    async fn write(&self) {
        self.pages.invalidate("b", &["/things".to_owned()]).await;
    }

    async fn command(&self, words: &[&[u8]]) -> Value {
        self.link.command(words).await.expect("an answer")
    }

    async fn keys(&self, pattern: &str) -> Vec<String> {
        redis::from_redis_value(self.command(&[b"KEYS", pattern.as_bytes()]).await).expect("keys")
    }

    async fn lead(&self, at: &PageKey) -> Lease {
        match self.pages.claim(at, |_| true).await {
            Claim::Lead(lease) if lease.0.is_some() => lease,
            other => panic!("{other:?}"),
        }
    }

    async fn have(&self, path: &str) -> PageKey {
        let (at, page) = page(path, "[1]");
        let lease = self.lead(&at).await;
        self.pages.put(at.clone(), page.clone()).await;
        self.pages.share(lease, Fetched::Entries(vec![(at.clone(), page)], HOUR)).await;
        at
    }

    /// Where a page is kept.
    fn name(&self, at: &PageKey) -> String {
        let shared = self.pages.shared().expect("shared");
        shared.page(&shared.seal.name(at))
    }

    fn counted(&self, result: &str) -> String {
        let text = self.metrics.render(crate::telemetry::exposition::Format::Prometheus, &Default::default());
        let series = format!("metorial_proxy_shared_pages_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).expect("a series").to_owned()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.deaf.cancel();
        self.stop.cancel();
    }
}

/// Polls until `condition` holds.
async fn until(mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if condition().await {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("never");
}

super::super::contract::suite!(&Replica::start(&RedisServer::start()).await.pages);

#[tokio::test]
async fn a_page_of_one_replica_is_one_of_all_with_its_age() {
    let server = RedisServer::start();
    let (a, b) = (Replica::start(&server).await, Replica::start(&server).await);
    let (at, Entry::Page(made)) = page("/things", "[1]") else { panic!("a page") };
    let mut made = Arc::into_inner(made).expect("alone");
    made.at = made.at.before(Duration::from_secs(100));
    let lease = a.lead(&at).await;
    let entries = vec![(at.clone(), Entry::Page(Arc::new(made)))];
    a.pages.share(lease, Fetched::Entries(entries, HOUR)).await;
    let Some(Entry::Page(found)) = b.pages.get(&at).await else { panic!("no page") };
    let age = found.age(Timestamp::now());
    assert!(age >= Duration::from_secs(100) && age < Duration::from_secs(160), "{age:?}");
    server.signal("STOP");
    assert_eq!(body(&b.pages, &at).await.as_deref(), Some("[1]"), "without being asked for again");
    server.signal("CONT");
}

#[tokio::test]
async fn what_lies_in_the_store_tells_nothing_and_ends_by_itself() {
    let server = RedisServer::start();
    let a = Replica::start(&server).await;
    a.have("/things").await;
    let names = a.keys("*").await;
    assert!(names.iter().all(|name| name.starts_with("{test}:") && !name.contains("/things")), "{names:?}");
    let pages = a.keys("*:page:*").await;
    assert_eq!((pages.len(), a.keys("*:lease:*").await.len()), (1, 0), "the lease was given back");
    let Value::BulkString(value) = a.command(&[b"GET", pages[0].as_bytes()]).await else {
        panic!("no value")
    };
    assert!(!value.windows(3).any(|part| part == b"[1]"));
    let Value::Int(left) = a.command(&[b"TTL", pages[0].as_bytes()]).await else { panic!("no end") };
    assert!(left > 0 && left <= 3600, "{left}");
}

#[tokio::test]
async fn one_replica_fetches_and_the_others_wait_for_its_page() {
    let server = RedisServer::start();
    let all = join_all((0..4).map(|_| Replica::start(&server))).await;
    let (at, page) = page("/things", "[1]");
    let claims = all.iter().map(async |replica| match replica.pages.claim(&at, |_| true).await {
        Claim::Lead(lease) => {
            assert!(lease.0.is_some(), "for all of them");
            // Until the others wait: each has asked by then.
            until(async || all.iter().filter(|other| other.counted("miss") != "0").count() == all.len())
                .await;
            replica.pages.put(at.clone(), page.clone()).await;
            let entries = vec![(at.clone(), page.clone())];
            replica.pages.share(lease, Fetched::Entries(entries, HOUR)).await;
            true
        }
        Claim::Found { awaited, .. } => {
            assert!(awaited);
            false
        }
    });
    let leaders = join_all(claims).await.into_iter().filter(|led| *led).count();
    assert_eq!(leaders, 1);
    for replica in &all {
        assert_eq!(body(&replica.pages, &at).await.as_deref(), Some("[1]"));
    }
}

#[tokio::test]
async fn who_waits_for_a_page_that_may_not_be_shared_fetches_it_at_once() {
    let server = RedisServer::start();
    let (a, b) = (Replica::start(&server).await, Replica::start(&server).await);
    let at = key("e", 0, "/things");
    for (fetched, leads) in [(Fetched::Unshared, false), (Fetched::GivenUp, true)] {
        let misses = b.counted("miss");
        let lease = a.lead(&at).await;
        let share = async {
            until(async || b.counted("miss") != misses).await;
            a.pages.share(lease, fetched).await;
        };
        let (claim, ()) = tokio::join!(b.pages.claim(&at, |_| true), share);
        let Claim::Lead(lease) = claim else { panic!("there is no page") };
        assert_eq!(lease.0.is_some(), leads, "alone, or for all who still wait");
        b.pages.share(lease, Fetched::Unshared).await;
    }
}

#[tokio::test]
async fn when_a_leader_is_gone_one_of_those_who_wait_takes_its_place() {
    let server = RedisServer::start();
    let rules = Rules { lease: Duration::from_millis(300), ..RULES };
    let start = || Replica::with(&server, rules, "secret");
    let (gone, all) = (start(), [start(), start(), start()]);
    let (at, page) = page("/things", "[1]");
    for replica in all.iter().chain([&gone]) {
        assert!(replica.things().await.known);
    }
    let lease = gone.lead(&at).await;
    let claims = all.iter().map(async |replica| match replica.pages.claim(&at, |_| true).await {
        Claim::Lead(lease) => {
            // As long as it takes, the others wait.
            tokio::select! {
                never = replica.pages.hold(&lease) => match never {},
                () = sleep(rules.lease * 2) => {}
            }
            let entries = vec![(at.clone(), page.clone())];
            replica.pages.share(lease, Fetched::Entries(entries, HOUR)).await;
            true
        }
        Claim::Found { .. } => false,
    });
    let leaders = join_all(claims).await.into_iter().filter(|led| *led).count();
    assert_eq!(leaders, 1);
    // It was not gone after all: what it took is not its own any more.
    gone.pages.share(lease, Fetched::Unshared).await;
    assert_eq!(gone.keys("*:page:*").await.len(), 1);
}

#[tokio::test]
async fn a_write_that_was_answered_is_known_everywhere() {
    let server = RedisServer::start();
    let all = join_all((0..3).map(|_| Replica::start(&server))).await;
    let mut seen = HashSet::new();
    for at in 0..60 {
        all[at % 3].write().await;
        let mut numbers = Vec::new();
        for replica in &all {
            let things = replica.things().await;
            assert!(things.known);
            numbers.push(things.number);
        }
        assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
        assert!(seen.insert(numbers[0]), "a generation came back");
    }
    // At once, too.
    join_all(all.iter().flat_map(|replica| (0..20).map(|_| replica.write()))).await;
    let numbers: HashSet<u64> =
        join_all(all.iter().map(Replica::things)).await.into_iter().map(|things| things.number).collect();
    assert_eq!(numbers.len(), 1);
}

#[tokio::test]
async fn a_write_waits_for_a_replica_that_does_not_hear_until_that_knows_that_it_does_not() {
    let server = RedisServer::start();
    let (a, b) = (Replica::start(&server).await, Replica::start(&server).await);
    // The store has been there for so long that all leases are known.
    a.command(&[b"HSET", b"{test}:leases", b"since", b"0"]).await;
    let before = b.things().await;
    assert!(before.known);
    b.deaf.cancel();
    a.write().await;
    let after = b.pages.shared().expect("shared").generations.is_known();
    assert!(!after, "it took itself for up to date while another's write was answered");
    assert!(b.pages.cut_off().is_some());
}

#[tokio::test]
async fn a_servers_clock_that_is_set_back_holds_writes_no_longer_than_a_new_store_does() {
    let server = RedisServer::start();
    let a = Replica::start(&server).await;
    // As they stood before, in an hour.
    let now = "local now = redis.call('TIME')[1] * 1000";
    let ahead = format!(
        "{now} + 3600000 redis.call('HSET', '{{test}}:leases', 'since', now, 'replica:gone', now .. ' 0')"
    );
    a.command(&[b"EVAL", ahead.as_bytes(), b"0"]).await;
    a.write().await;
    let until = format!(
        "{now} local all = {{}} for _, field in ipairs({{'since', 'replica:gone'}}) do
            all[#all + 1] = string.match(redis.call('HGET', '{{test}}:leases', field), '^%d+') - now
        end return all"
    );
    let until: Vec<i64> =
        redis::from_redis_value(a.command(&[b"EVAL", until.as_bytes(), b"0"]).await).expect("times");
    let most = i64::try_from(super::super::generations::LOOKED_AFTER.as_millis()).expect("short");
    assert!(until.iter().all(|until| *until <= most + 1000), "{until:?}");
}

#[tokio::test]
async fn nobody_waits_for_a_replica_that_has_left() {
    let server = RedisServer::start();
    let (a, b) = (Replica::start(&server).await, Replica::start(&server).await);
    a.command(&[b"HSET", b"{test}:leases", b"since", b"0"]).await;
    let leases = async || match a.command(&[b"HLEN", b"{test}:leases"]).await {
        Value::Int(fields) => fields - 3,
        other => panic!("{other:?}"),
    };
    assert_eq!(leases().await, 2);
    b.pages.shared().expect("shared").leave().await;
    assert_eq!(leases().await, 1);
    assert!(!b.things().await.known);
    a.write().await;
    assert!(a.things().await.known);
}

#[tokio::test]
async fn a_store_that_forgot_makes_every_page_unreachable_once() {
    let mut server = RedisServer::start();
    let (a, b) = (Replica::start(&server).await, Replica::start(&server).await);
    a.write().await;
    let mut before = a.things().await.number;
    let Value::BulkString(run) = a.command(&[b"HGET", b"{test}:leases", b"server"]).await else {
        panic!("no run")
    };
    assert_eq!(run.len(), 40, "the run of the server is known");
    // A failover to a server that may lack the last changes, an eviction, and a restart.
    let losses: [&[&[u8]]; 3] =
        [&[b"HSET", b"{test}:leases", b"server", b"another"], &[b"DEL", b"{test}:leases"], &[b"FLUSHALL"]];
    for lost in losses {
        a.command(lost).await;
        b.write().await;
        until(async || {
            let (a, b) = (a.things().await, b.things().await);
            a.known && a == b && a.number != before
        })
        .await;
        before = a.things().await.number;
    }
    server.kill();
    until(async || !a.things().await.known && !b.things().await.known).await;
    assert!(server.restart());
    until(async || a.things().await.known && b.things().await.known).await;
    assert!(a.things().await.number != before && a.things().await == b.things().await);
}

#[tokio::test]
async fn a_write_while_the_store_is_away_is_known_here_at_once_and_everywhere_afterwards() {
    let mut server = RedisServer::start();
    let a = Replica::start(&server).await;
    server.kill();
    until(async || !a.things().await.known).await;
    let before = a.things().await.number;
    a.write().await;
    assert_ne!(a.things().await.number, before);
    assert!(server.restart());
    until(async || a.things().await.known).await;
    until(async || {
        let stored = a.command(&[b"HGET", b"{test}:generations", b"of:b /things"]).await;
        stored == Value::BulkString(b"1".to_vec())
    })
    .await;
    let b = Replica::start(&server).await;
    until(async || a.things().await == b.things().await).await;
}

#[tokio::test]
async fn what_no_replica_made_is_a_miss_and_counted() {
    let server = RedisServer::start();
    let (a, b) = (Replica::start(&server).await, Replica::start(&server).await);
    let at = a.have("/things").await;
    let other = a.have("/others").await;
    let (name, other) = (a.name(&at), a.name(&other));
    let Value::BulkString(value) = a.command(&[b"GET", name.as_bytes()]).await else { panic!("no value") };
    let Value::BulkString(moved) = a.command(&[b"GET", other.as_bytes()]).await else { panic!("no value") };
    let mut version = value.clone();
    version[0] += 1;
    let mut changed = value.clone();
    *changed.last_mut().expect("a byte") ^= 1;
    let large = vec![b'x'; (1 << 20) + 1];
    let broken =
        [b"" as &[u8], b"x", &value[..20], &value[..value.len() - 1], &version, &changed, &moved, &large];
    let mut count = 0;
    for bytes in broken {
        a.command(&[b"SET", name.as_bytes(), bytes]).await;
        assert_eq!(body(&b.pages, &at).await, None);
        // Nothing is as if it were not there.
        count += usize::from(!bytes.is_empty());
        assert_eq!(b.counted("broken"), count.to_string());
    }
    a.command(&[b"DEL", name.as_bytes()]).await;
    a.command(&[b"RPUSH", name.as_bytes(), b"x"]).await;
    assert_eq!(body(&b.pages, &at).await, None);
    // It does not keep the page from being fetched, and is replaced by it.
    let lease = b.lead(&at).await;
    b.pages.share(lease, Fetched::Entries(vec![page("/things", "[2]")], HOUR)).await;
    assert_eq!(body(&b.pages, &at).await.as_deref(), Some("[2]"));
    let stranger = Replica::with(&server, RULES, "another");
    until(async || stranger.things().await.known).await;
    assert_eq!(body(&stranger.pages, &at).await, None);
}

#[tokio::test]
async fn a_full_store_keeps_no_pages_and_still_tells_of_writes() {
    let server = RedisServer::start();
    let (a, b) = (Replica::start(&server).await, Replica::start(&server).await);
    a.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).await;
    let (at, page) = page("/things", "[1]");
    let Claim::Lead(lease) = a.pages.claim(&at, |_| true).await else { panic!("there is no page") };
    a.pages.put(at.clone(), page.clone()).await;
    a.pages.share(lease, Fetched::Entries(vec![(at.clone(), page)], HOUR)).await;
    assert_eq!(body(&a.pages, &at).await.as_deref(), Some("[1]"));
    assert_eq!(body(&b.pages, &at).await, None);
    let before = b.things().await;
    a.write().await;
    let after = b.things().await;
    assert!(after.known && after.number != before.number);
}

#[tokio::test]
async fn pages_leave_room_in_a_store_that_evicts_nothing() {
    let server = RedisServer::start();
    let (a, b) = (Replica::start(&server).await, Replica::start(&server).await);
    let at = a.have("/things").await;
    assert_eq!(body(&b.pages, &at).await.as_deref(), Some("[1]"));
    let Value::VerbatimString { text, .. } = a.command(&[b"INFO", b"memory"]).await else {
        panic!("no text")
    };
    let used: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .and_then(|used| used.parse().ok())
        .expect("a number");
    let most = (used * 11 / 10).to_string();
    a.command(&[b"CONFIG", b"SET", b"maxmemory", most.as_bytes()]).await;
    let at = a.have("/others").await;
    assert_eq!(body(&b.pages, &at).await, None);
    a.command(&[b"SET", b"{test}:budget", b"1"]).await;
    a.command(&[b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru"]).await;
    let at = a.have("/evicting").await;
    assert_eq!(body(&b.pages, &at).await.as_deref(), Some("[1]"));
}

#[tokio::test]
async fn a_store_that_stalls_is_done_without() {
    let server = RedisServer::start();
    let rules = Rules { timeout: Duration::from_millis(50), ..RULES };
    let a = Replica::with(&server, rules, "secret");
    until(async || a.things().await.known).await;
    let at = a.have("/things").await;
    server.signal("STOP");
    assert!(a.pages.get(&at).await.is_some());
    assert!(a.pages.get(&key("e", 0, "/others")).await.is_none());
    assert!(matches!(a.pages.claim(&key("e", 0, "/others"), |_| true).await, Claim::Lead(_)));
    let before = a.things().await.number;
    a.write().await;
    assert_ne!(a.things().await.number, before);
    until(async || !a.things().await.known).await;
    server.signal("CONT");
    until(async || a.things().await.known).await;
}
