//! Faults on demand: what the next requests of a route get instead of, or on top of, their answer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::operation::strip_instance;

/// What happens to the next `next` requests of `route`. Faults of one request don't add up: the oldest that matches
/// is used first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// `GET /provider-deployments`, `/path` for any method, or `*`. `{name}` stands for one segment; the query doesn't
    /// matter.
    #[serde(default = "any")]
    pub route: String,
    /// For so many requests; 1 where it isn't said.
    #[serde(default = "one")]
    pub next: u32,
    /// Answers with this status, 200 to 599. From 300 on nothing is done, and the body is the API's error for it; 429 is
    /// not counted by the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Milliseconds before the answer, beside the stand-in's own latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Cuts the connection: `true` or `"before"`, `"after-head"`.
    #[serde(default, deserialize_with = "reset", serialize_with = "reset_name")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset: Option<Reset>,
    /// Sends the whole body's length, but so many bytes of it, and closes the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<usize>,
    /// Header fields of the answer to set, or to remove (`null`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Option<String>>,
    /// Reflects the request's `Authorization` in the field `x-echo` and in the body's `echo`.
    #[serde(default)]
    pub echo: bool,
}

/// When a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// After the request was handled, with a TCP reset instead of an answer.
    Before,
    /// After the head and half of the body; an answer without a body is sent whole.
    AfterHead,
}

impl Default for Fault {
    /// Any route, the next request, and nothing wrong.
    fn default() -> Self {
        Self {
            route: any(),
            next: one(),
            status: None,
            delay_ms: None,
            reset: None,
            truncate: None,
            headers: BTreeMap::new(),
            echo: false,
        }
    }
}

fn any() -> String {
    "*".to_owned()
}

fn one() -> u32 {
    1
}

fn reset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reset>, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Null | serde_json::Value::Bool(false) => Ok(None),
        serde_json::Value::Bool(true) => Ok(Some(Reset::Before)),
        serde_json::Value::String(text) if text == "before" => Ok(Some(Reset::Before)),
        serde_json::Value::String(text) if text == "after-head" => Ok(Some(Reset::AfterHead)),
        _ => Err(serde::de::Error::custom("reset is true, false, \"before\" or \"after-head\"")),
    }
}

// The signature is serde's.
fn reset_name<S: Serializer>(reset: &Option<Reset>, serializer: S) -> Result<S::Ok, S::Error> {
    match reset {
        None => serializer.serialize_none(),
        Some(Reset::Before) => serializer.serialize_str("before"),
        Some(Reset::AfterHead) => serializer.serialize_str("after-head"),
    }
}

impl Fault {
    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.unwrap_or(0))
    }

    /// The status that stands instead of the handler's work.
    pub(crate) fn refusal(&self) -> Option<StatusCode> {
        self.status
            .and_then(|status| StatusCode::from_u16(status).ok())
            .filter(|status| status.as_u16() >= 300)
    }

    /// Sets and removes header fields.
    pub(crate) fn change(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            let Ok(name) = HeaderName::try_from(name) else { continue };
            match value.as_ref().and_then(|value| HeaderValue::try_from(value).ok()) {
                Some(value) => drop(headers.insert(name, value)),
                None => drop(headers.remove(name)),
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let (_, path) = split(&self.route)?;
        if path != "*" && !path.starts_with('/') {
            return Err(format!("route: {:?} is no route: write GET /path, /path or *", self.route));
        }
        if self.next == 0 {
            return Err("next: at least 1".into());
        }
        if self.status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Err("status: 200 to 599".into());
        }
        for (name, value) in &self.headers {
            HeaderName::try_from(name).map_err(|_| format!("headers: {name:?} is no field name"))?;
            if let Some(value) = value {
                HeaderValue::try_from(value)
                    .map_err(|_| format!("headers: the value of {name} is no field value"))?;
            }
        }
        Ok(())
    }

    fn matches(&self, method: &Method, path: &str) -> bool {
        let Ok((of, wanted)) = split(&self.route) else { return false };
        if of.is_some_and(|of| of != method) {
            return false;
        }
        let same = |path: &str| {
            let (mut wanted, mut given) = (wanted.split('/'), path.split('/'));
            loop {
                match (wanted.next(), given.next()) {
                    (None, None) => return true,
                    (Some(wanted), Some(given)) if wanted.starts_with('{') || wanted == given => {}
                    _ => return false,
                }
            }
        };
        wanted == "*" || same(path) || same(strip_instance(path))
    }
}

