//! Whether a kept page may be served, and as what: pure, from the page, the caller's wishes and how things stand.

use std::time::Duration;

use http::header::{CACHE_CONTROL, HeaderMap, PRAGMA};

use crate::domain::cache_control::Directives;
use crate::store::pages::Page;
use crate::time::Timestamp;

/// What a caller's `Cache-Control` asks for, where that is honoured (RFC 9111 §5.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Nothing without asking upstream.
    no_cache: bool,
    /// Not to be kept.
    pub(super) no_store: bool,
    /// No older than this.
    max_age: Option<Duration>,
    /// Fresh for so much longer.
    min_fresh: Duration,
    /// Stale by so much at most; `None`: not at all.
    max_stale: Option<Duration>,
    /// Nothing that is not kept.
    pub(super) only_if_cached: bool,
}

impl Wishes {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let directives = Directives::of(headers, &CACHE_CONTROL);
        let max_stale = directives.seconds("max-stale");
        Self {
            // Where nothing else is said (RFC 9111 §5.4).
            no_cache: directives.has("no-cache")
                || (directives.is_empty() && Directives::of(headers, &PRAGMA).has("no-cache")),
            no_store: directives.has("no-store"),
            max_age: directives.seconds("max-age"),
            min_fresh: directives.seconds("min-fresh").unwrap_or_default(),
            // Without an argument: however stale.
            max_stale: max_stale.map(|most| if most.is_zero() { Duration::MAX } else { most }),
            only_if_cached: directives.has("only-if-cached"),
        }
    }

    /// Whether a kept page may take the place of an error: not where upstream has to be asked (RFC 9111 §5.2.1.4).
    pub(super) fn lets_stand_in(&self) -> bool {
        !self.no_cache
    }
}

/// Whether upstream can be asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It can.
    Open,
    /// The budget is spent.
    Spent,
    /// A 429 has shut the gate.
    Shut,
}

/// How things stand for pages of one route.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// How long a page is fresh whose freshness is the operator's.
    pub(super) stretched: Duration,
    /// How stale a page may be while it is fetched anew, where upstream does not say. `None`: upstream's fields alone decide.
    pub(super) while_revalidating: Option<Duration>,
    /// … and in the place of an error.
    pub(super) if_error: Option<Duration>,
    /// Whether upstream can be asked.
    pub(super) room: Room,
    /// Nobody knows what was written through other replicas: nothing is served that is not fresh, and, where the freshness is
    /// the operator's, nothing older than this.
    pub(super) cut_off: Option<Duration>,
}

/// What a kept page is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usable {
    /// It is fresh, for so many seconds more.
    Fresh(i64),
    /// It is stale by so many seconds, and served all the same.
    Stale {
        /// Negative.
        ttl: i64,
        /// Why.
        detail: Option<&'static str>,
        /// It is to be fetched anew, behind the caller's back.
        refresh: bool,
    },
    /// Upstream is to be asked.
    No,
}

/// Judges a page.
pub(super) fn usable(page: &Page, wishes: &Wishes, standing: &Standing, now: Timestamp) -> Usable {
    let freshness = &page.freshness;
    if freshness.no_cache || wishes.no_cache {
        return Usable::No;
    }
    let (age, lifetime) = (page.age(now), lifetime(page, standing));
    if wishes.max_age.is_some_and(|most| age > most) {
        return Usable::No;
    }
    let detail = match standing.room {
        Room::Open => None,
        Room::Spent => Some("budget"),
        Room::Shut => Some("gate"),
    };
    if detail.is_some() && age >= freshness.lifetime && may_stand_in(page, standing, now) {
        // Whatever freshness was stretched to: it is served because nothing newer can be had.
        let ttl = page.ttl(now, freshness.lifetime);
        return Usable::Stale { ttl, detail, refresh: false };
    }
    let ttl = page.ttl(now, lifetime);
    if age.saturating_add(wishes.min_fresh) < lifetime {
        return Usable::Fresh(ttl);
    }
    if freshness.must_revalidate || wishes.min_fresh > Duration::ZERO {
        return Usable::No;
    }
    if standing.cut_off.is_some() {
        return Usable::No;
    }
    let over = age.saturating_sub(lifetime);
    if wishes.max_stale.is_some_and(|most| over <= most) {
        return Usable::Stale { ttl, detail: None, refresh: false };
    }
    let revalidating = freshness.while_revalidating.or(standing.while_revalidating).unwrap_or_default();
    match over < revalidating && standing.room == Room::Open {
        true => Usable::Stale { ttl, detail: Some("revalidating"), refresh: page.may_retry(now) },
        false => Usable::No,
    }
}

