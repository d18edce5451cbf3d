//! Prefetch: the next page, for a caller that is paging, before it asks.
//!
//! Only where the caller has paged already (its query has an `after`), only while there is more budget than the operator wants
//! kept, and only once for each page: one that is there or under way is left alone.

use http::uri::PathAndQuery;
use http::{Method, Response};
use tower::Service;

use super::fill::{self, Wanted};
use super::{Shared, share};
use crate::body::ResponseBody;
use crate::domain::target::{self, Target};
use crate::exchange::{Exchange, Permit, Permitted};
use crate::rejection::Rejection;
use crate::store::limits::LimitStore;
use crate::store::pages::{Page, PageStore};
use crate::telemetry::labels::CacheResult;

/// Fetches the page after `page`, where that is due.
pub(super) async fn ahead<P, L, S>(
    shared: &std::rc::Rc<Shared<P, L>>,
    inner: S,
    exchange: &Exchange<Permitted>,
    page: &Page,
) where
    P: PageStore,
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + 'static,
{
    let (permit, Some(after)) = (&exchange.stage.permit, &page.next_after) else { return };
    let handle = permit.environment();
    let left = shared.limits.snapshot(handle.budget, 0).remaining;
    if share(left, handle.environment.limit.requests) <= shared.config.prefetch.above {
        return;
    }
    let Some(target) = next(permit.target(), after) else { return };
    // The next page is another request, and is decided as one.
    let Ok(permit) = Permit::decide(handle.clone(), &Method::GET, target) else { return };
    let mut next = exchange.bodyless();
    next.stage.permit = permit;
    let (primary, _) = shared.key(&next).await;
    let (varied, kept) = shared.look_up(&primary, next.request.headers()).await;
    // What could not be kept once is not asked for with each hit.
    if kept.is_some() || !page.goes_ahead() {
        return;
    }
    let key = varied.unwrap_or_else(|| primary.clone());
    if fill::refresh(shared, Wanted { key, primary, kept, credential: false }, inner, next) {
        shared.metrics.cache(CacheResult::Prefetch);
    }
}

/// The same list after the item `after`, for a caller whose own request named an item to begin after.
fn next(target: &Target, after: &str) -> Option<Target> {
    let query = target.query();
    let mut paging = false;
    let mut pairs = Vec::new();
    for pair in target::pairs(query) {
        match pair.name(query) {
            "after" => {
                paging = true;
                pairs.push(format!("after={after}"));
            }
            // Begun from elsewhere: this is not how it goes on.
            "before" | "cursor" => return None,
            _ => pairs.push(query[pair.whole].to_owned()),
        }
    }
    let next = PathAndQuery::try_from(format!("{}?{}", target.path(), pairs.join("&"))).ok()?;
    Target::parse(&next, "").ok().map(|(target, _)| target).filter(|_| paging)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_the_same_list_after_the_last_item() {
        let next = |target: &'static str| {
            let (target, _) = Target::parse(&PathAndQuery::from_static(target), "").expect("a target");
            super::next(&target, "pro_9").map(|target| target.path_and_query().to_string())
        };
        assert_eq!(next("/x?limit=2&after=pro_1&a=%31").as_deref(), Some("/x?limit=2&after=pro_9&a=%31"));
        assert_eq!(next("/x?limit=2"), None, "nobody is paging yet");
        assert_eq!(next("/x"), None);
        assert_eq!(next("/x?after=a&cursor=b"), None);
    }
}
