//! Catch panic: a fault of ours costs one request, not a connection with all its streams.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::exchange::{Exchange, Journal};
use crate::rejection::Rejection;
use crate::telemetry::metrics::Metrics;

/// Turns a panic into [`Rejection::Internal`], logs and counts it.
#[derive(Clone)]
pub struct CatchPanicLayer(Rc<Shared>);

struct Shared {
    metrics: Arc<Metrics>,
}

impl CatchPanicLayer {
    /// Counts in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(Rc::new(Shared { metrics }))
    }
}

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> CatchPanic<S> {
        CatchPanic { inner, shared: self.0.clone() }
    }
}

/// See [`CatchPanicLayer`].
#[derive(Clone)]
pub struct CatchPanic<S> {
    inner: S,
    shared: Rc<Shared>,
}

impl<S, T> Service<Exchange<T>> for CatchPanic<S>
where
    S: Service<Exchange<T>, Error = Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = Catching<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<T>) -> Self::Future {
        let (journal, shared) = (exchange.journal.clone(), self.shared.clone());
        // Nothing of what a panic may have left half done is used again: the request is over.
        match catch_unwind(AssertUnwindSafe(|| self.inner.call(exchange))) {
            Ok(future) => Catching { future: Some(future), journal, shared },
            Err(panic) => {
                report(&shared.metrics, &journal, panic.as_ref());
                Catching { future: None, journal, shared }
            }
        }
    }
}

pin_project! {
    /// Polls the inner future behind a net.
    pub struct Catching<F> {
        #[pin]
        future: Option<F>,
        journal: Rc<Journal>,
        shared: Rc<Shared>,
    }
}

impl<F, T> Future for Catching<F>
where
    F: Future<Output = Result<T, Rejection>>,
{
    type Output = Result<T, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(future) = this.future.as_pin_mut() else { return Poll::Ready(Err(Rejection::Internal)) };
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                report(&this.shared.metrics, this.journal, panic.as_ref());
                Poll::Ready(Err(Rejection::Internal))
            }
        }
    }
}

fn report(metrics: &Metrics, journal: &Journal, panic: &(dyn Any + Send)) {
    metrics.panic();
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(request_id = %journal.request_id, panic = text.unwrap_or("unknown"), "a request panicked");
}

#[cfg(test)]
mod tests {
    use http::Method;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::exchange::Permitted;
    use crate::exchange::testing::permitted;
    use crate::telemetry::exposition::Format;
    use crate::telemetry::metrics::Scrape;

    #[tokio::test(flavor = "local")]
    async fn a_panic_costs_one_request_and_is_counted() {
        let metrics = Arc::new(Metrics::new());
        let inner = service_fn(|exchange: Exchange<Permitted>| {
            assert!(exchange.stage.client.0 != 1, "in the call");
            async move {
                assert!(exchange.stage.client.0 != 2, "while answering");
                Ok::<_, Rejection>(())
            }
        });
        let service = CatchPanicLayer::new(metrics.clone()).layer(inner);
        for (client, expected) in [(1, Err(Rejection::Internal)), (2, Err(Rejection::Internal)), (3, Ok(()))]
        {
            let exchange = permitted(Method::GET, "/providers", client);
            assert_eq!(service.clone().oneshot(exchange).await, expected);
        }
        let text = metrics.render(Format::OpenMetrics, &Scrape::default());
        assert!(text.contains("metorial_proxy_panics_total 2"));
    }
}
