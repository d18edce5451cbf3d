//! What was counted so far: two of these, some time apart, make a rate, a share or a percentile.
//!
//! Only what is counted anyway is read, so a request costs the same whether somebody looks or not.

use std::collections::BTreeMap;

use super::labels::{CacheResult, Label, Policy};

/// Upper bounds of the buckets in seconds: OpenTelemetry's advice for HTTP durations, and three finer ones, because a cached
/// page leaves in less than 5 ms.
pub const BOUNDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Everything counted since the process began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests of callers.
    pub server: Times,
    /// Attempts towards upstream.
    pub client: Times,
    /// Requests refused, by [`Policy`].
    pub refused: [u64; Policy::ALL.len()],
    /// List requests, by [`CacheResult`].
    pub cache: [u64; CacheResult::ALL.len()],
    /// Requests in flight at this moment; no count, the present figure.
    pub in_flight: u64,
}

/// How long requests took, and how they ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    /// How many ended within each of [`BOUNDS`] and not within the one before; the last ones took longer than all.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// How many ended with each status, or without one for each reason.
    pub ends: BTreeMap<Box<str>, u64>,
}

impl Tally {
    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            server: self.server.since(&earlier.server),
            client: self.client.since(&earlier.client),
            refused: less(&self.refused, &earlier.refused),
            cache: less(&self.cache, &earlier.cache),
            in_flight: self.in_flight,
        }
    }

    /// Share of list requests answered without a request of their own to upstream; `None` where there was none.
    pub fn hit_ratio(&self) -> Option<f64> {
        let count =
            |results: &[CacheResult]| results.iter().map(|result| self.cache[result.index()]).sum::<u64>();
        let spared = count(&[CacheResult::Hit, CacheResult::Stale, CacheResult::Coalesced]);
        let all = spared + count(&[CacheResult::Miss, CacheResult::Bypass]);
        // Counts beyond 2⁵³ may lose their last digit.
        (all > 0).then(|| spared as f64 / all as f64)
    }
}

impl Times {
    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The time within which `share` (0 to 1) of them ended, evenly spread within its bucket; the highest bound where it lies
    /// beyond, and `None` where there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = share * count as f64;
        let (mut below, mut from) = (0, 0.0);
        for (bucket, to) in self.buckets.iter().zip(BOUNDS) {
            if *bucket > 0 && (below + bucket) as f64 >= rank {
                let part = (rank - below as f64) / *bucket as f64;
                return Some(from + (to - from) * part.clamp(0.0, 1.0));
            }
            (below, from) = (below + bucket, to);
        }
        BOUNDS.last().copied()
    }

    fn since(&self, earlier: &Self) -> Self {
        let ends = self.ends.iter().map(|(end, count)| {
            let before = earlier.ends.get(end).copied().unwrap_or(0);
            (end.clone(), count.saturating_sub(before))
        });
        Self {
            buckets: less(&self.buckets, &earlier.buckets),
            ends: ends.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Reads the samples of a histogram: the metrics crate tells its buckets in no other way.
    pub(super) fn read(text: &str) -> Self {
        let mut times = Self::default();
        // Buckets are cumulative: what a bucket holds alone is told when all series are summed.
        let mut within = [0u64; BOUNDS.len() + 1];
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<u64>() else { continue };
            let Some((name, labels)) = series.split_once('{') else { continue };
            if name.ends_with("_bucket") {
                let bound = quoted(labels, "le=\"").and_then(|bound| bound.parse::<f64>().ok());
                let at = BOUNDS.iter().position(|known| Some(*known) == bound);
                within[at.unwrap_or(BOUNDS.len())] += value;
            } else if name.ends_with("_count") {
                let end = quoted(labels, "http_response_status_code=\"")
                    .or_else(|| quoted(labels, "error_type=\""))
                    .unwrap_or_default();
                *times.ends.entry(end.into()).or_default() += value;
            }
        }
        let mut below = 0;
        for (bucket, within) in times.buckets.iter_mut().zip(within) {
            *bucket = within.saturating_sub(below);
            below = within;
        }
        times
    }
}

/// The value after `key`. What we look for stands before every label whose value could hold a quote.
fn quoted<'a>(labels: &'a str, key: &str) -> Option<&'a str> {
    let (_, after) = labels.split_once(key)?;
    after.split('"').next()
}

fn less<const N: usize>(later: &[u64; N], earlier: &[u64; N]) -> [u64; N] {
    std::array::from_fn(|at| later[at].saturating_sub(earlier[at]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;

    use super::*;
    use crate::telemetry::labels::{Outcome, UpstreamFailure};
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn what_is_read_is_what_was_counted() {
        let metrics = Metrics::new();
        let before = metrics.tally();
        assert_eq!((before.server.count(), before.server.quantile(0.5)), (0, None));
        for micros in [400, 700, 700, 30_000] {
            metrics.server.record(&Method::GET, 200, "/a", Duration::from_micros(micros));
        }
        metrics.server.record(&Method::GET, 503, "/b", Duration::from_secs(60));
        metrics.client.record(&Method::GET, Err(UpstreamFailure::Timeout), "li\"ve}", Duration::from_secs(1));
        metrics.client.record(&Method::GET, Ok(429), "li\"ve}", Duration::from_secs(1));
        metrics.decision(Policy::Client, Outcome::Refused);
        metrics.decision(Policy::Client, Outcome::Allowed);
        metrics.cache(CacheResult::Hit);
        let held = metrics.in_flight.hold();
        let tally = metrics.tally();
        drop(held);
        let mut buckets = [0; BOUNDS.len() + 1];
        (buckets[0], buckets[1], buckets[6], buckets[17]) = (1, 2, 1, 1);
        assert_eq!(tally.server.buckets, buckets);
        assert_eq!(tally.server.ends, [("200".into(), 4), ("503".into(), 1)].into());
        assert_eq!(tally.client.ends, [("429".into(), 1), ("timeout".into(), 1)].into());
        assert_eq!((tally.refused[Policy::Client.index()], tally.refused.iter().sum::<u64>()), (1, 1));
        assert_eq!((tally.hit_ratio(), tally.in_flight), (Some(1.0), 1));

        metrics.server.record(&Method::GET, 200, "/a", Duration::from_micros(400));
        let since = metrics.tally().since(&tally);
        assert_eq!(
            (since.server.count(), since.refused.iter().sum::<u64>(), since.hit_ratio()),
            (1, 0, None)
        );
        assert_eq!(since.server.ends, [("200".into(), 1)].into());
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let mut times = Times::default();
        // Ten within 1 ms to 2.5 ms, ten within 50 ms to 75 ms.
        (times.buckets[2], times.buckets[7]) = (10, 10);
        assert_eq!(times.quantile(0.5), Some(0.0025));
        assert!(times.quantile(0.25).is_some_and(|p25| (p25 - 0.00175).abs() < 1e-9));
        assert!(times.quantile(0.9).is_some_and(|p90| (p90 - 0.07).abs() < 1e-9));
        times.buckets[17] = 1;
        assert_eq!(times.quantile(1.0), Some(10.0), "longer than is told apart");
    }
}
