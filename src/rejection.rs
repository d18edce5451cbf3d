//! Why a request was not served, and what that is in HTTP.
//!
//! Refusals are data: a layer returns a [`Rejection`], and one exhaustive match gives it a status, a code and a sentence.
//! The body serves the official SDKs (`__typename`, `code`, `message`, `hint`) and readers of RFC 9457 (`type`, `title`,
//! `detail`) alike.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};

use crate::body::{ResponseBody, UploadFault};
use crate::domain::target::Ambiguous;
use crate::time::whole_seconds;

mod upstream;

pub use upstream::UpstreamFault;

/// `Proxy-Status` (RFC 9209)
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Its values, with the error types of RFC 9209 §2.3.
const DENIED: HeaderValue = HeaderValue::from_static("metorial-proxy; error=http_request_denied");
const MISREAD: HeaderValue = HeaderValue::from_static("metorial-proxy; error=http_request_error");
const FAILED: HeaderValue = HeaderValue::from_static("metorial-proxy; error=proxy_internal_error");
const WITHHELD: HeaderValue = HeaderValue::from_static("metorial-proxy; error=proxy_internal_response");
const MISCONFIGURED: HeaderValue =
    HeaderValue::from_static("metorial-proxy; error=proxy_configuration_error");
const LATE: HeaderValue = HeaderValue::from_static("metorial-proxy; error=http_response_timeout");

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Fields of a refusal, at most.
pub const FIELDS: usize = 4;

/// Which limit was met: the names callers see in `violated-policies` and operators in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Per client IP.
    Client,
    /// The environment's budget.
    Environment,
    /// What our own IP may send.
    Egress,
    /// Upstream said 429 although our count allowed it.
    Upstream,
}

impl Limit {
    /// The policy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Environment => "environment",
            Self::Egress => "egress",
            Self::Upstream => "upstream",
        }
    }
}

/// A request that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// It could be read in two ways.
    BadRequest(Cow<'static, str>),
    /// It reads one way, only not where we are.
    OutsideBasePath,
    /// No key, an unknown key, a secret key.
    Unauthorized(&'static str),
    /// No rule allows it; what would.
    Forbidden {
        /// What is refused.
        message: String,
        /// The rule that would open it.
        hint: Option<String>,
    },
    /// A method that this proxy does not serve.
    MethodNotAllowed,
    /// It expects something else than leave to send its body.
    ExpectationFailed,
    /// The caller was too slow with its body.
    RequestTimeout,
    /// The body is larger than so many bytes.
    PayloadTooLarge(u64),
    /// The target is longer than so many bytes.
    UriTooLong(usize),
    /// The fields take more than so many bytes, or are too many.
    HeadersTooLarge(usize),
    /// A limit is met.
    RateLimited {
        /// Which.
        limit: Limit,
        /// Until a request may be admitted.
        wait: Duration,
    },
    /// A fault of ours.
    Internal,
    /// Upstream failed.
    Upstream(UpstreamFault),
    /// Upstream refused our secret key.
    UpstreamCredentials,
    /// Upstream's answer held our secret key.
    SecretGuard,
    /// Too much in flight.
    Overloaded,
    /// The request's deadline passed.
    DeadlineExceeded,
    /// Only a kept page was asked for, and there is none that may be used (RFC 9111 §5.2.1.7).
    NotKept,
}

impl From<UploadFault> for Rejection {
    fn from(fault: UploadFault) -> Self {
        match fault {
            UploadFault::TooLarge(limit) => Self::PayloadTooLarge(limit),
            UploadFault::Silent => Self::RequestTimeout,
            UploadFault::Broken => Self::BadRequest("the body ended before its length".into()),
        }
    }
}

struct Described<'a> {
    status: StatusCode,
    code: &'static str,
    message: Cow<'a, str>,
    hint: Option<&'a str>,
    proxy_status: HeaderValue,
}

