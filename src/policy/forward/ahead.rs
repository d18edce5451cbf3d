//! What is read of a body before anything is sent of its answer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::Response;
use http_body::Body;
use http_body_util::BodyExt;

use super::fault::possible;
use super::fields;
use crate::body::{BodyError, ResponseBody, join};
use crate::exchange::Failure;
use crate::rejection::{Rejection, UpstreamFault};
use crate::time::{Instant, ready_by, this_turn};

/// A body of known length up to this is read whole before the head is sent: head and body leave in one write, and a
/// fault in it can still become a 502.
const GATHERED: u64 = 64 * 1024;

/// How long the first of a body of unknown length is waited for before the head is sent: what breaks at once can still
/// become a 502, and whoever has a head and nothing else to say is not kept from saying it.
const BEGINS: Duration = Duration::from_millis(100);

/// Reads a short body whole, and of one that is of unknown length the first; a longer one is left to come.
pub(super) async fn read_ahead(response: &mut Response<ResponseBody>, due: Instant) -> Result<(), Failure> {
    let read = match response.body().size_hint().exact() {
        Some(length) if length <= GATHERED => {
            match ready_by(due, gather(response.body_mut(), length)).await {
                Ok(gathered) => gathered.map(ResponseBody::full),
                Err(_) => return Err(possible(Rejection::Upstream(UpstreamFault::ResponseTimeout))),
            }
        }
        None if !fields::is_event_stream(response.headers()) => {
            begun(std::mem::replace(response.body_mut(), ResponseBody::empty()), due).await
        }
        _ => return Ok(()),
    };
    match read {
        Ok(body) => {
            *response.body_mut() = body;
            Ok(())
        }
        Err(BodyError::Secret) => Err(possible(Rejection::SecretGuard)),
        Err(_) => Err(possible(Rejection::Upstream(UpstreamFault::ConnectionTerminated))),
    }
}

/// A body of which some has come, or has not come yet; whether more is there, and what, is known of two pieces.
async fn begun(mut body: ResponseBody, due: Instant) -> Result<ResponseBody, BodyError> {
    let first = match ready_by(due.min(this_turn() + BEGINS), body.frame()).await {
        Ok(Some(frame)) => frame?.into_data().unwrap_or_default(),
        Ok(None) | Err(_) => return Ok(body),
    };
    let first = match body.frame().now_or_never() {
        Some(Some(frame)) => join(first, frame?.into_data().unwrap_or_default()),
        Some(None) | None => first,
    };
    Ok(body.preceded_by(first))
}

async fn gather(body: &mut ResponseBody, length: u64) -> Result<Bytes, BodyError> {
    let mut whole: Option<BytesMut> = None;
    let mut first = Bytes::new();
    while let Some(frame) = body.frame().await {
        let data = frame?.into_data().unwrap_or_default();
        match &mut whole {
            Some(whole) => whole.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let mut both = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
                both.extend_from_slice(&first);
                both.extend_from_slice(&data);
                whole = Some(both);
            }
        }
    }
    Ok(whole.map_or(first, BytesMut::freeze))
}
