//! Everything the dashboard, `/live.json` and `top` show, as one value. Numbers are plain and their names say the unit.

use serde::{Deserialize, Serialize};

use super::words::{count, percent, span};

/// The proxy at one moment, and its last ten minutes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The version that runs.
    pub version: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Since it began.
    pub up_seconds: f64,
    /// It takes traffic: configured and not draining.
    pub ready: bool,
    /// What one entry of every `history` stands for; the last one is under way.
    pub history_step_seconds: u64,
    /// Each environment and its budget.
    pub environments: Vec<Budget>,
    /// The budget of our own address.
    pub egress: Budget,
    /// What callers ask and get.
    pub traffic: Traffic,
    /// Pages held.
    pub cache: Cache,
    /// The API.
    pub upstream: Upstream,
    /// Our secret keys, by name.
    pub credentials: Vec<Credential>,
    /// Where budgets are kept.
    pub store: Store,
    /// The last time the configuration was read.
    pub reload: Reload,
}

/// A budget.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// The environment's name, or `egress`.
    pub name: String,
    /// Requests per window.
    pub limit: u32,
    /// Length of the window.
    pub window_seconds: f64,
    /// Requests that are still free.
    pub remaining: u32,
    /// Until a request is free again; zero where one is.
    pub next_slot_seconds: f64,
    /// How long a 429 by upstream still holds everything back; zero where nothing does.
    pub gate_seconds: f64,
    /// Requests that wait for this budget.
    pub waiting: u64,
    /// For how long the first of them has waited.
    pub oldest_wait_seconds: Option<f64>,
    /// The least that was free, oldest first.
    pub history: Vec<Option<u32>>,
}

/// What callers ask and get.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests answered per second, over the last ten.
    pub per_second: f64,
    /// Requests being served at this moment.
    pub in_flight: u64,
    /// How long they took, in the last minute.
    pub latency: Latency,
    /// Answers by their status, of the last ten minutes.
    pub answers: Vec<Ended>,
    /// Refusals by reason.
    pub refusals: Vec<Refusals>,
    /// Requests answered per second, oldest first.
    pub history: Vec<Option<f64>>,
}

/// Percentiles; none where there was nothing. 10 stands for anything longer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50_seconds: Option<f64>,
    /// Nine of ten.
    pub p90_seconds: Option<f64>,
    /// All but one of a hundred.
    pub p99_seconds: Option<f64>,
}

/// How many ended in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// A status, or why there was none.
    pub end: String,
    /// In the last minute.
    pub last_minute: u64,
    /// In the last ten.
    pub last_ten_minutes: u64,
}

/// How many were refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// Who refused: a policy, as in `metorial_proxy_decisions_total`.
    pub policy: String,
    /// The code callers see.
    pub code: String,
    /// The status they see.
    pub status: u16,
    /// In the last minute.
    pub last_minute: u64,
    /// In the last ten.
    pub last_ten_minutes: u64,
}

/// Pages held.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// How many.
    pub entries: u64,
    /// How large they are.
    pub bytes: u64,
    /// How large they may be.
    pub capacity_bytes: u64,
    /// Share of list requests answered without upstream, 0 to 1, in the last ten minutes.
    pub hit_ratio: Option<f64>,
    /// The same since the process began.
    pub hit_ratio_since_start: Option<f64>,
}

/// The API as the proxy sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Upstream {
    /// It answered when it was last asked.
    pub healthy: bool,
    /// It took every secret.
    pub credentials_ok: bool,
    /// Attempts per second, over the last ten.
    pub per_second: f64,
    /// How long it took to answer, in the last minute.
    pub latency: Latency,
    /// Attempts by how they ended, of the last ten minutes.
    pub answers: Vec<Ended>,
}

/// A secret key, of which only a name is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Credential {
    /// The environment it serves.
    pub environment: String,
    /// The first eight hexadecimal digits of its SHA-256.
    pub fingerprint: String,
    /// Since it was read.
    pub age_seconds: f64,
    /// Whether upstream took it last, or it is the only one.
    pub in_use: bool,
}

/// Where budgets are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// `memory` or `redis`.
    pub kind: String,
    /// It is out of reach, and this replica goes on with its share of each budget.
    pub partitioned: bool,
    /// Replicas that share it, as far as this one knows.
    pub replicas: u32,
    /// Pages are cut off from those of other replicas.
    pub pages_partitioned: bool,
}

/// The last time the configuration was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// It is in use.
    pub ok: bool,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Why it is not.
    pub errors: Vec<String>,
    /// Keys that say something else than what is in force, which only a restart changes.
    pub needs_restart: Vec<String>,
}

/// How a budget stands, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is enough.
    Open,
    /// Less than a tenth is left.
    Low,
    /// Nothing is left.
    Spent,
    /// Upstream said 429.
    Shut,
}

impl State {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Low => "low",
            Self::Spent => "spent",
            Self::Shut => "shut",
        }
    }

    /// A mark of another form for each, for who does not see its colour.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Open => "✓",
            Self::Low => "▲",
            Self::Spent => "■",
            Self::Shut => "✗",
        }
    }

    /// How bad that is; `None` where it is good.
    pub fn level(self) -> Option<Level> {
        match self {
            Self::Open => None,
            Self::Low => Some(Level::Warning),
            Self::Spent | Self::Shut => Some(Level::Grave),
        }
    }
}

