//! What every page store promises. `suite!(store)` runs it over a backend.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::task::{Context, Waker};
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};

use super::{Claim, Entry, Fetched, Page, PageStore};
use crate::domain::freshness::Freshness;
use crate::domain::page_key::{PageKey, Parts};
use crate::time::Timestamp;

pub(crate) fn key(environment: &str, generation: u64, path: &str) -> PageKey {
    PageKey::of(&Parts { environment, generation, path, query: "", fields: &[] })
}

pub(crate) fn page(path: &str, body: &str) -> (PageKey, Entry) {
    let page = Page {
        headers: HeaderMap::new(),
        body: body.to_owned().into(),
        etag: HeaderValue::from_static("\"1\""),
        validators: [None, None],
        coded: Vec::new(),
        at: Timestamp::now(),
        freshness: Freshness { lifetime: Duration::from_secs(5), ..Freshness::default() },
        varies: Box::default(),
        next_after: None,
        retry_at: AtomicU64::new(0),
        ahead: AtomicBool::new(false),
    };
    (key("e", 0, path), Entry::Page(Arc::new(page)))
}

/// The body of the page under a key.
pub(crate) async fn body(store: &impl PageStore, key: &PageKey) -> Option<String> {
    match store.get(key).await? {
        Entry::Page(page) => Some(String::from_utf8_lossy(&page.body).into_owned()),
        Entry::Varies(names) => Some(format!("{names:?}")),
    }
}

pub(crate) async fn what_was_put_is_found_under_its_key_only(store: &impl PageStore) {
    let (at, page) = page("/things", "[1]");
    assert_eq!(body(store, &at).await, None);
    store.put(at.clone(), page).await;
    assert_eq!(body(store, &at).await.as_deref(), Some("[1]"));
    assert_eq!(body(store, &key("e", 1, "/things")).await, None);
    assert_eq!(body(store, &key("f", 0, "/things")).await, None);
    store.put(at.clone(), Entry::Varies([http::header::ACCEPT].into())).await;
    assert_eq!(body(store, &at).await.as_deref(), Some("[\"accept\"]"));
    store.remove(&at).await;
    assert_eq!(body(store, &at).await, None);
}

pub(crate) async fn what_was_removed_after_it_was_shared_is_gone_too(store: &impl PageStore) {
    let (at, page) = page("/things", "[1]");
    let Claim::Lead(lease) = store.claim(&at, |_| true).await else { panic!("nobody has it") };
    store.put(at.clone(), page.clone()).await;
    store.share(lease, Fetched::Entries(vec![(at.clone(), page)], Duration::from_secs(60))).await;
    assert_eq!(body(store, &at).await.as_deref(), Some("[1]"));
    store.remove(&at).await;
    assert_eq!(body(store, &at).await, None);
}

pub(crate) async fn an_invalidation_changes_the_generation_of_the_named_collections_of_one_budget(
    store: &impl PageStore,
) {
    let things = ["/things".to_owned(), "/things-of-things".to_owned()];
    let all = async || {
        let mut all = Vec::new();
        for (budget, collection) in
            [("b", "/things"), ("b", "/things-of-things"), ("b", "/others"), ("c", "/things")]
        {
            let generation = store.generation(budget, collection).await;
            assert!(generation.known, "{budget} {collection}");
            all.push(generation.number);
        }
        all
    };
    let mut seen = vec![all().await];
    for _ in 0..3 {
        store.invalidate("b", &things).await;
        let now = all().await;
        assert_eq!(now[2..], seen[0][2..], "nothing was written there");
        assert!(seen.iter().all(|before| before[0] != now[0] && before[1] != now[1]), "{seen:?} {now:?}");
        seen.push(now);
    }
}

pub(crate) async fn an_invalidation_has_begun_here_when_it_is_first_polled(store: &impl PageStore) {
    let before = store.generation("b", "/things").await.number;
    let things = ["/things".to_owned()];
    let mut invalidation = Box::pin(store.invalidate("b", &things));
    let polled = invalidation.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert_ne!(store.generation("b", "/things").await.number, before);
    if polled.is_pending() {
        invalidation.await;
    }
    assert_ne!(store.generation("b", "/things").await.number, before);
}

pub(crate) async fn whoever_asks_first_fetches(store: &impl PageStore) {
    let (at, page) = page("/things", "[1]");
    for fetched in [Fetched::GivenUp, Fetched::Unshared, Fetched::Entries(Vec::new(), Duration::ZERO)] {
        let Claim::Lead(lease) = store.claim(&at, |_| true).await else { panic!("nobody has it") };
        store.share(lease, fetched).await;
    }
    let Claim::Lead(lease) = store.claim(&at, |_| true).await else { panic!("nobody has it") };
    store.put(at.clone(), page.clone()).await;
    store.share(lease, Fetched::Entries(vec![(at.clone(), page)], Duration::from_secs(60))).await;
    // What is there is not good enough.
    let Claim::Lead(lease) = store.claim(&at, |_| false).await else { panic!("it is to be fetched anew") };
    store.share(lease, Fetched::Unshared).await;
}

/// Runs every promise over `$store`.
macro_rules! suite {
    ($store:expr) => {
        $crate::store::pages::contract::suite!($store;
            what_was_put_is_found_under_its_key_only,
            what_was_removed_after_it_was_shared_is_gone_too,
            an_invalidation_changes_the_generation_of_the_named_collections_of_one_budget,
            an_invalidation_has_begun_here_when_it_is_first_polled,
            whoever_asks_first_fetches
        );
    };
    ($store:expr; $($promise:ident),+) => {
        $(
            #[tokio::test]
            async fn $promise() {
                $crate::store::pages::contract::$promise($store).await;
            }
        )+
    };
}

pub(crate) use suite;
