//! The admin port: probes and metrics for machines, state and switches for the operator.
//!
//! It knows the proxy only as a [`View`]. `/livez`, `/readyz` and `/metrics` answer whoever reaches the port; all else
//! passes [`guard`] first.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::telemetry::exposition::Format;
use crate::telemetry::tally::Tally;

pub mod client;
pub mod dashboard;
pub mod explanation;
pub mod guard;
pub mod health;
pub mod serve;
pub mod status;

#[cfg(test)]
mod tests;

pub use dashboard::Dashboard;
use explanation::{Explanation, Question};
pub use guard::Access;
pub use serve::serve;
pub use status::Status;

/// Bytes of the largest request body that is read.
const MAX_BODY: usize = 16 * 1024;

/// What the admin port shows of the proxy.
pub trait View: Send + Sync + 'static {
    /// Whether traffic should be sent here: configured and not draining. Never whether upstream or the store answers,
    /// or all replicas would be taken out together.
    fn ready(&self) -> bool;

    /// The figures in this format.
    fn metrics(&self, format: Format) -> String;

    /// The state.
    fn status(&self) -> Status;

    /// What was counted so far.
    fn tally(&self) -> Tally;

    /// What would happen to a request with the configuration that is in force.
    fn explain(&self, question: Question) -> Explaining<'_>;

    /// Forgets the pages of `collection` (a path such as `/providers`) in `environment`.
    ///
    /// # Errors
    /// Which of the two is not known.
    fn invalidate<'a>(&'a self, environment: &'a str, collection: &'a str) -> Invalidating<'a>;
}

/// The explanation, or in words why there is none.
pub type Explaining<'a> = Pin<Box<dyn Future<Output = Result<Explanation, String>> + Send + 'a>>;

/// The pages are forgotten once it is ready, in a shared store too.
pub type Invalidating<'a> = Pin<Box<dyn Future<Output = Result<(), Unknown>> + Send + 'a>>;

/// What [`View::invalidate`] was asked about and doesn't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No environment of this name.
    #[error("there is no environment of this name")]
    Environment,
    /// No path of a collection.
    #[error("this is no path of a collection, such as /providers")]
    Collection,
}

/// The body of every refusal.
#[derive(Debug, Serialize)]
struct Problem {
    error: Cow<'static, str>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invalidation {
    environment: String,
    collection: String,
}

/// The routes of the admin port. Served by [`serve`](serve()), which tells the guard who asks.
pub fn router(view: Arc<dyn View>, dashboard: Arc<Dashboard>, access: Arc<ArcSwap<Access>>) -> Router {
    let guarded = Router::new()
        .route("/status", get(status))
        .route("/cache/invalidate", post(invalidate))
        .merge(dashboard::router(dashboard))
        .route_layer(middleware::from_fn_with_state(access, guard::guard));
    Router::new()
        .route("/livez", get("ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .fallback(async || problem(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(secure))
        .with_state(view)
}

async fn ready(State(view): State<Arc<dyn View>>) -> Response {
    if view.ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    }
}

async fn metrics(State(view): State<Arc<dyn View>>, headers: HeaderMap) -> Response {
    let format = Format::of(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    ([(CONTENT_TYPE, format.content_type())], view.metrics(format)).into_response()
}

async fn status(State(view): State<Arc<dyn View>>) -> Json<Status> {
    Json(view.status())
}

async fn invalidate(State(view): State<Arc<dyn View>>, body: Result<Bytes, BytesRejection>) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return problem(rejection.status(), "the body could not be read, or is too large"),
    };
    let Invalidation { environment, collection } = match serde_json::from_slice(&body) {
        Ok(invalidation) => invalidation,
        Err(error) => {
            return problem(StatusCode::BAD_REQUEST, format!("the body is not as expected: {error}"));
        }
    };
    match view.invalidate(&environment, &collection).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(unknown) => problem(StatusCode::NOT_FOUND, unknown.to_string()),
    }
}

fn problem(status: StatusCode, error: impl Into<Cow<'static, str>>) -> Response {
    (status, Json(Problem { error: error.into() })).into_response()
}

/// Fields on every answer: it is what it says it is, it is true now only (but for the files of the dashboard), and no page may embed it or run in it.
async fn secure(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let fields = response.headers_mut();
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    fields.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    fields
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}
