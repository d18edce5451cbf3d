//! Admit: so many requests in flight and no more, before memory is spent on one.
//!
//! A place is held until the response has been sent, because a slow reader takes up memory as long as it reads. Requests
//! with a body leave some places to those without: a body may take as long as a request may, and costs its sender nothing.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{Layer, Service};

use crate::body::RequestBody;
use crate::exchange::Exchange;
use crate::rejection::{Gate, Rejection};
use crate::telemetry::labels::{Outcome, Policy};
use crate::telemetry::metrics::Metrics;

/// Bounds what is in flight.
#[derive(Clone)]
pub struct AdmitLayer(Arc<Shared>);

struct Shared {
    places: Places,
    metrics: Arc<Metrics>,
}

/// The places there are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Places {
    all: Arc<Semaphore>,
    with_body: Arc<Semaphore>,
}

impl Places {
    /// Places in all, and of these those for requests with a body.
    pub fn of(all: Arc<Semaphore>, with_body: Arc<Semaphore>) -> Self {
        Self { all, with_body }
    }

    /// So many of `most` places are for requests with a body.
    pub fn with_body(most: usize) -> usize {
        (most - most / 4).max(1)
    }

    #[cfg(test)]
    fn new(most: usize) -> Self {
        Self::of(Arc::new(Semaphore::new(most)), Arc::new(Semaphore::new(Self::with_body(most))))
    }

    /// What a request holds while it is in flight.
    fn take(&self, has_body: bool) -> Option<[Option<OwnedSemaphorePermit>; 2]> {
        let free = |places: &Arc<Semaphore>| places.clone().try_acquire_owned().ok();
        let with_body = if has_body { Some(free(&self.with_body)?) } else { None };
        Some([Some(free(&self.all)?), with_body])
    }
}

impl AdmitLayer {
    /// `places` outlives the pipeline: a reload does not double it.
    pub fn new(places: Places, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared { places, metrics }))
    }
}

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Admit<S> {
        Admit { inner, shared: self.0.clone() }
    }
}

/// See [`AdmitLayer`].
#[derive(Clone)]
pub struct Admit<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, T> Service<Exchange<T>> for Admit<S>
where
    S: Service<Exchange<T>, Error = Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = Gate<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<T>) -> Self::Future {
        let has_body = matches!(exchange.request.body(), RequestBody::Streaming(_));
        let Some(place) = self.shared.places.take(has_body) else {
            self.shared.metrics.decision(Policy::Admit, Outcome::Refused);
            return Gate::refused(Rejection::Overloaded);
        };
        self.shared.metrics.decision(Policy::Admit, Outcome::Allowed);
        // The journal lives until the response has been sent.
        exchange.journal.hold(place);
        Gate::passed(self.inner.call(exchange))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::exchange::Permitted;
    use crate::exchange::testing::permitted;

    #[tokio::test]
    async fn a_place_is_held_as_long_as_anybody_knows_of_the_request() {
        let layer = AdmitLayer::new(Places::new(1), Arc::new(Metrics::new()));
        let inner =
            service_fn(|exchange: Exchange<Permitted>| async move { Ok::<_, Rejection>(exchange.journal) });
        let service = layer.layer(inner);
        let ask = || service.clone().oneshot(permitted(Method::GET, "/providers", 1));
        let journal = ask().await.expect("admitted");
        assert_eq!(ask().await.map(|_| ()), Err(Rejection::Overloaded));
        drop(journal);
        assert!(ask().await.is_ok());
    }

    #[test]
    fn requests_with_a_body_leave_a_quarter_to_those_without() {
        for (most, with_body) in [(1, 1), (2, 2), (4, 3), (4096, 3072)] {
            let places = Places::new(most);
            let held: Vec<_> = (0..most).map_while(|_| places.take(true)).collect();
            assert_eq!(held.len(), with_body);
            let rest: Vec<_> = (0..most).map_while(|_| places.take(false)).collect();
            assert_eq!(rest.len(), most - with_body);
            drop((held, rest));
            assert!(places.take(true).is_some());
        }
    }
}
