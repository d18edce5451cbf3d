//! `[cache]`

use std::time::Duration;

use crate::config::fault::Wrong;
use crate::config::reader::{DAY, Reader};
use crate::config::value::Size;
use crate::config::{Cache, LowBudget, Prefetch, raw};

const MIB: u64 = 1024 * 1024;
/// A page may take this share of the cache at most: with less, one page displaces all others.
const PAGES: u64 = 50;

pub(super) fn compile(mut at: Reader<'_, '_>, raw: raw::Cache) -> Cache {
    let secs = Duration::from_secs;
    let capacity = at.size("capacity", raw.capacity, 256 * MIB, MIB * MIB);
    let most = capacity / PAGES;
    let written = raw.max_page.is_written();
    // Where nothing is said, a small cache keeps small pages.
    let max_page = at.size("max_page", raw.max_page, MIB.min(most).max(1), 1024 * MIB);
    if written && max_page > most {
        let most = if most > MIB { most / MIB * MIB } else { most };
        at.refuse(
            "max_page",
            Wrong::new(
                format!("{} is more than a fiftieth of capacity, {}", Size(max_page), Size(capacity)),
                format!("write at most {}, or raise capacity to {}", Size(most), Size(max_page * PAGES)),
            ),
        );
    }
    let low_budget = at.table("low_budget", raw.low_budget).unwrap_or_default();
    let low_budget = low_budget_of(at.at("low_budget"), low_budget);
    let prefetch = at.table("prefetch", raw.prefetch).unwrap_or_default();
    let prefetch = prefetch_of(at.at("prefetch"), prefetch);
    Cache {
        enabled: at.value("enabled", raw.enabled, true),
        capacity,
        max_page: usize::try_from(max_page).unwrap_or(usize::MAX),
        ttl: at.duration("ttl", raw.ttl, secs(5), Duration::ZERO..=DAY),
        stale_while_revalidate: at.duration(
            "stale_while_revalidate",
            raw.stale_while_revalidate,
            secs(30),
            Duration::ZERO..=DAY,
        ),
        stale_if_error: at.duration(
            "stale_if_error",
            raw.stale_if_error,
            secs(600),
            Duration::ZERO..=DAY * 7,
        ),
        low_budget,
        honor_client_directives: at.value("honor_client_directives", raw.honor_client_directives, false),
        compress: at.value("compress", raw.compress, true),
        prefetch,
    }
}

fn low_budget_of(mut at: Reader<'_, '_>, raw: raw::LowBudget) -> LowBudget {
    LowBudget {
        below: at.share("below", raw.below, 0.3) as f32,
        ttl: at.duration("ttl", raw.ttl, Duration::from_secs(60), Duration::ZERO..=DAY),
    }
}

fn prefetch_of(mut at: Reader<'_, '_>, raw: raw::Prefetch) -> Prefetch {
    Prefetch {
        enabled: at.value("enabled", raw.enabled, false),
        above: at.share("above", raw.above, 0.6) as f32,
    }
}
