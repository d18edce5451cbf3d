//! `[clients]`

use std::time::Duration;

use crate::config::reader::{DAY, Reader};
use crate::config::{Clients, raw};
use crate::domain::quota::Quota;

pub(super) fn compile(mut at: Reader<'_, '_>, raw: raw::Clients) -> Clients {
    let minute = Duration::from_secs(60);
    Clients {
        limit: at.quota("limit", raw.limit).unwrap_or(Quota::PER_IP),
        ipv6_prefix: at.count("ipv6_prefix", raw.ipv6_prefix, 64, 16..=64),
        max_tracked: at.count("max_tracked", raw.max_tracked, 1_000_000, 1..=100_000_000),
        max_retry_after: at.duration("max_retry_after", raw.max_retry_after, minute, Duration::ZERO..=DAY),
    }
}
