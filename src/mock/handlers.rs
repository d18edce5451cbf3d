//! What the routes do: one handler for each [`Action`], over the store.

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use serde::Serialize;
use serde_json::Value;

use crate::mock::answer::Answer;
use crate::mock::auth::Caller;
use crate::mock::body;
use crate::mock::error::ApiError;
use crate::mock::page::PageRequest;
use crate::mock::query::Query;
use crate::mock::routes::{self, Action, Route};
use crate::mock::seed::{self, Item};
use crate::mock::store::{Collection, Store};

/// Answers an identified and counted request.
pub(crate) fn answer(store: &Store, head: &Parts, query: &Query, caller: &Caller, body: &Bytes) -> Answer {
    let handled = match routes::find(&head.method, head.uri.path()) {
        None => Err(ApiError::not_found("endpoint", None)),
        Some((path, route)) => body::parse(&head.headers, body).and_then(|changes| {
            if caller.publishable && !route.operation.publishable {
                return Err(ApiError::forbidden());
            }
            handle(store, route, path, query, changes)
        }),
    };
    match handled {
        // The API creates and deletes with 200 and the object, too.
        Ok(body) => Answer::json(StatusCode::OK, &body),
        Err(error) => Answer::error(&error),
    }
}

fn handle(
    store: &Store,
    route: &Route,
    path: &str,
    query: &Query,
    changes: Item,
) -> Result<Success, ApiError> {
    let subject = route.subject(path);
    // An item's collection is the path before its last segment.
    let (parent, id) = subject.rsplit_once('/').unwrap_or(("", subject));
    let at = Collection { path: subject, naming: &route.naming };
    let of = Collection { path: parent, naming: &route.naming };
    let missing = || ApiError::not_found(&route.naming.entity, Some(id));
    let item = match route.action {
        Action::List => return list(store, route, at, query),
        Action::Get | Action::Act => store.get(of, id).ok_or_else(missing)?,
        Action::Create => store.create(at, changes),
        Action::Update => store.update(of, id, changes).ok_or_else(missing)?,
        Action::Upsert => store.upsert(of, id, changes),
        Action::Delete => store.delete(of, id).ok_or_else(missing)?,
        Action::Single => store.single(at),
        Action::UpdateSingle => store.update_single(at, changes),
    };
    Ok(Success::Item(present(route, item)))
}

fn list(store: &Store, route: &Route, at: Collection<'_>, query: &Query) -> Result<Success, ApiError> {
    let request = PageRequest::read(query)?;
    let page = store.page(at, &request, |item| query.matches(item));
    Ok(Success::List {
        __typename: "list",
        items: page.items.into_iter().map(|item| present(route, item)).collect(),
        pagination: Pagination { has_more_before: page.more_before, has_more_after: page.more_after },
    })
}

/// A handler's JSON.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Success {
    Item(Item),
    List { __typename: &'static str, items: Vec<Item>, pagination: Pagination },
}

#[derive(Debug, Serialize)]
struct Pagination {
    has_more_before: bool,
    has_more_after: bool,
}

/// The item as its route shows it: some answer with a secret.
fn present(route: &Route, mut item: Item) -> Item {
    if route.operation.returns_secret {
        let id = item.get("id").and_then(Value::as_str).unwrap_or("").to_owned();
        let (field, secret) = seed::secret(&route.naming, &id);
        item.insert(field.to_owned(), secret.into());
        if route.naming.object == "session" {
            let url = format!("https://connect.metorial.com/{id}");
            item.insert("connection_url".to_owned(), url.into());
        }
    }
    item
}
