//! What every page store promises. `suite!(store)` runs it over a backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};

use super::{Entry, Page, PageStore};
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
async fn body(store: &impl PageStore, key: &PageKey) -> Option<String> {
    match store.get(key).await? {
        Entry::Page(page) => Some(String::from_utf8_lossy(&page.body).into_owned()),
        Entry::Varies(names) => Some(format!("{names:?}")),
    }
}

pub(crate) async fn what_was_put_is_found_under_its_key_only(store: impl PageStore) {
    let (at, page) = page("/things", "[1]");
    assert_eq!(body(&store, &at).await, None);
    store.put(at.clone(), page).await;
    assert_eq!(body(&store, &at).await.as_deref(), Some("[1]"));
    assert_eq!(body(&store, &key("e", 1, "/things")).await, None);
    assert_eq!(body(&store, &key("f", 0, "/things")).await, None);
    store.put(at.clone(), Entry::Varies([http::header::ACCEPT].into())).await;
    assert_eq!(body(&store, &at).await.as_deref(), Some("[\"accept\"]"));
    store.remove(&at).await;
    assert_eq!(body(&store, &at).await, None);
}

pub(crate) async fn an_invalidation_changes_the_generation_of_one_collection_of_one_environment(
    store: impl PageStore,
) {
    assert_eq!(store.generation("e", "/things").await, 0);
    store.invalidate("e", "/things").await;
    store.invalidate("e", "/things").await;
    assert_eq!(store.generation("e", "/things").await, 2);
    assert_eq!(store.generation("e", "/others").await, 0);
    assert_eq!(store.generation("f", "/things").await, 0);
}

/// Runs every promise over `$store`.
macro_rules! suite {
    ($store:expr) => {
        $crate::store::pages::contract::suite!($store;
            what_was_put_is_found_under_its_key_only,
            an_invalidation_changes_the_generation_of_one_collection_of_one_environment
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
