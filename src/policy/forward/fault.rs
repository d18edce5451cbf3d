//! Attempts that bring no answer, and what they are called.

use crate::exchange::{Delivery, Failure};
use crate::rejection::{Rejection, UpstreamFault};
use crate::telemetry::labels::UpstreamFailure;

/// Why there is no answer.
#[derive(Debug)]
pub struct TransportError {
    /// What failed.
    pub fault: UpstreamFault,
    /// Whether upstream may have seen the request.
    pub delivery: Delivery,
    /// What the library said: for the log, never for the caller.
    pub detail: String,
    /// The caller's body broke, not upstream.
    pub caller: Option<Rejection>,
}

/// There was no answer in time, for which it was the caller's turn, or upstream's.
pub(super) fn too_late(callers_turn: bool) -> Box<TransportError> {
    Box::new(TransportError {
        fault: UpstreamFault::ResponseTimeout,
        delivery: Delivery::Possible,
        detail: "no answer in time".to_owned(),
        caller: callers_turn.then_some(Rejection::RequestTimeout),
    })
}

/// What is told of an attempt that upstream may have seen.
pub(super) fn possible(rejection: Rejection) -> Failure {
    Failure { rejection, delivery: Delivery::Possible, body: None }
}

/// As metrics and spans have it.
pub(super) fn failure(fault: UpstreamFault) -> UpstreamFailure {
    match fault {
        UpstreamFault::Dns
        | UpstreamFault::ConnectionRefused
        | UpstreamFault::ConnectionTimeout
        | UpstreamFault::Unavailable
        | UpstreamFault::OutOfConnections => UpstreamFailure::Connect,
        UpstreamFault::TlsCertificate(_) | UpstreamFault::TlsAlert(..) | UpstreamFault::TlsProtocol(_) => {
            UpstreamFailure::Tls
        }
        UpstreamFault::ConnectionTerminated => UpstreamFailure::ConnectionLost,
        UpstreamFault::ResponseTimeout => UpstreamFailure::Timeout,
        UpstreamFault::HttpProtocol | UpstreamFault::HeadTooLarge | UpstreamFault::UnexpectedCoding => {
            UpstreamFailure::Protocol
        }
    }
}
