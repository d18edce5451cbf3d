//! How long requests took: histograms that are found without building a label.
//!
//! A family of the metrics crate is looked up by an owned label set: three strings to allocate and hash for each
//! request. So each handle is kept in a table of our own, by route template (or environment) and then by method and
//! status, of which a route sees a handful. Each thread has a table of its own, so that reading it takes no lock.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use http::Method;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use thread_local::ThreadLocal;

use crate::telemetry::labels::{Label, Labels, UpstreamFailure, Verb};
use crate::telemetry::tally::{BOUNDS, Times};

/// The route of a request that matched none.
pub const UNMATCHED: &str = "unmatched";

/// `http_server_request_duration_seconds`: from a request's head to the end of its response's head.
#[derive(Debug)]
pub struct ServerDurations(Durations);

impl ServerDurations {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self(Durations::register(
            registry,
            "http_server_request_duration",
            "Time from a request's head until its answer has been sent, by route template",
            "http_route",
        ))
    }

    /// Counts a request that was answered with `status` after `elapsed`. `route` is a template or [`UNMATCHED`], never
    /// what the caller sent.
    pub fn record(&self, method: &Method, status: u16, route: &str, elapsed: Duration) {
        self.0.record(Verb::of(method), End::Status(status), route, elapsed);
    }

    /// All of them together.
    pub(super) fn read(&self) -> Times {
        self.0.read()
    }
}

/// `http_client_request_duration_seconds`: one attempt towards upstream.
#[derive(Debug)]
pub struct ClientDurations(Durations);

impl ClientDurations {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self(Durations::register(
            registry,
            "http_client_request_duration",
            "Time from sending a request upstream to the head of its answer, each attempt by itself",
            "environment",
        ))
    }

    /// Counts an attempt for `environment` that ended after `elapsed` with a status, or without one.
    pub fn record(
        &self,
        method: &Method,
        end: Result<u16, UpstreamFailure>,
        environment: &str,
        elapsed: Duration,
    ) {
        let end = end.map_or_else(End::Failure, End::Status);
        self.0.record(Verb::of(method), end, environment, elapsed);
    }

    /// All of them together.
    pub(super) fn read(&self) -> Times {
        self.0.read()
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Status(u16),
    Failure(UpstreamFailure),
}

/// Histograms by subject (the name the table is searched by), method and end.
#[derive(Debug)]
struct Durations {
    subject: &'static str,
    family: Family<Labels, Histogram, fn() -> Histogram>,
    known: ThreadLocal<RefCell<Known>>,
    /// The family alone, to be read without all others.
    own: Registry,
}

type Known = HashMap<Box<str>, Vec<(Verb, End, Histogram)>, foldhash::fast::RandomState>;

impl Durations {
    fn register(registry: &mut Registry, name: &str, help: &str, subject: &'static str) -> Self {
        let family = Family::new_with_constructor((|| Histogram::new(BOUNDS)) as fn() -> Histogram);
        registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        let mut own = Registry::default();
        own.register(name, help, family.clone());
        Self { subject, family, known: ThreadLocal::new(), own }
    }

    fn read(&self) -> Times {
        let mut text = String::new();
        // A string takes everything.
        encode_registry(&mut text, &self.own).map_or_else(|_| Times::default(), |()| Times::read(&text))
    }

    fn record(&self, verb: Verb, end: End, subject: &str, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let mut known = self.known.get_or_default().borrow_mut();
        let series = known.get(subject).map(Vec::as_slice).unwrap_or_default();
        match series.iter().find(|(v, e, _)| (*v, *e) == (verb, end)) {
            Some((_, _, histogram)) => histogram.observe(seconds),
            None => self.learn(&mut known, verb, end, subject).observe(seconds),
        }
    }

    #[cold]
    fn learn<'k>(&self, known: &'k mut Known, verb: Verb, end: End, subject: &str) -> &'k Histogram {
        let end_label = match end {
            End::Status(status) => ("http_response_status_code", Cow::Owned(status.to_string())),
            End::Failure(failure) => failure.pair(),
        };
        let labels = vec![verb.pair(), end_label, (self.subject, Cow::Owned(subject.to_owned()))];
        // Another thread gets the same handle.
        let histogram = self.family.get_or_create_owned(&labels);
        let series = known.entry(subject.into()).or_default();
        &series.push_mut((verb, end, histogram)).2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).expect("a String takes everything");
        text
    }

    #[test]
    fn each_combination_is_one_series() {
        let mut registry = Registry::default();
        let durations = ServerDurations::register(&mut registry);
        for _ in 0..3 {
            durations.record(&Method::GET, 200, "/providers", Duration::from_micros(700));
        }
        durations.record(&Method::GET, 404, "/providers", Duration::from_millis(7));
        durations.record(&Method::GET, 200, UNMATCHED, Duration::from_secs(20));

        let text = text(&registry);
        let labels = r#"http_request_method="GET",http_response_status_code="200",http_route="/providers""#;
        let sample = |name: &str| format!("http_server_request_duration_seconds_{name}");
        assert!(text.contains(&format!("{}{{{labels}}} 3\n", sample("count"))), "{text}");
        assert!(text.contains(&format!("{}{{le=\"0.0005\",{labels}}} 0\n", sample("bucket"))), "{text}");
        assert!(text.contains(&format!("{}{{le=\"0.001\",{labels}}} 3\n", sample("bucket"))), "{text}");
        assert_eq!(text.matches(&sample("count")).count(), 3);
    }

    #[test]
    fn an_attempt_has_a_status_or_an_error_type() {
        let mut registry = Registry::default();
        let durations = ClientDurations::register(&mut registry);
        durations.record(&Method::GET, Ok(200), "live", Duration::from_millis(20));
        durations.record(&Method::GET, Err(UpstreamFailure::Timeout), "live", Duration::from_secs(10));

        let text = text(&registry);
        let ends = [r#"http_response_status_code="200""#, r#"error_type="timeout""#];
        for end in ends {
            let labels = format!(r#"http_request_method="GET",{end},environment="live""#);
            assert!(text.contains(&format!("_count{{{labels}}} 1\n")), "{text}");
        }
    }
}
