//! What would happen to a request: the question and its answer, as the `explain` command and the dashboard's form have them.

use std::net::IpAddr;

use http::header::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::Number;

/// A request as it would come, without a body.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// Its method, as written.
    pub method: String,
    /// Its target, as written: path and query, base path included.
    pub target: String,
    /// Who sends it.
    pub caller: Caller,
    /// From which address; loopback where none is named.
    pub client: Option<IpAddr>,
    /// Its `Origin`.
    pub origin: Option<String>,
    /// Further fields; a `host` among them stands instead of one that is accepted.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

/// By what a caller is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Caller {
    /// By nothing.
    #[default]
    Keyless,
    /// By this key, in its `Authorization` field.
    Key(String),
    /// By a publishable key of this environment, whichever: the keys themselves are not known here.
    Environment(String),
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// `allow` or `refuse`.
    pub decision: &'static str,
    /// What the caller would get; 200 stands for whatever upstream answers.
    pub status: u16,
    /// The error's code.
    pub code: Option<String>,
    /// On whose behalf.
    pub environment: Option<String>,
    /// What opened the route, or whose constraint was broken.
    pub rule: Option<String>,
    /// The route's template.
    pub route: Option<String>,
    /// Whether its answer is kept.
    pub cache: Cached,
    /// The limits it would draw on.
    pub limits: Vec<&'static str>,
    /// Why.
    pub reason: String,
    /// What would open it.
    pub hint: Option<String>,
    /// What a shadow rule would have refused.
    pub shadow: Option<Shadow>,
    /// What each layer said that decides, from the outside in.
    pub layers: Vec<Layer>,
}

/// Whether an answer is kept.
#[derive(Debug, Clone, Serialize)]
pub struct Cached {
    /// It is a page of a list.
    pub list: bool,
    /// Seconds it is fresh for, where upstream does not say otherwise.
    pub ttl: Option<Number>,
}

/// What a shadow rule would have refused.
#[derive(Debug, Clone, Serialize)]
pub struct Shadow {
    /// Where it stands.
    pub rule: String,
    /// Why.
    pub reason: String,
}

/// What one layer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Its name, as in `src/policy`.
    pub layer: &'static str,
    /// What it said.
    pub said: Said,
}

/// What a layer says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// Go on.
    Passed,
    /// Nothing further in is asked: it answered by itself, and refused nothing.
    Answered,
    /// No further.
    Refused,
    /// It was not asked: one further out had answered.
    NotReached,
}

impl Explanation {
    /// Whether the answer is kept, in words.
    pub fn cache_in_words(&self) -> String {
        match (&self.cache.ttl, self.cache.list) {
            (Some(ttl), _) => format!("a list page, fresh for {ttl} s where upstream does not say otherwise"),
            (None, true) => "a list page".to_owned(),
            (None, false) => "not kept".to_owned(),
        }
    }
}

impl Said {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::NotReached => "not reached",
        }
    }

    /// For who reads quickly.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Passed => "✓",
            Self::Answered => "●",
            Self::Refused => "✗",
            Self::NotReached => "–",
        }
    }
}
