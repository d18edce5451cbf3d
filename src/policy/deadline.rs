//! Deadline: an answer is due, waits, retries and coalescing included.
//!
//! The moment is carried along, so that a layer inside does not begin a wait that cannot end in time. The timer is armed
//! only when the answer is not there at once: a cache hit never pays for one.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::{Layer, Service};

use crate::exchange::{Exchange, Journal};
use crate::rejection::Rejection;
use crate::time::{Instant, sleep_until};

/// The layers inside keep to the deadline by themselves and know what was late, the caller's body or upstream: they have
/// so long to say it.
const GRACE: Duration = Duration::from_millis(50);

/// Gives each request a deadline.
#[derive(Debug, Clone, Copy)]
pub struct DeadlineLayer {
    timeout: Duration,
}

impl DeadlineLayer {
    /// `timeout` from arrival to the head of the response.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, timeout: self.timeout }
    }
}

/// See [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
    timeout: Duration,
}

impl<S, T> Service<Exchange<T>> for Deadline<S>
where
    S: Service<Exchange<T>, Error = Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = Due<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange<T>) -> Self::Future {
        // Observe put the moment of arrival here.
        let deadline = exchange.deadline + self.timeout;
        exchange.deadline = deadline;
        let journal = exchange.request.method().is_safe().then(|| exchange.journal.clone());
        Due { future: self.inner.call(exchange), deadline: deadline + GRACE, timer: None, journal }
    }
}

pin_project! {
    /// Waits for the answer until the deadline.
    pub struct Due<F> {
        #[pin]
        future: F,
        deadline: Instant,
        // Boxed: few need one.
        timer: Option<Pin<Box<Sleep>>>,
        journal: Option<Rc<Journal>>,
    }
}

impl<F, T> Future for Due<F>
where
    F: Future<Output = Result<T, Rejection>>,
{
    type Output = Result<T, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(outcome) = this.future.poll(cx) {
            return Poll::Ready(outcome);
        }
        // An attempt under way has a timer of its own, which is over by then, and this is polled again when it is; what follows
        // on a write is not.
        let attempted = this.journal.as_ref().is_some_and(|journal| journal.is_written());
        if this.timer.is_none() && !attempted {
            *this.timer = Some(Box::pin(sleep_until(*this.deadline)));
        }
        match this.timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| Err(Rejection::DeadlineExceeded)),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::exchange::Permitted;
    use crate::exchange::testing::permitted;
    use crate::time::sleep;

    /// The answer of a layer that takes `takes`, under a deadline of 20 s.
    async fn ask(takes: Duration) -> Result<Instant, Rejection> {
        let inner = service_fn(move |exchange: Exchange<Permitted>| async move {
            sleep(takes).await;
            Ok(exchange.deadline)
        });
        let mut exchange = permitted(Method::GET, "/providers", 1);
        exchange.deadline = Instant::now();
        DeadlineLayer::new(Duration::from_secs(20)).layer(inner).oneshot(exchange).await
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn an_answer_comes_in_time_or_is_given_up_and_the_moment_is_carried_along() {
        let start = Instant::now();
        assert_eq!(ask(Duration::from_secs(19)).await, Ok(start + Duration::from_secs(20)));
        let late = Instant::now();
        assert_eq!(ask(Duration::from_secs(21)).await, Err(Rejection::DeadlineExceeded));
        assert_eq!(late.elapsed(), Duration::from_secs(20) + GRACE);
    }
}
