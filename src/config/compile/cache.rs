//! `[cache]`

use std::time::Duration;

use crate::config::fault::Wrong;
use crate::config::reader::{DAY, Reader};
use crate::config::value::Size;
use crate::config::{Cache, raw};

const MIB: u64 = 1024 * 1024;
/// A page may take this share of the cache at most: with less, one page displaces all others.
const PAGES: u64 = 50;

pub(super) fn compile(mut at: Reader<'_, '_>, raw: raw::Cache) -> Cache {
    let secs = Duration::from_secs;
    let capacity = at.size("capacity", raw.capacity, 256 * MIB, MIB * MIB);
    let max_page = at.size("max_page", raw.max_page, MIB, 1024 * MIB);
    let most = capacity / PAGES;
    if max_page > most {
        let most = if most > MIB { most / MIB * MIB } else { most };
        at.refuse(
            "max_page",
            Wrong::new(
                format!("{} is more than a fiftieth of capacity, {}", Size(max_page), Size(capacity)),
                format!("write at most {}, or raise capacity to {}", Size(most), Size(max_page * PAGES)),
            ),
        );
    }
    Cache {
        enabled: at.value("enabled", raw.enabled, true),
        capacity,
        max_page: usize::try_from(max_page).unwrap_or(usize::MAX),
        ttl: at.duration("ttl", raw.ttl, secs(5), Duration::ZERO..=DAY),
        stale_if_error: at.duration(
            "stale_if_error",
            raw.stale_if_error,
            secs(600),
            Duration::ZERO..=DAY * 7,
        ),
    }
}
