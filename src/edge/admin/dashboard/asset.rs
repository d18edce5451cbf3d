//! The page's own files: part of the binary, kept by browsers and asked about each time.

use aws_lc_rs::digest;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};

/// One of them.
pub(super) struct Asset {
    kind: &'static str,
    text: &'static str,
}

pub(super) static STYLE: Asset =
    Asset { kind: "text/css; charset=utf-8", text: include_str!("dashboard.css") };
pub(super) static SCRIPT: Asset =
    Asset { kind: "text/javascript; charset=utf-8", text: include_str!("dashboard.js") };

impl Asset {
    /// The file, or that it has not changed.
    pub(super) fn answer(&self, headers: &HeaderMap) -> Response {
        let digest = digest::digest(&digest::SHA256, self.text.as_bytes());
        let tag: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let tag = format!("\"{tag}\"");
        let same = headers.get_all(IF_NONE_MATCH).iter().any(|known| known.as_bytes() == tag.as_bytes());
        let fields = [(ETAG, tag.as_str()), (CACHE_CONTROL, "no-cache"), (CONTENT_TYPE, self.kind)];
        match same {
            true => (StatusCode::NOT_MODIFIED, fields).into_response(),
            false => (fields, self.text).into_response(),
        }
    }
}
