//! The dashboard: one page for whoever is on call, the same figures as a stream and as JSON.
//!
//! One sampler looks each second while somebody watches, and every other second else, so that the last ten minutes are there
//! when somebody comes. It reads what is counted anyway; a request costs the same whether it looks or not. The page is made
//! here whole, and works without a script; a script of its own puts in what the stream brings.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{View, problem};
use crate::time::{Instant, sleep};
use figures::Figures;
use history::History;
use page::Asked;

mod asset;
mod chart;
pub mod figures;
mod history;
mod page;
mod sections;
pub mod words;

/// Streams at once; more are refused.
pub const MAX_STREAMS: usize = 16;
/// How long a stream lasts: less than a connection of this port may. The browser asks for another one.
const STREAM: Duration = Duration::from_secs(50);
/// How often is looked while somebody watches.
const INTERVAL: Duration = Duration::from_secs(1);
/// Figures that are no older are shown to the next one who asks, too.
const FRESH: Duration = Duration::from_millis(500);
/// After so long the browser asks for another stream.
const RETRY: Duration = Duration::from_secs(1);

/// What a page of ours may do: nothing but load our own files and ask us.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

/// The sampler, and what it shows.
pub struct Dashboard {
    view: Arc<dyn View>,
    samples: Mutex<Samples>,
    /// What each stream sends next: one event for all of them, and whoever is slow misses some.
    latest: watch::Sender<Event>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

struct Samples {
    history: History,
    last: Option<(Instant, Arc<Figures>)>,
}

impl Dashboard {
    /// Of what `view` shows, until `stop`.
    pub fn new(view: Arc<dyn View>, stop: CancellationToken) -> Arc<Self> {
        let samples = Samples { history: History::new(view.tally()), last: None };
        Arc::new(Self {
            view,
            samples: Mutex::new(samples),
            latest: watch::Sender::new(Event::default()),
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
            stop,
        })
    }

    /// Looks from time to time.
    pub async fn run(self: Arc<Self>) {
        let mut due = tokio::time::interval(INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0u64;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = due.tick() => ticks += 1,
            }
            if self.latest.receiver_count() > 0 {
                let event = event(&self.sample(Duration::ZERO));
                drop(self.latest.send_replace(event));
            } else if ticks.is_multiple_of(2) {
                self.sample(Duration::ZERO);
            }
        }
    }

    /// The figures, taken now or not longer ago than `fresh`.
    fn sample(&self, fresh: Duration) -> Arc<Figures> {
        let mut samples = self.samples.lock();
        match &samples.last {
            Some((at, figures)) if at.elapsed() < fresh => figures.clone(),
            _ => {
                let (status, tally) = (self.view.status(), self.view.tally());
                let figures = Arc::new(samples.history.take(status, &tally, self.view.ready()));
                samples.last = Some((Instant::now(), figures.clone()));
                figures
            }
        }
    }
}

/// Its routes, to be guarded.
pub(super) fn router<S: Clone + Send + Sync + 'static>(dashboard: Arc<Dashboard>) -> Router<S> {
    Router::new()
        .route("/", get(page))
        .route("/live", get(live))
        .route("/live.json", get(json))
        .route("/dashboard.css", get(async |headers: HeaderMap| asset::STYLE.answer(&headers)))
        .route("/dashboard.js", get(async |headers: HeaderMap| asset::SCRIPT.answer(&headers)))
        .layer(middleware::from_fn(confine))
        .with_state(dashboard)
}

async fn page(
    State(dashboard): State<Arc<Dashboard>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let Ok(Query(asked)) = asked else {
        return problem(StatusCode::BAD_REQUEST, "the query names a field twice, or is not readable");
    };
    let figures = dashboard.sample(FRESH);
    let answer = match asked.question(&figures) {
        None => None,
        Some(Err(error)) => Some(Err(error)),
        Some(Ok(question)) => Some(dashboard.view.explain(question).await),
    };
    page::page(&figures, &asked, answer.as_ref()).into_response()
}

async fn json(State(dashboard): State<Arc<Dashboard>>) -> Response {
    Json(&*dashboard.sample(FRESH)).into_response()
}

async fn live(State(dashboard): State<Arc<Dashboard>>) -> Response {
    let Ok(place) = dashboard.places.clone().try_acquire_owned() else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many are watching: /live.json has the same figures",
        );
    };
    let later = dashboard.latest.subscribe();
    let now = event(&dashboard.sample(FRESH)).retry(RETRY);
    let later = stream::unfold((later, place), async |(mut later, place)| {
        later.changed().await.ok()?;
        let event = later.borrow_and_update().clone();
        Some((event, (later, place)))
    });
    let stop = dashboard.stop.clone();
    let over = async move {
        tokio::select! { () = stop.cancelled() => {}, () = sleep(STREAM) => {} }
    };
    Sse::new(stream::iter([now]).chain(later).take_until(Box::pin(over)).map(Ok::<_, Infallible>))
        .into_response()
}

/// The page's live part.
fn event(figures: &Figures) -> Event {
    Event::default().event("figures").data(sections::all(figures).into_string())
}

async fn confine(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let fields = response.headers_mut();
    fields.insert(CONTENT_SECURITY_POLICY, POLICY);
    fields.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
