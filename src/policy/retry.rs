//! Retry: tries again what is safe to try again, within the deadline and a budget.
//!
//! Inside the cache, so that coalesced waiters share one loop; outside the budgets, so that every attempt pays. A 429 or a
//! connection that was never made may be tried again with any method, as long as the body is still held; whatever may
//! have reached upstream only with GET, HEAD and OPTIONS. A connection that broke is no proof that nothing was done.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::retry::budget::{Budget as _, TpsBudget};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::body::{Inbound, RequestBody, ResponseBody, UploadFault};
use crate::config::Retry as Config;
use crate::domain::client_ip::ClientKey;
use crate::domain::rotation::Which;
use crate::exchange::{Delivery, Exchange, Failure, Journal, Permitted, ShutFor, Unserved};
use crate::rejection::{Limit, Rejection, UpstreamFault};
use crate::telemetry::labels::RetryReason;
use crate::telemetry::metrics::Metrics;
use crate::time::{Instant, sleep, timeout_at};

/// Bodies up to this length are held, so that they can be sent again.
const HELD: usize = 64 * 1024;

/// Tries again.
#[derive(Clone)]
pub struct RetryLayer(Rc<Shared>);

struct Shared {
    config: Config,
    budget: Arc<TpsBudget>,
    metrics: Arc<Metrics>,
}

impl RetryLayer {
    /// `budget` outlives the pipeline.
    pub fn new(config: Config, budget: Arc<TpsBudget>, metrics: Arc<Metrics>) -> Self {
        Self(Rc::new(Shared { config, budget, metrics }))
    }
}

/// Retries as a share of requests over ten seconds, and one per second in any case.
pub fn budget(config: &Config) -> TpsBudget {
    TpsBudget::new(Duration::from_secs(10), 1, config.budget)
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry(Rc::new(Stack { shared: self.0.clone(), inner: RefCell::new(inner) }))
    }
}

/// See [`RetryLayer`].
pub struct Retry<S>(Rc<Stack<S>>);

struct Stack<S> {
    shared: Rc<Shared>,
    // To borrow it takes less than a clone for each request.
    inner: RefCell<S>,
}

impl<S> Clone for Retry<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Service<Exchange<Permitted>> for Retry<S>
where
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Failure> + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Rejection;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Rejection>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.0.inner.borrow_mut().poll_ready(cx).map_err(|failure| failure.rejection)
    }

    fn call(&mut self, mut exchange: Exchange<Permitted>) -> Self::Future {
        let stack = self.0.clone();
        Box::pin(async move {
            stack.shared.budget.deposit();
            if let RequestBody::Streaming(_) = exchange.request.body() {
                Box::pin(hold(&mut exchange.request, exchange.deadline)).await?;
            }
            let tried = Tried::of(&exchange);
            let answer = stack.inner.borrow_mut().call(exchange);
            let again = match answer.await {
                Ok(response) if response.status() != StatusCode::TOO_MANY_REQUESTS => return Ok(response),
                // Boxed: most are served at once, and every request's future would hold room for it.
                outcome => Box::pin(stack.again(tried, outcome)),
            };
            again.await
        })
    }
}

/// What another attempt takes from the one before.
struct Tried {
    client: ClientKey,
    refused: Option<Which>,
    deadline: Instant,
    journal: Rc<Journal>,
    replay: Option<RequestBody>,
}

impl Tried {
    fn of(exchange: &Exchange<Permitted>) -> Self {
        let Permitted { client, refused, .. } = exchange.stage;
        let replay = exchange.request.body().replay();
        Self { client, refused, deadline: exchange.deadline, journal: exchange.journal.clone(), replay }
    }
}