impl Rejection {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.describe().status
    }

    /// The code in the body.
    pub fn code(&self) -> &'static str {
        self.describe().code
    }

    fn describe(&self) -> Described<'_> {
        let described = |status, code, message: Cow<'static, str>, proxy_status| Described {
            status,
            code,
            message,
            hint: None,
            proxy_status,
        };
        match self {
            Self::BadRequest(message) => Described {
                hint: Some("Send the request in one unambiguous form."),
                ..described(StatusCode::BAD_REQUEST, "bad_request", message.clone(), MISREAD)
            },
            Self::OutsideBasePath => Described {
                hint: Some("Put this proxy's base path before the path."),
                ..described(
                    StatusCode::BAD_REQUEST,
                    "bad_request",
                    Ambiguous::OutsideBasePath.to_string().into(),
                    MISREAD,
                )
            },
            Self::Unauthorized(message) => Described {
                hint: Some("Send Authorization: Bearer metorial_pk_… with a publishable key of this proxy."),
                ..described(StatusCode::UNAUTHORIZED, "unauthorized", Cow::Borrowed(*message), DENIED)
            },
            Self::Forbidden { message, hint } => Described {
                status: StatusCode::FORBIDDEN,
                code: "forbidden",
                message: Cow::Borrowed(message.as_str()),
                hint: hint.as_deref(),
                proxy_status: DENIED,
            },
            Self::MethodNotAllowed => described(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "This proxy does not serve this method.".into(),
                DENIED,
            ),
            Self::ExpectationFailed => described(
                StatusCode::EXPECTATION_FAILED,
                "expectation_failed",
                "The Expect field asks for something else than 100-continue.".into(),
                MISREAD,
            ),
            Self::RequestTimeout => described(
                StatusCode::REQUEST_TIMEOUT,
                "timeout",
                "The request's body did not arrive in time.".into(),
                MISREAD,
            ),
            Self::PayloadTooLarge(limit) => described(
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload_too_large",
                format!("The request's body is larger than {limit} bytes.").into(),
                DENIED,
            ),
            Self::UriTooLong(limit) => described(
                StatusCode::URI_TOO_LONG,
                "uri_too_long",
                format!("The request's target is longer than {limit} bytes.").into(),
                DENIED,
            ),
            Self::HeadersTooLarge(limit) => described(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                format!("The request's header fields take more than {limit} bytes, or are too many.").into(),
                DENIED,
            ),
            Self::RateLimited { limit, .. } => Described {
                hint: Some("Wait as long as Retry-After or the RateLimit field says."),
                ..described(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_exceeded",
                    match limit {
                        Limit::Client => "Too many requests from this address.",
                        Limit::Environment => "The request budget of this environment is spent.",
                        Limit::Egress => "The request budget of this proxy's address is spent.",
                        Limit::Upstream => "The Metorial API asked this proxy to wait.",
                    }
                    .into(),
                    DENIED,
                )
            },
            Self::Internal => described(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "The proxy failed; its log has the details under this request id.".into(),
                FAILED,
            ),
            Self::Upstream(fault) => {
                let (status, code) = fault.status();
                described(status, code, fault.sentence().into(), fault.proxy_status())
            }
            Self::UpstreamCredentials => Described {
                hint: Some(
                    "This is for the operator of the proxy: its secret key was refused. Nothing is wrong with yours.",
                ),
                ..described(
                    StatusCode::BAD_GATEWAY,
                    "upstream_credentials",
                    "The Metorial API refused this proxy's own key.".into(),
                    MISCONFIGURED,
                )
            },
            Self::SecretGuard => described(
                StatusCode::BAD_GATEWAY,
                "secret_guard",
                "The answer held a secret of this proxy and was withheld.".into(),
                WITHHELD,
            ),
            Self::Overloaded => described(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "This proxy has as many requests in flight as it may.".into(),
                DENIED,
            ),
            Self::NotKept => described(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                "Only a kept page was asked for, and there is none that may be used.".into(),
                DENIED,
            ),
            Self::DeadlineExceeded => described(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                "There was no answer within this proxy's time limit.".into(),
                LATE,
            ),
        }
    }

    /// Its `Proxy-Status` (RFC 9209).
    pub fn proxy_status(&self) -> HeaderValue {
        self.describe().proxy_status
    }

    /// How long to wait before asking again, where that is known.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { wait, .. } => Some(*wait),
            Self::Overloaded | Self::Upstream(UpstreamFault::OutOfConnections) => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        }
    }

    /// The answer. `Retry-After` is left out where the wait is longer than `max_retry_after`: SDKs sleep it silently.
    ///
    /// Its [`FIELDS`] go into `room`, which has none.
    pub fn to_response(
        &self,
        request_id: &str,
        max_retry_after: Duration,
        room: HeaderMap,
    ) -> Response<ResponseBody> {
        let described = self.describe();
        let retry_after = self.wait().map(|wait| whole_seconds(wait).max(1));
        let json = self.body(&described, retry_after, request_id);
        let mut response = Response::new(ResponseBody::full(json));
        *response.status_mut() = described.status;
        *response.headers_mut() = room;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM);
        headers.insert(PROXY_STATUS, described.proxy_status);
        if let Some(seconds) = retry_after.filter(|seconds| *seconds <= whole_seconds(max_retry_after)) {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self {
            Self::Unauthorized(_) => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::MethodNotAllowed => {
                headers
                    .insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
            }
            _ => {}
        }
        response
    }

    /// The body. Written by hand, because refusals are what a flood is made of, and most of it is known beforehand.
    fn body(&self, described: &Described<'_>, retry_after: Option<u64>, request_id: &str) -> Box<[u8]> {
        static KNOWN: [OnceLock<Vec<u8>>; 4] = [const { OnceLock::new() }; 4];
        let mut json = Vec::with_capacity(512);
        match self {
            // All but the wait and the id are the same each time.
            Self::RateLimited { limit, .. } => {
                let beginning = || {
                    let mut json = Vec::new();
                    described.begin(&mut json);
                    member(&mut json, ",\"violated-policies\":[", limit.name());
                    json.push(b']');
                    json
                };
                json.extend_from_slice(KNOWN[*limit as usize].get_or_init(beginning));
            }
            _ => described.begin(&mut json),
        }
        if let Some(seconds) = retry_after {
            json.extend_from_slice(b",\"retry_after\":");
            json.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
        }
        member(&mut json, ",\"request_id\":", request_id);
        json.push(b'}');
        // A body of just its size needs no count of its own beside it.
        json.into_boxed_slice()
    }
}

