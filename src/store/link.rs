//! The way to a Redis or Valkey server that replicas share: what the shared stores need of it, and nothing else.
//!
//! A call is answered or lost within the store's `timeout`; nothing is asked twice, because whoever asks knows best whether it
//! may. Keys of one proxy carry one hash tag (`{prefix}`), so that in a cluster they are on one node and a script may touch
//! several.

use std::fmt::Write as _;
use std::future::Future;
use std::sync::LazyLock;

use aws_lc_rs::digest;
use redis::Value;
use tokio::sync::broadcast;

/// A script that the server runs in one step.
pub struct Script {
    source: &'static str,
    digest: LazyLock<String, Box<dyn FnOnce() -> String + Send + Sync>>,
}

/// The names of a proxy's keys and channels, all with one hash tag.
#[derive(Debug, Clone)]
pub struct Names {
    tag: String,
}

impl Names {
    /// Of a proxy with this `store.prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { tag: format!("{{{prefix}}}") }
    }

    /// A key or a channel.
    pub fn of(&self, rest: &str) -> String {
        format!("{}:{rest}", self.tag)
    }

    /// Where replicas tell each other of budgets.
    pub fn budgets(&self) -> String {
        self.of("news:budgets")
    }

    /// Where they tell each other of pages.
    pub fn pages(&self) -> String {
        self.of("news:pages")
    }

    /// Where they tell each other of clients.
    pub fn clients(&self) -> String {
        self.of("news:clients")
    }
}

/// There is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// There is no connection.
    #[error("there is no connection")]
    Unreachable,
    /// Not in time. It may have been done all the same, or may yet be.
    #[error("there was no answer in time")]
    Late,
    /// The server refuses to do it.
    #[error("it was refused: {0}")]
    Refused(String),
}

/// What a server tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// There is a connection again; messages before it may have been missed.
    Connected,
    /// There is none.
    Disconnected,
    /// Somebody published it.
    Message {
        /// Where.
        channel: String,
        /// What.
        payload: Vec<u8>,
    },
}

/// A connection that is made again whenever it is lost; cheap to clone.
pub trait Link: Clone + Send + Sync + 'static {
    /// Runs a script on `keys`.
    fn run(
        &self,
        script: &Script,
        keys: &[String],
        arguments: Vec<Vec<u8>>,
    ) -> impl Future<Output = Result<Value, Lost>> + Send;

    /// A command and its arguments.
    fn command(&self, words: &[&[u8]]) -> impl Future<Output = Result<Value, Lost>> + Send;

    /// Whether there is a connection now.
    fn is_connected(&self) -> bool;

    /// What happens from here on, on the channels that the link was made with.
    fn news(&self) -> broadcast::Receiver<News>;
}

impl Script {
    /// From its text, in Lua.
    pub fn new(source: &'static str) -> Self {
        let sha1 = move || {
            let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, source.as_bytes());
            digest.as_ref().iter().fold(String::new(), |mut text, byte| {
                write!(text, "{byte:02x}").ok();
                text
            })
        };
        Self { source, digest: LazyLock::new(Box::new(sha1)) }
    }

    /// Its text.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// What the server knows it by: its SHA-1.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}
