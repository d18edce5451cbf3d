//! What `Cache-Status` says (RFC 9211).

/// How a list page was come by: `Cache-Status` (RFC 9211).
#[derive(Debug, Clone, PartialEq, Eq)]
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
        /// There was a page, and it had expired.
        expired: bool,
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
}

impl CacheStatus {
    /// The field's value.
    pub fn field(&self) -> String {
        match self {
            Self::Hit { ttl, detail } => {
                let mut digits = itoa::Buffer::new();
                let (label, detail) = detail.map_or(("", ""), |detail| ("; detail=", detail));
                ["metorial-proxy; hit; ttl=", digits.format(*ttl), label, detail].concat()
            }
            Self::Miss { stored, collapsed, expired, validated } => {
                let reason = match (*expired, *validated) {
                    (true, true) => "stale; fwd-status=304",
                    (true, false) => "stale",
                    (false, _) => "uri-miss",
                };
                let stored = if *stored { "; stored" } else { "" };
                let collapsed = if *collapsed { "; collapsed" } else { "" };
                format!("metorial-proxy; fwd={reason}{stored}{collapsed}")
            }
            Self::StaleOnError { status } => match status {
                Some(status) => format!("metorial-proxy; fwd=stale; fwd-status={status}; detail=error"),
                None => "metorial-proxy; fwd=stale; detail=error".to_owned(),
            },
            Self::Bypass => "metorial-proxy; fwd=bypass".to_owned(),
        }
    }
}
