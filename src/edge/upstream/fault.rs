//! What went wrong, in the words of RFC 9209.

use std::error::Error;
use std::io;

use rustix::io::Errno;
use rustls::CertificateError;

use super::{BROKE, interim};
use crate::body::{BodyError, UploadFault};
use crate::rejection::{Rejection, UpstreamFault};

/// A connection could not be made.
pub(super) fn of_io(error: &io::Error) -> UpstreamFault {
    if error.raw_os_error().map(Errno::from_raw_os_error).is_some_and(is_shortage) {
        return UpstreamFault::OutOfConnections;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => UpstreamFault::ConnectionRefused,
        io::ErrorKind::TimedOut => UpstreamFault::ConnectionTimeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => UpstreamFault::Unavailable,
        _ => BROKE,
    }
}

/// It is this machine that has no more: descriptors, memory, or ports to connect from.
fn is_shortage(error: Errno) -> bool {
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL].contains(&error)
}

/// A TLS handshake failed.
pub(super) fn of_tls(error: &io::Error) -> UpstreamFault {
    use rustls::Error;
    let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return of_io(error);
    };
    match inner {
        Error::InvalidCertificate(error) => UpstreamFault::TlsCertificate(of_certificate(error)),
        Error::AlertReceived(alert) => {
            UpstreamFault::TlsAlert(u8::from(*alert), alert.as_str().unwrap_or("unknown"))
        }
        Error::InvalidMessage(_) => UpstreamFault::TlsProtocol("what it sent is not TLS"),
        Error::PeerIncompatible(_) => UpstreamFault::TlsProtocol("no version or cipher suite in common"),
        Error::NoApplicationProtocol => UpstreamFault::TlsProtocol("no application protocol in common"),
        _ => UpstreamFault::TlsProtocol("the handshake failed"),
    }
}

fn of_certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not valid yet"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "certificate is for another name"
        }
        // An issuer of a known name and another key is as unknown as any other.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "certificate is from an unknown issuer"
        }
        CertificateError::Revoked => "certificate is revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate is not for servers"
        }
        CertificateError::BadEncoding => "certificate cannot be read",
        _ => "certificate cannot be verified",
    }
}

/// An exchange over a connection failed.
pub(super) fn of_hyper(error: &hyper::Error) -> UpstreamFault {
    if error.is_parse_too_large() {
        return UpstreamFault::HeadTooLarge;
    }
    let too_many = cause::<io::Error>(error).is_some_and(|error| error.kind() == interim::TOO_MANY);
    let no_http2 = cause::<h2::Error>(error).is_some_and(is_no_http2);
    if error.is_parse() || error.is_parse_status() || no_http2 || too_many {
        return UpstreamFault::HttpProtocol;
    }
    if error.is_timeout() {
        return UpstreamFault::ResponseTimeout;
    }
    BROKE
}

/// Our own side found what came to break the protocol.
fn is_no_http2(error: &h2::Error) -> bool {
    error.is_library() && !error.is_io()
}

/// The first cause of a kind, wherever it stands in the chain.
fn cause<E: Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        source = error.source();
    }
    None
}

/// Upstream says that it has not touched the request: a stream it refused (RFC 9113 §8.7), or one above the last that its
/// GOAWAY names (§6.8).
pub(super) fn is_unprocessed(error: &hyper::Error) -> bool {
    cause::<h2::Error>(error).is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let gone = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        error.is_remote() && (refused || gone)
    })
}

/// It was the caller's body that broke.
pub(super) fn of_caller(error: &hyper::Error) -> Option<Rejection> {
    cause::<BodyError>(error).map(|body| UploadFault::of(body).into())
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