impl Budget {
    /// How it stands.
    pub fn state(&self) -> State {
        if self.gate_seconds > 0.0 {
            State::Shut
        } else if self.remaining == 0 {
            State::Spent
        } else if u64::from(self.remaining) * 10 < u64::from(self.limit) {
            State::Low
        } else {
            State::Open
        }
    }

    /// How much is left, 0 to 1.
    pub fn share(&self) -> f64 {
        f64::from(self.remaining.min(self.limit)) / f64::from(self.limit.max(1))
    }

    fn notice(&self, whose: &str) -> Option<Notice> {
        let waiting = match (self.waiting, self.oldest_wait_seconds) {
            (0, _) => String::new(),
            (waiting, None) => format!("; {} wait", count(waiting)),
            (waiting, Some(oldest)) => format!("; {} wait, the first for {}", count(waiting), span(oldest)),
        };
        let text = match self.state() {
            State::Open => return None,
            State::Low => format!(
                "{whose}: {} of {} requests left",
                count(self.remaining.into()),
                count(self.limit.into())
            ),
            State::Spent => {
                format!("{whose}: budget spent, next slot in {}{waiting}", span(self.next_slot_seconds))
            }
            State::Shut => {
                format!("{whose}: shut for {} after a 429 of the API{waiting}", span(self.gate_seconds))
            }
        };
        Some(Notice { level: self.state().level()?, text })
    }
}

/// How much a [`Notice`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Callers are refused, or soon will be.
    Grave,
    /// It should be looked at.
    Warning,
}

/// What an operator should know at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub level: Level,
    /// One line.
    pub text: String,
}

impl Figures {
    /// What is not as it should be, the gravest first.
    pub fn notices(&self) -> Vec<Notice> {
        let grave = |text: &str| Notice { level: Level::Grave, text: text.to_owned() };
        let warning = |text: &str| Notice { level: Level::Warning, text: text.to_owned() };
        let mut all = Vec::new();
        if !self.upstream.credentials_ok {
            all.push(grave("The API refuses a secret key (401): put a valid one in its place"));
        }
        if !self.upstream.healthy {
            all.push(grave("The API did not answer the last request"));
        }
        all.extend(self.failing());
        all.extend(self.environments.iter().filter_map(|budget| budget.notice(&budget.name)));
        all.extend(self.egress.notice("Our address, all environments together"));
        if !self.ready {
            all.push(warning("Draining: it is about to stop, no new traffic should come"));
        }
        if self.store.partitioned {
            all.push(warning(
                "The store is out of reach: this replica goes on with its share of each budget",
            ));
        }
        if self.store.pages_partitioned {
            all.push(warning("Pages are cut off from those of other replicas: only fresh ones are served"));
        }
        if !self.reload.ok {
            all.push(warning("The last reload failed: the configuration before it stays in force"));
        }
        if !self.reload.needs_restart.is_empty() {
            all.push(warning("Parts of the configuration take effect with a restart only"));
        }
        all.sort_by_key(|notice| notice.level);
        all
    }

    /// Whether more than a few callers get errors of the server's kind.
    fn failing(&self) -> Option<Notice> {
        let count = |ended: &Ended| ended.last_minute;
        let all: u64 = self.traffic.answers.iter().map(count).sum();
        let failed = self.traffic.answers.iter().filter(|ended| ended.end.starts_with('5'));
        let failed: u64 = failed.map(count).sum();
        let many = failed >= 5 && failed * 20 >= all;
        let text = || {
            let share = percent(Some(failed as f64 / all as f64));
            format!("{share} of the last minute's answers were errors (5xx)")
        };
        many.then(|| Notice { level: Level::Grave, text: text() })
    }

    /// The state of things in a few words.
    pub fn verdict(&self) -> String {
        match self.notices().len() {
            0 => "All is well".to_owned(),
            1 => "One thing needs a look".to_owned(),
            more => format!("{more} things need a look"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_the_gravest_first() {
        let budget =
            |name: &str, remaining| Budget { name: name.into(), limit: 100, remaining, ..Budget::default() };
        let mut figures = Figures {
            ready: true,
            environments: vec![budget("a", 10), budget("b", 9)],
            egress: budget("egress", 100),
            upstream: Upstream { healthy: true, credentials_ok: true, ..Upstream::default() },
            reload: Reload { ok: true, ..Reload::default() },
            ..Figures::default()
        };
        let told = |figures: &Figures| -> Vec<String> {
            figures.notices().into_iter().map(|notice| notice.text).collect()
        };
        assert_eq!(told(&figures), ["b: 9 of 100 requests left"]);
        assert_eq!(figures.verdict(), "One thing needs a look");
        let ended = |end: &str, last_minute| Ended { end: end.into(), last_minute, last_ten_minutes: 0 };
        figures.traffic.answers = vec![ended("200", 96), ended("502", 4)];
        assert_eq!(figures.notices().len(), 1, "a few errors are no reason to get up");
        figures.traffic.answers.push(ended("504", 3));
        assert_eq!(told(&figures)[0], "6 % of the last minute's answers were errors (5xx)");
        figures.traffic.answers.clear();
        figures.environments[0] =
            Budget { next_slot_seconds: 41.0, waiting: 3, oldest_wait_seconds: Some(2.14), ..budget("a", 0) };
        figures.environments[1].gate_seconds = 0.2;
        figures.ready = false;
        assert_eq!(
            told(&figures),
            [
                "a: budget spent, next slot in 41 s; 3 wait, the first for 2.2 s",
                "b: shut for 0.2 s after a 429 of the API",
                "Draining: it is about to stop, no new traffic should come",
            ]
        );
    }
}
