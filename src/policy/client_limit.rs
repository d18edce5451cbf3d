//! Limit by client IP: governor's GCRA, before authentication, because guessing keys must cost.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower::{Layer, Service};

use crate::exchange::{Exchange, Identified};
use crate::rejection::{Gate, Limit, Rejection};
use crate::store::clients::ClientLimits;
use crate::telemetry::labels::{Outcome, Policy};
use crate::telemetry::metrics::Metrics;

/// Counts every request of a client IP.
#[derive(Clone)]
pub struct ClientLimitLayer(Rc<Shared>);

struct Shared {
    clients: Arc<ClientLimits>,
    metrics: Arc<Metrics>,
}

impl ClientLimitLayer {
    /// `clients` outlives the pipeline: a reload is no amnesty.
    pub fn new(clients: Arc<ClientLimits>, metrics: Arc<Metrics>) -> Self {
        Self(Rc::new(Shared { clients, metrics }))
    }
}

impl<S> Layer<S> for ClientLimitLayer {
    type Service = ClientLimit<S>;

    fn layer(&self, inner: S) -> ClientLimit<S> {
        ClientLimit { inner, shared: self.0.clone() }
    }
}

/// See [`ClientLimitLayer`].
#[derive(Clone)]
pub struct ClientLimit<S> {
    inner: S,
    shared: Rc<Shared>,
}

impl<S> Service<Exchange<Identified>> for ClientLimit<S>
where
    S: Service<Exchange<Identified>, Error = Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = Gate<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<Identified>) -> Self::Future {
        let Shared { clients, metrics } = &*self.shared;
        match clients.check(exchange.stage.client) {
            Ok(standing) => {
                metrics.decision(Policy::Client, Outcome::Allowed);
                exchange.journal.client.set((exchange.stage.client, standing)).ok();
                Gate::passed(self.inner.call(exchange))
            }
            Err(too_fast) => {
                metrics.decision(Policy::Client, Outcome::Refused);
                exchange.journal.client.set((exchange.stage.client, clients.spent(too_fast))).ok();
                exchange.refuse(Rejection::RateLimited { limit: Limit::Client, wait: too_fast.wait })
            }
        }
    }
}