fn split(route: &str) -> Result<(Option<Method>, &str), String> {
    match route.split_once(' ') {
        None => Ok((None, route)),
        Some((method, path)) => match Method::try_from(method) {
            Ok(method) => Ok((Some(method), path.trim())),
            Err(_) => Err(format!("route: {method:?} is no method")),
        },
    }
}

/// Faults that wait for their requests, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Faults(VecDeque<Fault>);

/// More faults than this can't wait at once.
const MAX_FAULTS: usize = 1000;

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) -> Result<(), String> {
        fault.check()?;
        if self.0.len() >= MAX_FAULTS {
            return Err(format!("{MAX_FAULTS} faults are waiting already: clear them first"));
        }
        self.0.push_back(fault);
        Ok(())
    }

    /// The fault that this request gets.
    pub(crate) fn take(&mut self, method: &Method, path: &str) -> Option<Fault> {
        let at = self.0.iter().position(|fault| fault.matches(method, path))?;
        let fault = self.0.get_mut(at)?;
        fault.next -= 1;
        let taken = fault.clone();
        if taken.next == 0 {
            self.0.remove(at);
        }
        Some(taken)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn waiting(&self) -> Vec<Fault> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Fault, String> {
        let fault: Fault = serde_json::from_str(json).map_err(|error| error.to_string())?;
        fault.check().map(|()| fault)
    }

    #[test]
    fn a_fault_meets_its_route_so_many_times() {
        let mut faults = Faults::default();
        faults.add(parse(r#"{"route": "GET /sessions/{id}", "next": 2}"#).unwrap()).unwrap();
        faults.add(parse(r#"{"route": "/sessions"}"#).unwrap()).unwrap();
        assert!(faults.take(&Method::POST, "/sessions/1").is_none());
        assert!(faults.take(&Method::GET, "/sessions/1/x").is_none());
        assert!(faults.take(&Method::GET, "/sessions/1").is_some());
        assert!(faults.take(&Method::GET, "/instances/i/sessions/2").is_some());
        assert!(faults.take(&Method::GET, "/sessions/3").is_none());
        assert!(faults.take(&Method::DELETE, "/sessions").is_some());
        assert!(faults.take(&Method::DELETE, "/sessions").is_none());
        faults.add(parse("{}").unwrap()).unwrap();
        assert!(faults.take(&Method::PATCH, "/anything").is_some());
        assert!(faults.waiting().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (json, named) in [
            (r#"{"nxet": 2}"#, "nxet"),
            (r#"{"next": 0}"#, "next"),
            (r#"{"status": 99}"#, "status"),
            (r#"{"reset": "later"}"#, "reset"),
            (r#"{"route": "sessions"}"#, "route"),
            (r#"{"route": "G(T /sessions"}"#, "route"),
            (r#"{"headers": {"a b": "c"}}"#, "a b"),
            (r#"{"headers": {"a": "\n"}}"#, "headers"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.contains(named), "{json}: {error}");
        }
        for (json, reset) in [
            (r#"{"reset": true}"#, Some(Reset::Before)),
            (r#"{"reset": "before"}"#, Some(Reset::Before)),
            (r#"{"reset": "after-head"}"#, Some(Reset::AfterHead)),
            (r#"{"reset": false}"#, None),
        ] {
            assert_eq!(parse(json).map(|fault| fault.reset), Ok(reset));
        }
    }
}
