//! Budget: reserves environment and egress in one step for each attempt, and listens to what upstream says of its count.
//!
//! Inside retry, because every attempt pays. A request that finds the budget spent waits its turn as long as
//! that can end within its deadline and `max_queue_wait`; otherwise it is refused at once, with the true time of its slot.
//! Turns go round from client to client, and a reserve is held back from those above their fair share. One 429 from upstream shuts the whole budget, not just this request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use tower::{Layer, Service};

use crate::body::ResponseBody;
use crate::config::Retry;
use crate::domain::client_ip::ClientKey;
use crate::domain::environment::Environment;
use crate::domain::ratelimit::{self, RATELIMIT_LIMIT};
use crate::exchange::{Delivery, Exchange, Failure, Permitted, ShutFor};
use crate::rejection::{Limit, Rejection};
use crate::store::limits::{BudgetId, Charge, Draw, EGRESS, LimitStore, Refused};
use crate::store::queues::{Bounds, Lane, Queue};
use crate::telemetry::labels::{Outcome, Policy};
use crate::telemetry::metrics::Metrics;
use crate::time::{Instant, Timestamp, sleep_until, timeout_at, unix_now};

/// Charges every attempt.
pub struct BudgetLayer<L>(Arc<Shared<L>>);

struct Shared<L> {
    limits: Arc<L>,
    egress: BudgetId,
    egress_window: Duration,
    retry: Retry,
    metrics: Arc<Metrics>,
}

impl<L: LimitStore> BudgetLayer<L> {
    /// `egress`: the budget of our own address, which every request draws on too.
    pub fn new(limits: Arc<L>, egress: BudgetId, retry: Retry, metrics: Arc<Metrics>) -> Self {
        let egress_window =
            limits.views().get(egress.0).map_or(Duration::ZERO, |view| view.plan.quota.window);
        Self(Arc::new(Shared { limits, egress, egress_window, retry, metrics }))
    }
}

impl<L, S> Layer<S> for BudgetLayer<L> {
    type Service = Budget<L, S>;

    fn layer(&self, inner: S) -> Budget<L, S> {
        Budget { inner, shared: self.0.clone() }
    }
}

/// See [`BudgetLayer`].
pub struct Budget<L, S> {
    inner: S,
    shared: Arc<Shared<L>>,
}

impl<L, S: Clone> Clone for Budget<L, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<L, S> Service<Exchange<Permitted>> for Budget<L, S>
where
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Failure>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<ResponseBody>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<Permitted>) -> Self::Future {
        let shared = self.shared.clone();
        // The one that is ready is the one that is called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let environment = exchange.stage.permit.environment().clone();
            let budgets = [environment.budget, shared.egress];
            let (client, of) = (exchange.stage.client, &*environment.environment);
            let queue = &*environment.queue;
            let asks = Asks { budgets, client, of, deadline: exchange.deadline };
            let charge = match shared.reserve(queue, &asks).await {
                Ok(charge) => charge,
                Err(rejection) => return Err(Failure::refused(rejection, exchange.request.into_body())),
            };
            exchange.journal.add_attempts(1);
            let mut outcome = inner.call(exchange).await;
            if !matches!(&outcome, Err(failure) if failure.delivery == Delivery::Never) {
                queue.spend(client);
            }
            match &mut outcome {
                Ok(response) => shared.listen(queue, &asks, response).await,
                Err(failure) if failure.delivery == Delivery::Never => shared.limits.refund(charge).await,
                Err(_) => {}
            }
            outcome
        })
    }
}

/// Who asks for what.
#[derive(Clone, Copy)]
struct Asks<'a> {
    budgets: [BudgetId; 2],
    client: ClientKey,
    of: &'a Environment,
    deadline: Instant,
}