/// How long a page is fresh as things stand.
pub(super) fn lifetime(page: &Page, standing: &Standing) -> Duration {
    let own = page.freshness.lifetime;
    match (page.freshness.configured, standing.cut_off) {
        (true, None) => own.max(standing.stretched),
        // Also where upstream allows for more; with `ttl = "0s"` it alone decides.
        (_, Some(ttl)) if !ttl.is_zero() => own.min(ttl),
        _ => own,
    }
}

/// How long a page may be of use to anybody, from when it was made.
pub(super) fn useful(page: &Page, standing: &Standing, most_stretched: Duration) -> Duration {
    let freshness = &page.freshness;
    let lifetime =
        if freshness.configured { freshness.lifetime.max(most_stretched) } else { freshness.lifetime };
    let stale = [
        freshness.while_revalidating.or(standing.while_revalidating),
        freshness.if_error.or(standing.if_error),
    ];
    lifetime.saturating_add(stale.into_iter().flatten().max().unwrap_or_default())
}

/// Whether a stale page is better than an error or a refusal.
pub(super) fn may_stand_in(page: &Page, standing: &Standing, now: Timestamp) -> bool {
    let freshness = &page.freshness;
    if freshness.must_revalidate || freshness.no_cache {
        return false;
    }
    let over = page.age(now).saturating_sub(lifetime(page, standing));
    freshness.if_error.or(standing.if_error).is_some_and(|most| over <= most)
}

