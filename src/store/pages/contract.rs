//! What every page store promises. `suite!(store)` runs it over a backend.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};

use super::{Page, PageStore};
use crate::domain::page_key::{PageKey, Parts};
use crate::time::Timestamp;

pub(crate) fn key(environment: &str, generation: u64, path: &str) -> PageKey {
    PageKey::of(&Parts { environment, generation, path, query: "", fields: &[] })
}

pub(crate) fn page(path: &str, body: &str) -> (PageKey, Arc<Page>) {
    let page = Page {
        headers: HeaderMap::new(),
        body: body.to_owned().into(),
        etag: HeaderValue::from_static("\"1\""),
        at: Timestamp::now(),
        fresh_for: Duration::from_secs(5),
    };
    (key("e", 0, path), Arc::new(page))
}

pub(crate) async fn what_was_put_is_found_under_its_key_only(store: impl PageStore) {
    let (at, page) = page("/things", "[1]");
    assert!(store.get(&at).await.is_none());
    store.put(at.clone(), page).await;
    assert_eq!(store.get(&at).await.expect("kept").body, "[1]");
    assert!(store.get(&key("e", 1, "/things")).await.is_none());
    assert!(store.get(&key("f", 0, "/things")).await.is_none());
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