impl<S> Stack<S>
where
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Failure>,
{
    /// Tries again until it is served, as long as that is safe and the budget and the deadline allow it.
    async fn again(
        &self,
        tried: Tried,
        mut outcome: Result<Response<ResponseBody>, Failure>,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let Self { shared, inner } = self;
        let Tried { client, mut refused, deadline, journal, mut replay } = tried;
        let mut attempt = 1;
        loop {
            let Failure { rejection, delivery, body: unused_body } = match outcome {
                Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                    // Its own 429 is never passed on.
                    let wait = response
                        .extensions()
                        .get::<ShutFor>()
                        .map_or(shared.config.max_backoff, |shut| shut.0);
                    let rejection = Rejection::RateLimited { limit: Limit::Upstream, wait };
                    Failure { rejection, delivery: Delivery::Limited, body: None }
                }
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            let (Some(unserved), Some(body)) = (journal.unserved(), replay.take().or(unused_body)) else {
                return Err(rejection);
            };
            let Unserved { mut request, permit, unless } = *unserved;
            let Some(reason) = reason(&rejection, delivery, permit.method()) else { return Err(rejection) };
            *request.body_mut() = body;
            let refused_key = match delivery {
                Delivery::KeyRefused(key) => Some(key),
                Delivery::Refused | Delivery::Never | Delivery::Possible | Delivery::Limited => None,
            };
            // A rotation fails every request under way at once, for once: no budget of retries is meant for that. So it is
            // once that each is sent again for it, whatever becomes of the keys meanwhile.
            let rotated = refused_key.is_some();
            if rotated && refused.is_some() {
                return Err(rejection);
            }
            if !rotated && (attempt >= shared.config.max_attempts || !shared.budget.withdraw()) {
                return Err(rejection);
            }
            // After a 429 the gate of the budget is the backoff; everything else but a rotation backs off here.
            if reason != RetryReason::RateLimited && !rotated {
                let backoff = backoff(&shared.config, attempt);
                if Instant::now() + backoff >= deadline {
                    return Err(rejection);
                }
                sleep(backoff).await;
            }
            attempt += 1;
            refused = refused_key.or(refused);
            replay = request.body().replay();
            let stage = Permitted { client, permit, unless, refused };
            let answer =
                inner.borrow_mut().call(Exchange { request, stage, deadline, journal: journal.clone() });
            let span = tracing::info_span!("retry", request_id = &*journal.request_id, attempt, ?reason);
            outcome = answer.instrument(span).await;
            // Counted when it was sent: the budgets may have refused it.
            if !matches!(&outcome, Err(failure) if failure.delivery == Delivery::Refused) {
                shared.metrics.retry(reason);
            }
        }
    }
}

/// Whether what failed is worth another attempt, and safe.
fn reason(rejection: &Rejection, delivery: Delivery, method: &Method) -> Option<RetryReason> {
    let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    match (delivery, rejection) {
        (Delivery::Refused, _) => None,
        (Delivery::KeyRefused(_), _) => Some(RetryReason::Credentials),
        (Delivery::Limited, _) => Some(RetryReason::RateLimited),
        // What a certificate or a setting breaks stays broken.
        (
            _,
            Rejection::Upstream(
                UpstreamFault::TlsCertificate(_)
                | UpstreamFault::UnexpectedCoding
                | UpstreamFault::HttpProtocol
                | UpstreamFault::HeadTooLarge,
            ),
        ) => None,
        (Delivery::Never, Rejection::Upstream(_)) => Some(RetryReason::NotConnected),
        (Delivery::Possible, Rejection::Upstream(UpstreamFault::ResponseTimeout)) if safe => {
            Some(RetryReason::Timeout)
        }
        (Delivery::Possible, Rejection::Upstream(_)) if safe => Some(RetryReason::ConnectionLost),
        (Delivery::Possible | Delivery::Never, _) => None,
    }
}

/// Full jitter: anything up to `initial × 2ⁿ`.
fn backoff(config: &Config, attempt: u32) -> Duration {
    let ceiling = config.initial_backoff.saturating_mul(2u32.saturating_pow((attempt - 1).min(16)));
    ceiling.min(config.max_backoff).mul_f64(fastrand::f64())
}

/// Reads a short body whole, so that it can be sent again, and so that one that is not framed as it should be reaches
/// nobody; any other streams.
async fn hold(request: &mut Request<RequestBody>, deadline: Instant) -> Result<(), Rejection> {
    *request.body_mut() = match std::mem::take(request.body_mut()) {
        RequestBody::Streaming(inbound) if inbound.exact_len().is_none_or(|length| length <= HELD as u64) => {
            timeout_at(deadline, read(inbound)).await.unwrap_or(Err(Rejection::RequestTimeout))?
        }
        body => body,
    };
    Ok(())
}

async fn read(inbound: Box<Inbound>) -> Result<RequestBody, Rejection> {
    let mut body = RequestBody::Streaming(inbound);
    let mut held = BytesMut::new();
    while held.len() <= HELD {
        match body.frame().await {
            Some(Ok(frame)) => held.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(error)) => return Err(UploadFault::of(&error).into()),
            None if held.is_empty() => return Ok(RequestBody::Empty),
            None => return Ok(RequestBody::Held(held.freeze())),
        }
    }
    Ok(match body {
        RequestBody::Streaming(inbound) => RequestBody::Streaming(inbound.preceded_by(held.freeze())),
        body => body,
    })
}

#[cfg(test)]
mod tests;
