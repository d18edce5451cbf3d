//! What `Cache-Status` says (RFC 9211).

use http::header::HeaderValue;

use crate::domain::field;

/// How a list page was come by: `Cache-Status` (RFC 9211).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheStatus {
    /// From the cache, with so many seconds of freshness left (negative: stale), and why it was served stale.
    Hit {
        /// Seconds.
        ttl: i64,
        /// `budget`, `gate`, `revalidating`.
        detail: Option<&'static str>,
    },
    /// Asked upstream; whether the page was stored, and whether this caller only joined another's request.
    Miss {
        /// It is in the cache now.
        stored: bool,
        /// Another caller's request served this one too.
        collapsed: bool,
        /// What was kept.
        kept: Kept,
        /// Upstream said that it has not changed.
        validated: bool,
    },
    /// A stale page after upstream failed.
    StaleOnError {
        /// What upstream answered, where it did.
        status: Option<u16>,
    },
    /// The cache is off or does not keep this route.
    Bypass,
    /// Only a kept page was asked for: neither hit nor forwarded.
    NotKept,
}

/// The page there was when upstream was asked (RFC 9211 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// There was none.
    Nothing,
    /// A fresh one, which the caller did not want.
    Fresh,
    /// One that was not fresh any more.
    Stale,
}

impl CacheStatus {
    /// The field's value.
    pub fn field(&self) -> Option<HeaderValue> {
        self.with_parts(field::of)
    }

    /// The field's value as a text.
    pub fn text(&self) -> String {
        self.with_parts(|parts| parts.concat())
    }

    fn with_parts<T>(&self, with: impl FnOnce(&[&str]) -> T) -> T {
        let mut digits = itoa::Buffer::new();
        match self {
            Self::Hit { ttl, detail } => {
                let (label, detail) = detail.map_or(("", ""), |detail| ("; detail=", detail));
                with(&["metorial-proxy; hit; ttl=", digits.format(*ttl), label, detail])
            }
            Self::Miss { stored, collapsed, kept, validated } => {
                let reason = match (*kept, *validated) {
                    (Kept::Nothing, _) => "uri-miss",
                    (Kept::Fresh, true) => "request; fwd-status=304",
                    (Kept::Fresh, false) => "request",
                    (Kept::Stale, true) => "stale; fwd-status=304",
                    (Kept::Stale, false) => "stale",
                };
                let stored = if *stored { "; stored" } else { "" };
                let collapsed = if *collapsed { "; collapsed" } else { "" };
                with(&["metorial-proxy; fwd=", reason, stored, collapsed])
            }
            Self::StaleOnError { status } => match status {
                Some(status) => with(&[
                    "metorial-proxy; fwd=stale; fwd-status=",
                    digits.format(*status),
                    "; detail=error",
                ]),
                None => with(&["metorial-proxy; fwd=stale; detail=error"]),
            },
            Self::Bypass => with(&["metorial-proxy; fwd=bypass"]),
            Self::NotKept => with(&["metorial-proxy; detail=only-if-cached"]),
        }
    }
}
