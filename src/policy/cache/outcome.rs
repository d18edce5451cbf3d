//! What a fill came to, and for whom it is.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Response, StatusCode};

use crate::body::ResponseBody;
use crate::domain::freshness;
use crate::rejection::Rejection;
use crate::store::pages::{Page, Varied};

/// An answer that is no page: passed to all who asked, not kept.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Request fields it varies by.
    pub(super) varies: Box<[Varied]>,
}

/// Who had a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Upstream.
    Upstream,
    /// The store that replicas share.
    Store,
    /// Upstream, asked by another replica for this one too.
    Replica,
}

/// A page as a fill brought it.
#[derive(Debug, Clone)]
pub(super) struct Filled {
    pub(super) page: Arc<Page>,
    pub(super) stored: bool,
    /// Upstream said that it has not changed.
    pub(super) validated: bool,
    pub(super) source: Source,
}

/// What a fill came to, as everybody sees it.
#[derive(Debug, Clone)]
pub(super) enum Common {
    Page(Filled),
    Other(Arc<Other>),
    /// The leader has the answer, and nobody else may.
    Unshared,
    Failed(Rejection),
}

impl Common {
    /// Whether it answers everybody who asks for the page.
    pub(super) fn is_for_all(&self) -> bool {
        match self {
            Self::Page(filled) => filled.page.varies.is_empty(),
            Self::Other(other) => other.varies.is_empty(),
            Self::Unshared | Self::Failed(_) => false,
        }
    }
}

/// What a fill came to for one caller.
pub(super) enum Outcome {
    Page(Filled),
    Other(Arc<Other>),
    /// An answer of its own, as it streams.
    Own(Response<ResponseBody>),
    Failed(Rejection),
}

impl Outcome {
    /// The status with which upstream says that it failed.
    pub(super) fn server_error(&self) -> Option<StatusCode> {
        let status = match self {
            Self::Other(other) => other.status,
            Self::Own(response) => response.status(),
            Self::Page(_) | Self::Failed(_) => return None,
        };
        status.is_server_error().then_some(status)
    }
}

/// Whether all who asked may have an answer that is no page. What fails fails for all, so that a trouble of upstream's is not
/// made greater.
pub(super) fn is_for_others(response: &Response<ResponseBody>) -> bool {
    let status = response.status();
    let fails = !is_final(status) && !is_about_request(status);
    status != StatusCode::OK
        && (fails || is_final(status) && freshness::may_pass_to_others(response.headers()))
}

/// Whether upstream's answer stands for the page from now on, rather than being a trouble that passes, or one with the request.
pub(super) fn is_final(status: StatusCode) -> bool {
    !status.is_server_error()
        && status != StatusCode::TOO_MANY_REQUESTS
        && status != StatusCode::REQUEST_TIMEOUT
        && !is_about_request(status)
}

/// Whether upstream does not take the request as it is, for what is not in the key may be: fields that are too long for it.
fn is_about_request(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::URI_TOO_LONG
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    )
}
