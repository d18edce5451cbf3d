//! What went wrong, in the words of RFC 9209.

use std::error::Error;
use std::io;

use super::BROKE;
use crate::body::{BodyError, UploadFault};
use crate::rejection::{Rejection, UpstreamFault};

/// A connection could not be made.
pub(super) fn of_io(error: &io::Error) -> UpstreamFault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => UpstreamFault::ConnectionRefused,
        io::ErrorKind::TimedOut => UpstreamFault::ConnectionTimeout,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable => UpstreamFault::Unavailable,
        _ => BROKE,
    }
}

/// A TLS handshake failed.
pub(super) fn of_tls(error: &io::Error) -> UpstreamFault {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => UpstreamFault::TlsCertificate,
        Some(_) => UpstreamFault::TlsProtocol,
        None => of_io(error),
    }
}

/// An exchange over a connection failed.
pub(super) fn of_hyper(error: &hyper::Error) -> UpstreamFault {
    if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
        return UpstreamFault::HttpProtocol;
    }
    if error.is_timeout() {
        return UpstreamFault::ResponseTimeout;
    }
    BROKE
}

/// Upstream says that it has not touched the request: a stream it refused (RFC 9113 §8.7), or one above the last that its
/// GOAWAY names (§6.8).
pub(super) fn is_unprocessed(error: &hyper::Error) -> bool {
    let mut source: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            let gone = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            return error.is_remote() && (refused || gone);
        }
        source = error.source();
    }
    false
}

/// It was the caller's body that broke.
pub(super) fn of_caller(error: &hyper::Error) -> Option<Rejection> {
    let mut source: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = source {
        if let Some(body) = error.downcast_ref::<BodyError>() {
            return Some(UploadFault::of(body).into());
        }
        source = error.source();
    }
    None
}

/// An error and all its causes, for the log.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