impl<L: LimitStore> Shared<L> {
    /// Draws from both budgets, waiting where that can end in time.
    async fn reserve(&self, queue: &Queue, asks: &Asks<'_>) -> Result<Charge, Rejection> {
        let Asks { budgets, client, of, deadline } = *asks;
        queue.touch(client);
        let held_back = || queue.held_back(client, of.limit.requests, of.newcomer_reserve);
        let lane = if held_back() == 0 { Lane::Below } else { Lane::Above };
        // Whoever comes now stands behind those who wait: it takes a slot at once only if theirs are there too.
        let draw = Draw { budgets, ahead: queue.waiting(lane), held_back: held_back() };
        let refused = match self.limits.acquire(draw).await {
            Ok(charge) => return Ok(self.allowed(charge)),
            Err(refused) => refused,
        };
        let patience = deadline.min(Instant::now() + self.retry.max_queue_wait);
        if refused.until.to_instant() > patience {
            return Err(self.refused(budgets, &refused));
        }
        let bounds = Bounds { all: self.retry.max_queue, per_client: self.retry.max_queue_per_client };
        let Some(mut place) = queue.enter(client, lane, bounds) else {
            return Err(self.refused(budgets, &refused));
        };
        if timeout_at(patience, place.turn()).await.is_err() {
            // Asked again: what was true when it came may be long past, or a gate may have shut since.
            let ahead = queue.waiting(lane).saturating_sub(1);
            return match self.limits.acquire(Draw { budgets, ahead, held_back: held_back() }).await {
                Ok(charge) => Ok(self.allowed(charge)),
                Err(refused) => Err(self.refused(budgets, &refused)),
            };
        }
        loop {
            match self.limits.acquire(Draw { budgets, ahead: 0, held_back: held_back() }).await {
                Ok(charge) => return Ok(self.allowed(charge)),
                Err(refused) if refused.until.to_instant() > patience => {
                    return Err(self.refused(budgets, &refused));
                }
                Err(refused) => sleep_until(refused.until.to_instant()).await,
            }
        }
    }

    fn allowed(&self, charge: Charge) -> Charge {
        self.metrics.decision(Policy::Environment, Outcome::Allowed);
        self.metrics.decision(Policy::Egress, Outcome::Allowed);
        charge
    }

    fn refused(&self, budgets: [BudgetId; 2], refused: &Refused) -> Rejection {
        let (limit, policy) = match (refused.gate, refused.budget == budgets[0]) {
            (true, _) => (Limit::Upstream, Policy::Upstream),
            (false, true) => (Limit::Environment, Policy::Environment),
            (false, false) => (Limit::Egress, Policy::Egress),
        };
        self.metrics.decision(policy, Outcome::Refused);
        Rejection::RateLimited { limit, wait: refused.until.since(Timestamp::now()) }
    }

    /// Takes note of upstream's count; on 429 shuts the budget it speaks for.
    async fn listen(&self, queue: &Queue, asks: &Asks<'_>, response: &mut Response<ResponseBody>) {
        let refused = response.status() == StatusCode::TOO_MANY_REQUESTS;
        let headers = response.headers_mut();
        let (of, [environment, egress]) = (asks.of, asks.budgets);
        if !refused {
            queue.answered();
            if let Some(observation) = ratelimit::observe(headers, unix_now()) {
                self.limits.observe(environment, observation).await;
            }
            // They speak of our key, not of the caller's: what the caller sees is ours.
            for name in ratelimit::UPSTREAM_FIELDS {
                headers.remove(name);
            }
            return;
        }
        let (budget, name, window) = if speaks_for_environment(headers) {
            (environment, of.name.as_str(), of.limit.window)
        } else {
            (egress, EGRESS, self.egress_window)
        };
        let refusals = queue.refused();
        let wait = match ratelimit::retry_hint(headers, unix_now()) {
            // At least a second, also where the window is shorter.
            Some(hint) => hint.min(window).max(Duration::from_secs(1)),
            None => full_jitter(&self.retry, refusals),
        };
        self.metrics.upstream_rate_limited(name);
        tracing::warn!(
            budget = name,
            wait_seconds = wait.as_secs_f64(),
            "upstream answered 429: the budget is shut"
        );
        response.extensions_mut().insert(ShutFor(wait));
        self.limits.penalise(budget, wait).await;
    }
}

/// The API's limiter sends `RateLimit-*`; its edge, which counts our address, does not.
fn speaks_for_environment(headers: &HeaderMap) -> bool {
    headers.contains_key(RATELIMIT_LIMIT) || headers.contains_key(ratelimit::RATELIMIT)
}

/// Exponential backoff with full jitter: anything up to `initial × 2ⁿ`, so that replicas do not come back together.
fn full_jitter(retry: &Retry, refusals: u32) -> Duration {
    let ceiling = retry.initial_backoff.saturating_mul(2u32.saturating_pow(refusals.min(16)));
    ceiling.min(retry.max_backoff).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests;