impl Described<'_> {
    /// Writes what is the same whoever asked.
    fn begin(&self, json: &mut Vec<u8>) {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "https://iana.org/assignments/http-problem-types#quota-exceeded",
            StatusCode::SERVICE_UNAVAILABLE => {
                "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
            }
            _ => "about:blank",
        };
        member(json, "{\"type\":", kind);
        member(json, ",\"title\":", self.status.canonical_reason().unwrap_or("Error"));
        json.extend_from_slice(b",\"status\":");
        json.extend_from_slice(self.status.as_str().as_bytes());
        member(json, ",\"detail\":", &self.message);
        json.extend_from_slice(b",\"__typename\":\"error\",\"ok\":false");
        member(json, ",\"code\":", self.code);
        member(json, ",\"message\":", &self.message);
        if let Some(hint) = self.hint {
            member(json, ",\"hint\":", hint);
        }
    }
}

/// A member of a JSON object, from what stands before its text on.
fn member(json: &mut Vec<u8>, name: &str, text: &str) {
    json.extend_from_slice(name.as_bytes());
    push_text(json, text);
}

pin_project_lite::pin_project! {
    /// What a layer that decides at once answers with: its refusal, or what the layer inside says. No box.
    #[project = GateProjection]
    #[expect(missing_docs, reason = "the macro takes no comment on a field of a variant")]
    pub enum Gate<F> {
        /// Not served.
        Refused {
            rejection: Option<Rejection>
        },
        /// Passed on.
        Passed {
            #[pin]
            future: F
        },
    }
}

impl<F> Gate<F> {
    /// Not served.
    pub fn refused(rejection: Rejection) -> Self {
        Self::Refused { rejection: Some(rejection) }
    }

    /// Passed on.
    pub fn passed(future: F) -> Self {
        Self::Passed { future }
    }
}

impl<F, T> Future for Gate<F>
where
    F: Future<Output = Result<T, Rejection>>,
{
    type Output = Result<T, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            // Polled again after it was ready, which no caller does, it would say that we failed.
            GateProjection::Refused { rejection } => {
                Poll::Ready(Err(rejection.take().unwrap_or(Rejection::Internal)))
            }
            GateProjection::Passed { future } => future.poll(cx),
        }
    }
}

/// A JSON string.
fn push_text(json: &mut Vec<u8>, text: &str) {
    // Every byte is looked at, without a branch: the compiler then looks at many at once.
    let special = |byte: u8| (byte < b' ') | (byte == b'"') | (byte == b'\\');
    if !text.bytes().fold(false, |found, byte| found | special(byte)) {
        json.push(b'"');
        json.extend_from_slice(text.as_bytes());
        json.push(b'"');
    } else if let Ok(text) = serde_json::to_vec(text) {
        json.extend_from_slice(&text);
    }
}

#[cfg(test)]
mod tests;
