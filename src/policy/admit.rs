//! Admit: so many requests in flight and no more, before memory is spent on one.
//!
//! A place is held until the response has been sent, because a slow reader takes up memory as long as it reads. Requests
//! with a body leave some places to those without: a body may take as long as a request may, and costs its sender nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower::{Layer, Service};

use crate::body::RequestBody;
use crate::exchange::Exchange;
use crate::rejection::{Gate, Rejection};
use crate::store::places::Places;
use crate::telemetry::labels::{Outcome, Policy};
use crate::telemetry::metrics::Metrics;

/// Bounds what is in flight.
#[derive(Clone)]
pub struct AdmitLayer(Rc<Shared>);

struct Shared {
    places: Rc<Places>,
    metrics: Arc<Metrics>,
}

impl AdmitLayer {
    /// `places` outlives the pipeline: a reload does not double it.
    pub fn new(places: Places, metrics: Arc<Metrics>) -> Self {
        Self(Rc::new(Shared { places: Rc::new(places), metrics }))
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
    shared: Rc<Shared>,
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
            return exchange.refuse(Rejection::Overloaded);
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

    #[tokio::test(flavor = "local")]
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
}
