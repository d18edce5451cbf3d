//! Answers before they meet a socket, and the fields that the API puts on them.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, ORIGIN, SERVER};
use http::{Method, StatusCode};
use serde::Serialize;

use crate::domain::quota::Quota;
use crate::mock::error::ApiError;
use crate::mock::limit::Verdict;
use crate::mock::query::Query;
use crate::time;

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Answer {
    pub(crate) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).map(Bytes::from).unwrap_or_default();
        let mut answer = Self { body, ..Self::new(status) };
        answer.headers.insert(CONTENT_TYPE, JSON);
        answer
    }

    pub(crate) fn error(error: &ApiError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::json(status, error)
    }

    /// Another status, and the API's error for it as the body.
    pub(crate) fn replace(&mut self, status: StatusCode) {
        self.status = status;
        self.body = Self::error(&ApiError::of_status(status.as_u16())).body;
        self.headers.insert(CONTENT_TYPE, JSON);
    }

    fn text(status: StatusCode, kind: &'static str, body: &'static str) -> Self {
        let mut answer = Self { body: Bytes::from_static(body.as_bytes()), ..Self::new(status) };
        answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        answer
    }

    /// What the API answers before it asks who calls.
    pub(crate) fn before_authentication(method: &Method, path: &str, headers: &HeaderMap) -> Option<Self> {
        match path {
            "/ping" => Some(Self::text(StatusCode::OK, "text/plain;charset=UTF-8", "OK")),
            "/" => {
                let mut answer = Self::new(StatusCode::MOVED_PERMANENTLY);
                answer.headers.insert(LOCATION, HeaderValue::from_static("https://metorial.com/api"));
                Some(answer)
            }
            _ if *method == Method::OPTIONS => {
                let mut answer = Self::new(StatusCode::NO_CONTENT);
                answer.cors(headers);
                answer.powered_by();
                Some(answer)
            }
            _ => None,
        }
    }

    /// The edge's refusal: it knows nothing of the API's shapes.
    pub(crate) fn edge() -> Self {
        const BODY: &str = "<!DOCTYPE html>\n<html><head><title>429 Too Many Requests</title></head>\n\
                            <body><center><h1>429 Too Many Requests</h1></center><hr><center>edge</center></body></html>\n";
        let mut answer = Self::text(StatusCode::TOO_MANY_REQUESTS, "text/html; charset=UTF-8", BODY);
        answer.headers.insert(SERVER, HeaderValue::from_static("edge"));
        answer
    }

    /// `RateLimit-*`; the reset is a date in whole seconds, not a wait.
    pub(crate) fn rate_limit(&mut self, quota: Quota, verdict: &Verdict) {
        let reset = time::unix_now() + time::whole_seconds(verdict.reset);
        for (name, value) in [
            ("ratelimit-limit", u64::from(quota.requests)),
            ("ratelimit-remaining", u64::from(verdict.remaining)),
            ("ratelimit-reset", reset),
        ] {
            self.headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
        }
    }

    /// What every routed answer carries.
    pub(crate) fn routed(&mut self, version: &'static str) {
        let id: String = std::iter::repeat_with(fastrand::alphanumeric).take(20).collect();
        if let Ok(id) = HeaderValue::try_from(format!("req_{id}")) {
            self.headers.insert("metorial-req-id", id);
        }
        self.headers.insert("metorial-version", HeaderValue::from_static(version));
        self.powered_by();
    }

    pub(crate) fn powered_by(&mut self) {
        self.headers.insert("x-powered-by", HeaderValue::from_static("Metorial"));
    }

    /// The API's CORS fields: the origin reflected, without `Vary`, and nothing exposed.
    pub(crate) fn cors(&mut self, request: &HeaderMap) {
        let origin = request.get(ORIGIN).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
        self.headers.insert("access-control-allow-origin", origin);
        for (name, value) in [
            ("access-control-allow-methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS"),
            (
                "access-control-allow-headers",
                "Content-Type, Authorization, Cookies, metorial-version, metorial-instance-id, metorial-organization-id, \
                 metorial-consumer-profile-id, metorial-consumer-session-client-secret, baggage, sentry-trace, \
                 metorial-client",
            ),
            ("access-control-max-age", "604800"),
            ("access-control-allow-credentials", "true"),
        ] {
            self.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
}

/// The version that answers, as it is displayed: the header's, else the parameter's, else the default.
pub(crate) fn version(headers: &HeaderMap, query: &Query) -> &'static str {
    let asked = headers.get("metorial-version").and_then(|value| value.to_str().ok());
    match asked.or_else(|| query.get("api-version")).unwrap_or("") {
        "magnetar" | "2026-01-01" | "2026-01-01-magnetar" | "mt_2026_01_01_magnetar" => "2026-01-01",
        text if text.starts_with("2026-02-01") => "2026-01-01",
        "consumer" | "2026-04-01" | "2026-04-01-consumer" | "mt_2026_04_01_consumer" => "2026-04-01",
        // Unknown versions are ignored; the default is the dashboard's.
        _ => "2025-01-01",
    }
}