/// What the operator's freshness becomes as the budget falls below `below`: it stretches evenly from `ttl` to `low`.
pub(super) fn stretched(ttl: Duration, low: Duration, below: f32, share: f32) -> Duration {
    if share >= below || low <= ttl {
        return ttl;
    }
    ttl + (low - ttl).mul_f32(((below - share) / below).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use http::header::HeaderValue;

    use super::*;
    use crate::domain::freshness::Freshness;

    const STANDING: Standing = Standing {
        stretched: Duration::from_secs(5),
        while_revalidating: Some(Duration::from_secs(30)),
        if_error: Some(Duration::from_secs(600)),
        room: Room::Open,
        cut_off: None,
    };
    const CONFIGURED: Freshness = Freshness {
        lifetime: Duration::from_secs(5),
        configured: true,
        no_cache: false,
        must_revalidate: false,
        while_revalidating: None,
        if_error: None,
    };

    fn aged(age: u64, freshness: Freshness) -> (Page, Timestamp) {
        let at = Timestamp(1_000_000_000_000);
        let page = Page {
            headers: HeaderMap::new(),
            body: "x".into(),
            etag: HeaderValue::from_static("\"1\""),
            validators: [None, None],
            coded: Vec::new(),
            at,
            freshness,
            varies: Box::default(),
            next_after: None,
            retry_at: AtomicU64::new(0),
            ahead: AtomicBool::new(false),
        };
        (page, at + Duration::from_secs(age))
    }

    fn judge(age: u64, freshness: Freshness, standing: Standing, wishes: &str) -> Usable {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, wishes.parse().expect("a value"));
        let (page, now) = aged(age, freshness);
        usable(&page, &Wishes::of(&headers), &standing, now)
    }

    fn stale(ttl: i64, detail: Option<&'static str>, refresh: bool) -> Usable {
        Usable::Stale { ttl, detail, refresh }
    }

    #[test]
    fn a_page_is_fresh_then_served_while_it_is_fetched_anew_then_not() {
        for (age, expected) in [
            (0, Usable::Fresh(5)),
            (4, Usable::Fresh(1)),
            (5, stale(-1, Some("revalidating"), true)),
            (34, stale(-29, Some("revalidating"), true)),
            (35, Usable::No),
        ] {
            assert_eq!(judge(age, CONFIGURED, STANDING, ""), expected, "{age}");
        }
        let (page, now) = aged(10, CONFIGURED);
        page.failed(now + Duration::from_secs(1));
        let waiting = stale(-5, Some("revalidating"), false);
        assert_eq!(
            usable(&page, &Wishes::default(), &STANDING, now),
            waiting,
            "not again at once after a failure"
        );
    }

    #[test]
    fn where_upstream_cannot_be_asked_a_stale_page_is_better_than_nothing() {
        for (room, detail) in [(Room::Spent, "budget"), (Room::Shut, "gate")] {
            let standing = Standing { room, ..STANDING };
            assert_eq!(judge(4, CONFIGURED, standing, ""), Usable::Fresh(1));
            assert_eq!(judge(605, CONFIGURED, standing, ""), stale(-600, Some(detail), false));
            assert_eq!(judge(606, CONFIGURED, standing, ""), Usable::No);
        }
    }

    #[test]
    fn upstreams_own_word_stands_against_all_of_it() {
        let spent = Standing { room: Room::Spent, ..STANDING };
        for strict in
            [Freshness { must_revalidate: true, ..CONFIGURED }, Freshness { no_cache: true, ..CONFIGURED }]
        {
            assert_eq!(judge(6, strict, STANDING, ""), Usable::No);
            assert_eq!(judge(6, strict, spent, ""), Usable::No);
            let (page, now) = aged(6, strict);
            assert!(!may_stand_in(&page, &STANDING, now));
        }
        assert_eq!(judge(1, Freshness { no_cache: true, ..CONFIGURED }, STANDING, ""), Usable::No);
        let told = Freshness { while_revalidating: Some(Duration::ZERO), ..CONFIGURED };
        assert_eq!(judge(6, told, STANDING, ""), Usable::No);
        let alone = Standing { while_revalidating: None, if_error: None, ..STANDING };
        assert_eq!(judge(6, CONFIGURED, alone, ""), Usable::No);
        let (page, now) = aged(6, CONFIGURED);
        assert!(!may_stand_in(&page, &alone, now));
    }

    #[test]
    fn callers_may_be_stricter_or_more_lenient_where_they_are_heeded() {
        for (age, wishes, expected) in [
            (1, "no-cache", Usable::No),
            (1, "max-age=0", Usable::No),
            (1, "max-age=1", Usable::Fresh(4)),
            (1, "min-fresh=3", Usable::Fresh(4)),
            (1, "min-fresh=4", Usable::No),
            (40, "max-stale", stale(-35, None, false)),
            (40, "max-stale=35", stale(-35, None, false)),
            (40, "max-stale=34", Usable::No),
        ] {
            assert_eq!(judge(age, CONFIGURED, STANDING, wishes), expected, "{age} {wishes}");
        }
    }

    #[test]
    fn a_replica_that_is_cut_off_serves_what_is_fresh_by_the_operators_word_and_nothing_on_a_hunch() {
        let stretched = Duration::from_secs(60);
        let cut_off = Standing { cut_off: Some(Duration::from_secs(5)), stretched, ..STANDING };
        let hour = Freshness { lifetime: Duration::from_secs(3600), configured: false, ..CONFIGURED };
        for freshness in [CONFIGURED, hour] {
            assert_eq!(judge(4, freshness, cut_off, ""), Usable::Fresh(1));
            assert_eq!(judge(5, freshness, cut_off, ""), Usable::No);
            assert_eq!(judge(5, freshness, cut_off, "max-stale"), Usable::No);
        }
        let theirs = Standing { cut_off: Some(Duration::ZERO), ..STANDING };
        assert_eq!(judge(3599, hour, theirs, ""), Usable::Fresh(1));
        let spent = Standing { room: Room::Spent, ..cut_off };
        assert_eq!(judge(6, CONFIGURED, spent, ""), stale(-1, Some("budget"), false));
        let (page, now) = aged(600, CONFIGURED);
        assert!(may_stand_in(&page, &cut_off, now), "better than an error");
    }

    #[test]
    fn a_page_is_of_use_until_nothing_allows_it_any_more() {
        let secs = Duration::from_secs;
        let of = |freshness| useful(&aged(0, freshness).0, &STANDING, secs(60)).as_secs();
        assert_eq!(of(CONFIGURED), 60 + 600);
        assert_eq!(of(Freshness { configured: false, ..CONFIGURED }), 5 + 600);
        let told = Freshness { if_error: Some(secs(1)), while_revalidating: Some(secs(2)), ..CONFIGURED };
        assert_eq!(of(told), 60 + 2);
    }

    #[test]
    fn freshness_stretches_evenly_as_the_budget_falls() {
        let secs = Duration::from_secs;
        let at = |share| stretched(secs(5), secs(65), 0.5, share).as_secs();
        assert_eq!([1.0, 0.5, 0.25, 0.0].map(at), [5, 5, 35, 65]);
        assert_eq!(stretched(secs(5), secs(1), 0.5, 0.0), secs(5), "never below what it is");
        let standing = Standing { stretched: secs(35), ..STANDING };
        assert_eq!(judge(30, CONFIGURED, standing, ""), Usable::Fresh(5));
        assert_eq!(
            judge(30, Freshness { configured: false, ..CONFIGURED }, standing, ""),
            stale(-25, Some("revalidating"), true)
        );
    }
}
