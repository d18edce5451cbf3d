//! A real Redis server on a virtual clock, behind a simulated network: what it says depends on nothing but the scenario.
//!
//! Scripts run on the server itself, but read the paused clock of the test instead of the server's. A call blocks the one
//! thread there is, so nothing else happens meanwhile; the time that it takes is simulated.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use metorial_proxy::store::link::{Link, Lost, News, Script};
use metorial_proxy::time::{Timestamp, sleep};
use redis::Value;
use tokio::sync::broadcast;

use crate::redis_server::RedisServer;

/// The server's clock is elsewhere than ours.
const OFFSET: u64 = 1_700_000_000_000_000;
/// Where scripts leave what they would publish.
const OUTBOX: &str = "virtual:outbox";

/// The server, and the network around it.
#[derive(Clone)]
pub(crate) struct VirtualRedis(Arc<Mutex<World>>);

struct World {
    connection: redis::Connection,
    timeout: Duration,
    /// One way, at most.
    delay: Duration,
    random: fastrand::Rng,
    /// The server itself is gone.
    down: bool,
    links: Vec<VirtualLink>,
    /// Scripts that were run.
    calls: u64,
    /// When its clock began.
    since: Timestamp,
    /// By how much it was set back, in microseconds.
    back: u64,
    _server: RedisServer,
}

/// One replica's way to it.
#[derive(Clone)]
pub(crate) struct VirtualLink {
    redis: VirtualRedis,
    cut: Arc<Mutex<bool>>,
    news: broadcast::Sender<News>,
}

impl VirtualRedis {
    /// A server of its own; calls take up to twice `delay`.
    pub(crate) fn start(seed: u64, delay: Duration) -> Self {
        let server = RedisServer::start();
        let connection = redis::Client::open(server.url()).and_then(|client| client.get_connection());
        Self(Arc::new(Mutex::new(World {
            connection: connection.expect("a connection"),
            timeout: Duration::from_millis(50),
            delay,
            random: fastrand::Rng::with_seed(seed),
            down: false,
            links: Vec::new(),
            calls: 0,
            since: Timestamp::now(),
            back: 0,
            _server: server,
        })))
    }

    /// A further replica's link.
    pub(crate) fn link(&self) -> VirtualLink {
        let link = VirtualLink { redis: self.clone(), cut: Arc::default(), news: broadcast::channel(1024).0 };
        self.world().links.push(link.clone());
        link
    }

    /// Scripts that were run.
    pub(crate) fn calls(&self) -> u64 {
        self.world().calls
    }

    /// Ends the server, or brings it back; links hear of it.
    pub(crate) fn set_down(&self, down: bool) {
        let links = {
            let mut world = self.world();
            world.down = down;
            world.links.clone()
        };
        links.iter().for_each(VirtualLink::tell);
    }

    /// All it knew is lost.
    pub(crate) fn forget(&self) {
        let flushed: redis::RedisResult<()> = redis::cmd("FLUSHALL").query(&mut self.world().connection);
        flushed.expect("flushed");
    }

    /// Sets its clock back.
    pub(crate) fn set_back(&self, by: Duration) {
        self.world().back += u64::try_from(by.as_micros()).expect("a while");
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("unpoisoned")
    }
}

impl VirtualLink {
    /// Cuts it, or mends it.
    pub(crate) fn set_cut(&self, cut: bool) {
        *self.cut.lock().expect("unpoisoned") = cut;
        self.tell();
    }

    fn tell(&self) {
        let news = if self.is_connected() { News::Connected } else { News::Disconnected };
        self.news.send(news).ok();
    }

    async fn travel(&self) -> Result<(), Lost> {
        let delay = {
            let mut world = self.redis.world();
            // Whole milliseconds, to which timers keep.
            let most = u64::try_from(world.delay.as_millis()).expect("short");
            world.random.u64(..=most)
        };
        if delay > 0 {
            sleep(Duration::from_millis(delay)).await;
        }
        if self.is_connected() { Ok(()) } else { Err(Lost::Unreachable) }
    }
}

impl Link for VirtualLink {
    async fn run(&self, script: &Script, keys: &[String], arguments: Vec<Vec<u8>>) -> Result<Value, Lost> {
        let started = Timestamp::now();
        if !self.is_connected() {
            return Err(Lost::Unreachable);
        }
        self.travel().await?;
        let (answer, timeout, published) = {
            let mut world = self.redis.world();
            world.calls += 1;
            let source = script
                .source()
                .replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}")
                .replace("redis.pcall('PUBLISH', ", &format!("redis.call('RPUSH', '{OUTBOX}', "));
            let micros = OFFSET
                + u64::try_from(Timestamp::now().since(world.since).as_micros()).expect("a while")
                - world.back;
            let mut command = redis::cmd("EVAL");
            command.arg(source).arg(keys.len()).arg(keys).arg(arguments);
            command.arg(micros / 1_000_000).arg(micros % 1_000_000);
            let answer: redis::RedisResult<Value> = command.query(&mut world.connection);
            let outbox: redis::RedisResult<Vec<String>> =
                redis::cmd("LPOP").arg(OUTBOX).arg(1000).query(&mut world.connection);
            (answer, world.timeout, outbox.unwrap_or_default())
        };
        for message in published.chunks_exact(2) {
            let (channel, payload) = (message[0].clone(), message[1].clone().into_bytes());
            let links = self.redis.world().links.clone();
            for link in links.iter().filter(|link| link.is_connected()) {
                let message = News::Message { channel: channel.clone(), payload: payload.clone() };
                link.news.send(message).ok();
            }
        }
        // Whoever asks hears nothing of an answer that is lost on its way back.
        self.travel().await?;
        if Timestamp::now().since(started) > timeout {
            return Err(Lost::Late);
        }
        answer.map_err(|error| Lost::Refused(error.to_string()))
    }

    async fn command(&self, words: &[&[u8]]) -> Result<Value, Lost> {
        self.travel().await?;
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        let answer = command.query(&mut self.redis.world().connection);
        answer.map_err(|error: redis::RedisError| Lost::Refused(error.to_string()))
    }

    fn is_connected(&self) -> bool {
        !*self.cut.lock().expect("unpoisoned") && !self.redis.world().down
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }
}
