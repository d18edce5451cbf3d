//! The values that labels may take: lists, so that no series can grow out of what a caller sends.

use std::borrow::Cow;

/// Labels of one series, as the encoder takes them.
pub(super) type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// One label whose values are all known.
pub trait Label: Copy + std::fmt::Debug + 'static {
    /// The label's name.
    const KEY: &'static str;
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The value as exposed.
    fn as_str(self) -> &'static str;

    /// Position in [`Label::ALL`].
    fn index(self) -> usize;

    /// The label with this value.
    fn pair(self) -> (&'static str, Cow<'static, str>) {
        (Self::KEY, Cow::Borrowed(self.as_str()))
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $key:literal: $($(#[$value_doc:meta])* $value:ident = $text:literal,)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$value_doc])* $value,)+
        }

        impl Label for $name {
            const KEY: &'static str = $key;
            const ALL: &'static [Self] = &[$(Self::$value,)+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// What a policy said.
    Outcome, "outcome":
    /// Go on.
    Allowed = "allowed",
    /// No further.
    Refused = "refused",
}

label! {
    /// Who said it.
    Policy, "policy":
    /// The token bucket of the caller's IP.
    Client = "client",
    /// The environment's budget.
    Environment = "environment",
    /// The budget of our own IP.
    Egress = "egress",
    /// The API itself, by a 429.
    Upstream = "upstream",
    /// The publishable key.
    Authenticate = "authenticate",
    /// What that key may do.
    Authorize = "authorize",
    /// The cap on requests in flight.
    Admit = "admit",
}

label! {
    /// Where the answer to a list request came from.
    CacheResult, "result":
    /// A fresh page.
    Hit = "hit",
    /// Upstream, for this request.
    Miss = "miss",
    /// A page past its freshness.
    Stale = "stale",
    /// Upstream, for a request that was already on its way.
    Coalesced = "coalesced",
    /// Upstream, because this request may not be answered from a page.
    Bypass = "bypass",
    /// Upstream, before anyone asked.
    Prefetch = "prefetch",
}

label! {
    /// What became of asking the shared store for a page.
    SharedPage, "result":
    /// It is there.
    Hit = "hit",
    /// It is not.
    Miss = "miss",
    /// What is there was not made by a replica of ours, or is damaged.
    Broken = "broken",
    /// There was no answer.
    Lost = "lost",
}

label! {
    /// Why a request was sent to upstream once more.
    RetryReason, "reason":
    /// A 429.
    RateLimited = "rate_limited",
    /// No connection was made.
    NotConnected = "not_connected",
    /// The connection broke before an answer.
    ConnectionLost = "connection_lost",
    /// No answer within the attempt's timeout.
    Timeout = "timeout",
    /// The secret was refused and the next one was tried.
    Credentials = "credentials",
}

label! {
    /// Why upstream gave no answer.
    UpstreamFailure, "error_type":
    /// No connection was made.
    Connect = "connect",
    /// The TLS handshake failed.
    Tls = "tls",
    /// No answer in time.
    Timeout = "timeout",
    /// The connection broke.
    ConnectionLost = "connection_lost",
    /// What came was no HTTP.
    Protocol = "protocol",
    /// The caller left first.
    Cancelled = "cancelled",
}

label! {
    /// Why a caller's connection was closed before its request was read.
    RefusedConnection, "reason":
    /// `max_connections` is reached.
    TooMany = "max_connections",
    /// `max_connections_per_ip` is reached.
    TooManyFromIp = "max_connections_per_ip",
    /// No, or no valid, PROXY header, or none in time.
    ProxyProtocol = "proxy_protocol",
    /// Where a PROXY header is expected, and the peer is no trusted proxy.
    UntrustedProxy = "untrusted_proxy",
    /// The TLS handshake failed or took too long.
    Tls = "tls_handshake",
    /// The head of a request took too long.
    HeaderTimeout = "header_timeout",
    /// What came was no HTTP, or too large for the parser.
    Parse = "parse",
    /// Frames of HTTP/2 that bring nothing, and too many of them.
    Flood = "flood",
}

label! {
    /// How a reload ended.
    Reload, "result":
    /// The new configuration is in use.
    Ok = "ok",
    /// The old one still is.
    Failed = "failed",
}

label! {
    /// A request's method; what HTTP doesn't name is `_OTHER`, as OpenTelemetry has it.
    Verb, "http_request_method":
    /// `GET`
    Get = "GET",
    /// `HEAD`
    Head = "HEAD",
    /// `POST`
    Post = "POST",
    /// `PUT`
    Put = "PUT",
    /// `PATCH`
    Patch = "PATCH",
    /// `DELETE`
    Delete = "DELETE",
    /// `OPTIONS`
    Options = "OPTIONS",
    /// Any other.
    Other = "_OTHER",
}

impl Verb {
    /// The value for `method`.
    pub fn of(method: &http::Method) -> Self {
        match method.as_str() {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_the_place_in_the_list() {
        fn check<L: Label>() {
            assert!(L::ALL.iter().enumerate().all(|(at, value)| value.index() == at), "{}", L::KEY);
        }
        check::<Outcome>();
        check::<Policy>();
        check::<CacheResult>();
        check::<SharedPage>();
        check::<RetryReason>();
        check::<UpstreamFailure>();
        check::<RefusedConnection>();
        check::<Reload>();
        check::<Verb>();
    }

    #[test]
    fn a_method_nobody_knows_makes_no_series_of_its_own() {
        assert_eq!(Verb::of(&http::Method::PATCH).as_str(), "PATCH");
        assert_eq!(Verb::of(&http::Method::from_bytes(b"XYZZY").expect("a token")), Verb::Other);
    }
}
