//! How the stand-in counts: four kinds of limiter over one quota, pure in `now`.
//!
//! The API's own limiter is the trailing log. The other three are what such an API might be replaced by, so that a caller
//! can be held against each.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::str::FromStr;
use std::time::Duration;

use crate::domain::quota::Quota;
use crate::time::Timestamp;

/// How requests are counted against a quota. A refused request is never counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// An exact log of the last window: what the API does.
    #[default]
    Trailing,
    /// Fixed windows at multiples of their length on the process' clock.
    Aligned,
    /// Fixed windows, each opened by the first request after the one before has ended.
    Lazy,
    /// A token bucket: `requests` deep, refilled evenly over the window.
    Bucket,
}

impl FromStr for Algorithm {
    type Err = String;

    /// Reads `trailing`, `aligned`, `lazy` or `bucket`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "trailing" => Ok(Self::Trailing),
            "aligned" => Ok(Self::Aligned),
            "lazy" => Ok(Self::Lazy),
            "bucket" => Ok(Self::Bucket),
            other => {
                Err(format!("{other:?} is no algorithm: trailing, aligned, lazy and bucket are the choices"))
            }
        }
    }
}

/// Reads a quota written as requests per window: `100/600s`, `1000/10s`, `100/10m`.
///
/// # Errors
/// A sentence that says what to write instead.
pub fn parse_quota(text: &str) -> Result<Quota, String> {
    let fault = |what: &str| format!("{text:?} is no quota: {what}; write requests/window, e.g. 100/600s");
    let (requests, window) = text.split_once('/').ok_or_else(|| fault("it holds no /"))?;
    let requests: u32 = requests.trim().parse().map_err(|_| fault("the requests are no whole number"))?;
    let window = humantime::parse_duration(window.trim()).map_err(|_| fault("the window is no duration"))?;
    if requests == 0 || window.is_zero() {
        return Err(fault("both parts must be above zero"));
    }
    Ok(Quota { requests, window })
}

/// What a limiter says to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// It may pass, and was counted.
    pub allowed: bool,
    /// What is left after it.
    pub remaining: u32,
    /// How long until more is left.
    pub reset: Duration,
}

/// One caller's count.
#[derive(Debug)]
pub struct Counter(Count);

#[derive(Debug)]
enum Count {
    Trailing(VecDeque<Timestamp>),
    /// The window's start and how many it holds; `lazy` ones start at a request.
    Fixed {
        lazy: bool,
        start: Option<Timestamp>,
        count: u32,
    },
    /// When the bucket will be full again.
    Bucket(Timestamp),
}

impl Counter {
    /// Nothing was counted yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Trailing => Count::Trailing(VecDeque::new()),
            Algorithm::Aligned => Count::Fixed { lazy: false, start: None, count: 0 },
            Algorithm::Lazy => Count::Fixed { lazy: true, start: None, count: 0 },
            Algorithm::Bucket => Count::Bucket(Timestamp::default()),
        })
    }

    /// Counts one request at `now` if the quota still holds.
    pub fn take(&mut self, now: Timestamp, quota: Quota) -> Verdict {
        match &mut self.0 {
            Count::Trailing(log) => trailing(log, now, quota),
            Count::Fixed { lazy, start, count } => {
                let opened = match *start {
                    Some(start) if now.since(start) < quota.window => start,
                    _ => {
                        *count = 0;
                        if *lazy { now } else { aligned(now, quota.window) }
                    }
                };
                *start = Some(opened);
                let allowed = *count < quota.requests;
                *count += u32::from(allowed);
                let reset = quota.window.saturating_sub(now.since(opened));
                Verdict { allowed, remaining: quota.requests - *count, reset }
            }
            Count::Bucket(full_at) => bucket(full_at, now, quota),
        }
    }
}

fn trailing(log: &mut VecDeque<Timestamp>, now: Timestamp, quota: Quota) -> Verdict {
    while log.front().is_some_and(|oldest| now.since(*oldest) >= quota.window) {
        log.pop_front();
    }
    let limit = quota.requests as usize;
    let allowed = log.len() < limit;
    if allowed {
        log.push_back(now);
    }
    let reset = log.front().map_or(quota.window, |oldest| quota.window.saturating_sub(now.since(*oldest)));
    Verdict { allowed, remaining: u32::try_from(limit - log.len()).unwrap_or(0), reset }
}

/// The latest multiple of `window` that isn't after `now`.
fn aligned(now: Timestamp, window: Duration) -> Timestamp {
    let window = nanos(window);
    Timestamp(now.0 - now.0 % window)
}

/// GCRA: the bucket is `full_at - now` away from full, in units of one token's refill.
fn bucket(full_at: &mut Timestamp, now: Timestamp, quota: Quota) -> Verdict {
    let token = (nanos(quota.window) / u64::from(quota.requests.max(1))).max(1);
    let depth = token.saturating_mul(u64::from(quota.requests));
    let mut used = full_at.0.saturating_sub(now.0);
    let allowed = used.saturating_add(token) <= depth;
    if allowed {
        used += token;
        *full_at = Timestamp(now.0.saturating_add(used));
    }
    let remaining = depth.saturating_sub(used) / token;
    let next = used.saturating_sub(depth.saturating_sub((remaining + 1).saturating_mul(token)));
    Verdict {
        allowed,
        remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        reset: Duration::from_nanos(next),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A counter for each caller, for so many callers at most.
#[derive(Debug)]
pub(crate) struct Limiters<K> {
    quota: Quota,
    algorithm: Algorithm,
    counters: HashMap<K, (Timestamp, Counter)>,
}

/// More callers than this, and the one idle for longest is forgotten.
const MAX_CALLERS: usize = 10_000;

impl<K: Hash + Eq + Clone> Limiters<K> {
    pub(crate) fn new(quota: Quota, algorithm: Algorithm) -> Self {
        Self { quota, algorithm, counters: HashMap::new() }
    }

    pub(crate) fn quota(&self) -> Quota {
        self.quota
    }

    /// Counts one request of `caller`.
    pub(crate) fn take(&mut self, caller: &K, now: Timestamp) -> Verdict {
        if !self.counters.contains_key(caller) {
            self.make_room(now);
        }
        let (last, counter) =
            self.counters.entry(caller.clone()).or_insert_with(|| (now, Counter::new(self.algorithm)));
        *last = now;
        counter.take(now, self.quota)
    }

    fn make_room(&mut self, now: Timestamp) {
        if self.counters.len() < MAX_CALLERS {
            return;
        }
        let window = self.quota.window;
        self.counters.retain(|_, (last, _)| now.since(*last) < window);
        while self.counters.len() >= MAX_CALLERS {
            let idle = self.counters.iter().min_by_key(|(_, (last, _))| *last).map(|(key, _)| key.clone());
            let Some(idle) = idle else { return };
            self.counters.remove(&idle);
        }
    }
}

#[cfg(test)]
mod tests;
