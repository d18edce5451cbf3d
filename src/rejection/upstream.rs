//! How upstream fails a request, in the words of RFC 9209.

use http::{HeaderValue, StatusCode};

use crate::domain::field;

/// How upstream failed: the error types of RFC 9209 §2.3 that we can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamFault {
    /// Its name could not be resolved.
    Dns,
    /// It refused the connection.
    ConnectionRefused,
    /// No connection in time.
    ConnectionTimeout,
    /// The connection broke before the response was whole.
    ConnectionTerminated,
    /// No route to it.
    Unavailable,
    /// This machine has no descriptors or ports left for another connection.
    OutOfConnections,
    /// Its certificate is not valid for its name, and why.
    TlsCertificate(&'static str),
    /// It ended the handshake with this alert (its number and name).
    TlsAlert(u8, &'static str),
    /// TLS failed otherwise, and why.
    TlsProtocol(&'static str),
    /// What it sent is not HTTP.
    HttpProtocol,
    /// The head of its response is larger than any of the API's.
    HeadTooLarge,
    /// No head of a response in time.
    ResponseTimeout,
    /// A content coding nobody asked for: it cannot be searched for the secret.
    UnexpectedCoding,
}

impl UpstreamFault {
    /// The error type of RFC 9209 §2.3.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns_error",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTimeout => "connection_timeout",
            Self::ConnectionTerminated => "connection_terminated",
            Self::Unavailable => "destination_ip_unroutable",
            Self::OutOfConnections => "connection_limit_reached",
            Self::TlsCertificate(_) => "tls_certificate_error",
            Self::TlsAlert(..) => "tls_alert_received",
            Self::TlsProtocol(_) => "tls_protocol_error",
            Self::HttpProtocol => "http_protocol_error",
            Self::HeadTooLarge => "http_response_header_section_size",
            Self::ResponseTimeout => "http_response_timeout",
            Self::UnexpectedCoding => "http_response_content_coding",
        }
    }

    /// As `Proxy-Status` tells it.
    pub(super) fn proxy_status(self) -> HeaderValue {
        let more = match self {
            Self::TlsCertificate(details) | Self::TlsProtocol(details) => format!("; details=\"{details}\""),
            Self::TlsAlert(id, message) => format!("; alert-id={id}; alert-message=\"{message}\""),
            _ => String::new(),
        };
        let value = field::of(&["metorial-proxy; error=", self.name(), &more]);
        value.unwrap_or(HeaderValue::from_static("metorial-proxy"))
    }

    /// Whether it failed before any of the request was sent.
    pub fn is_of_connecting(self) -> bool {
        match self {
            Self::Dns
            | Self::ConnectionRefused
            | Self::ConnectionTimeout
            | Self::Unavailable
            | Self::OutOfConnections
            | Self::TlsCertificate(_)
            | Self::TlsAlert(..)
            | Self::TlsProtocol(_) => true,
            Self::ConnectionTerminated
            | Self::HttpProtocol
            | Self::HeadTooLarge
            | Self::ResponseTimeout
            | Self::UnexpectedCoding => false,
        }
    }

    /// With its code.
    pub(super) fn status(self) -> (StatusCode, &'static str) {
        match self {
            Self::ConnectionTimeout | Self::ResponseTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout")
            }
            Self::OutOfConnections => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            _ => (StatusCode::BAD_GATEWAY, "upstream_error"),
        }
    }

    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Dns => "the name of the Metorial API could not be resolved",
            Self::ConnectionRefused => "the Metorial API refused the connection",
            Self::ConnectionTimeout => "the Metorial API could not be reached in time",
            Self::ConnectionTerminated => {
                "the connection to the Metorial API broke before the answer was complete"
            }
            Self::Unavailable => "there is no route to the Metorial API",
            Self::OutOfConnections => "this proxy has no room for another connection to the Metorial API",
            Self::TlsCertificate(_) => "the certificate of the Metorial API is not valid",
            Self::TlsAlert(..) | Self::TlsProtocol(_) => "TLS with the Metorial API failed",
            Self::HeadTooLarge => "the head of the Metorial API's answer is too large",
            Self::HttpProtocol => "what the Metorial API sent is not HTTP",
            Self::ResponseTimeout => "the Metorial API did not answer in time",
            Self::UnexpectedCoding => "the Metorial API used a content coding that was not asked for",
        }
    }
}
