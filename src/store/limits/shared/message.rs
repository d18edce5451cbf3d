//! What is said in an exchange, in the order in which `exchange.lua` reads and writes it.

use redis::Value;

use super::Nanos;
use super::ledger::{Account, News};
use crate::domain::budget::{Foreign, Standing};
use crate::domain::quota::{Algorithm, Plan, RingPlan};
use crate::store::limits::Draw;

/// Microseconds, as the server tells time.
const MICRO: Nanos = 1000;

/// The words of a message.
#[derive(Debug, Default)]
pub(super) struct Words(pub(super) Vec<Vec<u8>>);

impl Words {
    pub(super) fn word(&mut self, text: &str) {
        self.0.push(text.as_bytes().to_vec());
    }

    pub(super) fn number(&mut self, number: impl ToString) {
        self.0.push(number.to_string().into_bytes());
    }

    pub(super) fn time(&mut self, at: Nanos) {
        self.number(at / MICRO);
    }

    /// How a budget is counted, and for how long a replica that is not heard of keeps its part of it: in any case, and
    /// while upstream counts requests that nobody here sent.
    pub(super) fn plan(&mut self, plan: Plan, [hold, keep]: [Nanos; 2]) {
        let ring = RingPlan::of(plan.quota);
        let window = super::nanos(plan.quota.window);
        let requests = plan.quota.requests.max(1);
        self.number(requests);
        self.time(super::nanos(ring.sub_window));
        match plan.algorithm {
            Algorithm::Window => self.number(ring.sub_windows()),
            Algorithm::TokenBucket => self.number(0),
        }
        self.number(window.div_ceil(u64::from(requests)) as f64 / MICRO as f64);
        self.time(window);
        self.time(crate::domain::budget::slow_start(plan));
        self.time(hold);
        self.time(keep);
    }

    /// Entries of (when, how many).
    pub(super) fn spent(&mut self, spent: &[(Nanos, u32)]) {
        self.number(spent.len());
        for (at, n) in spent {
            self.time(*at);
            self.number(n);
        }
    }

    /// How requests ended; `now` is the moment of telling.
    pub(super) fn news(&mut self, now: Nanos, news: &News) {
        self.number(news.moves.len());
        for (from, to) in &news.moves {
            self.time(*from);
            self.time(*to);
        }
        self.number(news.refunds.len());
        news.refunds.iter().for_each(|at| self.time(*at));
        match news.shut {
            Some((at, wait)) => self.time(super::nanos(wait).saturating_sub(now.saturating_sub(at))),
            None => self.number(-1),
        }
        self.number(news.settled.len());
        news.settled.iter().for_each(|at| self.time(*at));
        self.number(news.observed.len());
        for (observation, charged, _) in &news.observed {
            self.number(observation.remaining);
            self.time(super::nanos(observation.reset));
            self.time(*charged);
        }
    }

    /// What is to be drawn, from budgets by their place in the message.
    pub(super) fn draw(&mut self, places: [usize; 2], draw: &Draw) {
        for number in [places[0] + 1, places[1] + 1, draw.ahead as usize, draw.held_back as usize] {
            self.number(number);
        }
    }
}

/// What comes back.
#[derive(Debug)]
pub(super) enum Reply {
    /// It was too old to be heeded.
    Late,
    /// The server does not know what it once knew.
    Lost,
    /// It was done.
    Done(Done),
}

/// How budgets stand, and what became of each draw.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) epoch: String,
    pub(super) accounts: Vec<Account>,
    pub(super) draws: Vec<Drawn>,
}

/// What became of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drawn {
    /// It is charged.
    Yes,
    /// One of its budgets refuses.
    No,
    /// Only what other replicas were promised is in the way.
    Promised,
    /// Nothing is drawn until all replicas have told what they know.
    Waiting,
}

/// Reads a reply about budgets with these sub-windows, and the server's time in it; `None` for one that makes no sense.
pub(super) fn read(value: Value, sub_windows: &[Nanos], draws: usize) -> Option<(Nanos, Reply)> {
    let Value::Array(words) = value else { return None };
    let mut words = words.into_iter().map(|word| match word {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    });
    let mut words = Reader(&mut words);
    let kind = words.word()?;
    let now = words.time()?;
    let reply = match kind.as_str() {
        "late" => Reply::Late,
        "lost" => Reply::Lost,
        "ok" => Reply::Done(Done {
            epoch: words.word()?,
            accounts: sub_windows.iter().map(|length| account(&mut words, *length)).collect::<Option<_>>()?,
            draws: (0..draws).map(|_| drawn(&words.word()?)).collect::<Option<_>>()?,
        }),
        _ => return None,
    };
    Some((now, reply))
}

fn account(words: &mut Reader<'_>, sub_window: Nanos) -> Option<Account> {
    let (version, used) = (words.number()?, words.number()?);
    let (promise, share) = (words.real()?, words.real()?);
    let replicas = u32::try_from(words.number()?).ok()?;
    let in_flight = words.number()?;
    let full_at = words.time()?;
    let gate = (words.time()?, words.number()?);
    let amount = words.number()?;
    let (lapses, probed, expires) = (words.time()?, words.time()?, words.time()?);
    let (before, heard) = (words.number()?, words.time()?);
    let probed = (probed > 0).then_some(probed);
    let foreign = Foreign { amount, lapses, probed, expires, before, heard };
    let applied = words.number()?;
    let whole = words.number()? == 1;
    let entries = words.number()?;
    let mut spent = Vec::new();
    for _ in 0..entries {
        // At the end of its sub-window: it lapses rather later than sooner.
        let end = (words.number()? + 1).checked_mul(sub_window)? - 1;
        spent.push((end, u32::try_from(words.number()?).ok()?));
    }
    spent.sort_unstable();
    Some(Account {
        version,
        used,
        promise,
        share,
        replicas,
        standing: Standing { gate, foreign, in_flight, full_at },
        applied,
        whole: whole.then_some(spent),
    })
}

fn drawn(word: &str) -> Option<Drawn> {
    Some(match word {
        "0" => Drawn::Yes,
        "1" | "2" | "3" => Drawn::No,
        "5" | "6" | "7" => Drawn::Promised,
        "wait" => Drawn::Waiting,
        _ => return None,
    })
}

struct Reader<'w>(&'w mut dyn Iterator<Item = Option<String>>);

impl Reader<'_> {
    fn word(&mut self) -> Option<String> {
        self.0.next().flatten()
    }

    fn number(&mut self) -> Option<u64> {
        self.word()?.parse().ok()
    }

    fn real(&mut self) -> Option<f64> {
        self.word()?.parse().ok().filter(|number: &f64| number.is_finite())
    }

    fn time(&mut self) -> Option<Nanos> {
        self.number()?.checked_mul(MICRO)
    }
}
