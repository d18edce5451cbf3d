//! Budget: reserves environment and egress in one step for each attempt, and listens to what upstream says of its count.
//!
//! Inside retry, because every attempt pays. A request that finds the budget spent waits its turn as long as
//! that can end within its deadline and `max_queue_wait`; otherwise it is refused at once, with the true time of its slot.
//! Turns go round from client to client, and a reserve is held back from those above their fair share. One 429 from
//! upstream shuts the whole budget, not just this request.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use tokio::select;
use tower::{Layer, Service};

use crate::body::ResponseBody;
use crate::config::Retry;
use crate::domain::client_ip::ClientKey;
use crate::domain::ratelimit::{self, Observation};
use crate::domain::shares::Rule;
use crate::exchange::{EnvironmentHandle, Exchange, Failure, Journal, Permitted, ShutFor};
use crate::rejection::{Limit, Rejection};
use crate::store::limits::{BudgetId, Charge, Draw, EGRESS, LimitStore, Refused};
use crate::store::queues::{Bounds, Lane, Opening, Queue};
use crate::telemetry::labels::{Outcome, Policy};
use crate::telemetry::metrics::Metrics;
use crate::time::{Instant, Timestamp, sleep_until, timeout_at, unix_now, whole_seconds};

mod attempt;

use attempt::Attempt;

/// Charges every attempt.
pub struct BudgetLayer<L>(Rc<Shared<L>>);

/// The budget of our own address.
pub struct Egress {
    /// Its place in the limit store.
    pub budget: BudgetId,
    /// How long it counts.
    pub window: Duration,
    /// Nobody stands in it; it keeps the count of refusals that spoke for the address.
    pub queue: Arc<Queue>,
}

struct Shared<L> {
    limits: Arc<L>,
    egress: Egress,
    retry: Retry,
    /// In seconds.
    max_retry_after: u64,
    metrics: Arc<Metrics>,
}

impl<L: LimitStore> BudgetLayer<L> {
    /// `limits` and `egress` outlive the pipeline. Every request draws on `egress` too. A wait of upstream's beyond
    /// `max_retry_after` is not passed on.
    pub fn new(
        limits: Arc<L>,
        egress: Egress,
        retry: Retry,
        max_retry_after: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let max_retry_after = whole_seconds(max_retry_after);
        Self(Rc::new(Shared { limits, egress, retry, max_retry_after, metrics }))
    }
}

impl<L, S> Layer<S> for BudgetLayer<L> {
    type Service = Budget<L, S>;

    fn layer(&self, inner: S) -> Budget<L, S> {
        Budget(Rc::new(Stack { shared: self.0.clone(), inner: RefCell::new(inner) }))
    }
}

/// See [`BudgetLayer`].
pub struct Budget<L, S>(Rc<Stack<L, S>>);

struct Stack<L, S> {
    shared: Rc<Shared<L>>,
    // To borrow it takes less than a clone for each request.
    inner: RefCell<S>,
}

impl<L, S> Service<Exchange<Permitted>> for Budget<L, S>
where
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Failure> + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Failure>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.0.inner.borrow_mut().poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<Permitted>) -> Self::Future {
        let stack = self.0.clone();
        Box::pin(async move {
            let Stack { shared, inner } = &*stack;
            let asks = Asks::of(&exchange, shared.egress.budget);
            // Upstream's first answer tells what was spent before this process began.
            let opening = asks.handle.queue.opening(asks.deadline).await;
            if let Opening::Overdue { first: true } = opening {
                // It says nothing: carefully, then, as after a 429.
                Box::pin(shared.limits.penalise(asks.handle.budget, Duration::ZERO)).await;
            }
            let charge = match shared.reserve(&asks).await {
                Ok(charge) => charge,
                Err(rejection) => return Err(Failure::refused(rejection, exchange.request.into_body())),
            };
            let attempt = Attempt::begin(&shared.limits, &asks, charge);
            let answer = inner.borrow_mut().call(exchange);
            let shut = match answer.await {
                // It has the gate speak for it. Boxed: there are few, and every request's future would hold room for it.
                Ok(refusal) if refusal.status() == StatusCode::TOO_MANY_REQUESTS => {
                    attempt.answered(None);
                    Box::pin(shared.shut(&asks, charge, refusal))
                }
                Ok(mut response) => {
                    // What else upstream says of its count is of our key, not of the caller's: what the caller sees is ours.
                    // Here and not on the way out, which hits have no use for.
                    let heard = shared.hear(&mut response);
                    // In the middle of a trouble nobody may have looked at the count.
                    let tells = heard.is_some() || !response.status().is_server_error();
                    attempt.answered(heard);
                    shared.served(&asks, charge);
                    if tells {
                        opening.answered();
                    }
                    return Ok(response);
                }
                // It has told nothing of the past.
                Err(failure) => {
                    match failure.delivery.is_possible() {
                        true => attempt.lost(),
                        false => attempt.unsent(),
                    }
                    return Err(failure);
                }
            };
            let refusal = shut.await;
            opening.answered();
            Ok(refusal)
        })
    }
}

/// Who asks for what.
struct Asks {
    budgets: [BudgetId; 2],
    client: ClientKey,
    handle: Rc<EnvironmentHandle>,
    journal: Rc<Journal>,
    deadline: Instant,
}

impl Asks {
    fn of(exchange: &Exchange<Permitted>, egress: BudgetId) -> Self {
        let handle = exchange.stage.permit.environment().clone();
        Self {
            budgets: [handle.budget, egress],
            client: exchange.stage.client,
            handle,
            journal: exchange.journal.clone(),
            deadline: exchange.deadline,
        }
    }

    fn rule(&self) -> Rule {
        self.handle.environment.rule()
    }

    fn held_back(&self) -> u32 {
        self.handle.queue.held_back(self.client, self.rule())
    }
}

impl<L: LimitStore> Shared<L> {
    /// Draws from both budgets, waiting where that can end in time.
    async fn reserve(&self, asks: &Asks) -> Result<Charge, Rejection> {
        let queue = &*asks.handle.queue;
        let held_back = queue.ask(asks.client, asks.rule());
        let lane = if held_back == 0 { Lane::Below } else { Lane::Above };
        // Whoever comes now stands behind those who wait: it takes a slot at once only if theirs are there too.
        let ahead = queue.ahead(asks.client, lane);
        match self.draw(asks, ahead, held_back).await {
            Ok(charge) => Ok(charge),
            // Boxed: most need not wait, and every request's future would hold room for it.
            Err(refused) => Box::pin(self.wait(asks, lane, refused)).await,
        }
    }

    /// Waits for a slot where that can end in time.
    async fn wait(&self, asks: &Asks, lane: Lane, refused: Refused) -> Result<Charge, Rejection> {
        let queue = &*asks.handle.queue;
        let patience = asks.deadline.min(Instant::now() + self.retry.max_queue_wait);
        if refused.until.to_instant() > patience {
            return Err(self.refused(asks, &refused));
        }
        let bounds = Bounds { all: self.retry.max_queue, per_client: self.retry.max_queue_per_client };
        let Some(mut place) = queue.enter(asks.client, lane, bounds) else {
            return Err(self.refused(asks, &refused));
        };
        if timeout_at(patience, place.turn()).await.is_err() {
            // Asked again: what was true when it came may be long past, or a gate may have shut since.
            let ahead = queue.ahead(asks.client, lane).saturating_sub(1);
            let drawn = self.draw(asks, ahead, asks.held_back()).await;
            return drawn.map_err(|refused| self.refused(asks, &refused));
        }
        loop {
            let rung = place.rung();
            let refused = match self.draw(asks, 0, asks.held_back()).await {
                Ok(charge) => return Ok(charge),
                Err(refused) => refused,
            };
            if refused.until.to_instant() > patience {
                return Err(self.refused(asks, &refused));
            }
            select! {
                () = sleep_until(refused.until.to_instant()) => {}
                () = rung => {}
            }
        }
    }

    async fn draw(&self, asks: &Asks, ahead: u32, held_back: u32) -> Result<Charge, Refused> {
        let drawn = self.limits.acquire(Draw { budgets: asks.budgets, ahead, held_back }).await;
        match drawn {
            Ok(charge) => {
                self.metrics.decision(Policy::Environment, Outcome::Allowed);
                self.metrics.decision(Policy::Egress, Outcome::Allowed);
                Ok(charge)
            }
            // What is held back shrinks as time passes: its slot may come sooner than the budget alone can say.
            Err(refused) if held_back > 0 => {
                let (queue, limits) = (&asks.handle.queue, &*self.limits);
                let until = queue.next_slot(limits, &asks.budgets, ahead, asks.client, asks.rule());
                Err(Refused { until: until.max(Timestamp::now()), ..refused })
            }
            Err(refused) => Err(refused),
        }
    }

    fn refused(&self, asks: &Asks, refused: &Refused) -> Rejection {
        let (limit, policy) = match (refused.gate, refused.budget == asks.budgets[0]) {
            (true, _) => (Limit::Upstream, Policy::Upstream),
            (false, true) => (Limit::Environment, Policy::Environment),
            (false, false) => (Limit::Egress, Policy::Egress),
        };
        self.metrics.decision(policy, Outcome::Refused);
        Rejection::RateLimited { limit, wait: refused.until.since(Timestamp::now()) }
    }

    /// Takes out what an answer that is passed on says of limits, but for the wait that its caller may be told.
    fn hear(&self, response: &mut Response<ResponseBody>) -> Option<Observation> {
        let (status, headers) = (response.status(), response.headers_mut());
        ratelimit::bound_retry_after(status, headers, self.max_retry_after, unix_now);
        ratelimit::take_out(headers, unix_now)
    }

    /// Upstream's answer is no 429.
    fn served(&self, asks: &Asks, charge: Charge) {
        for queue in [&asks.handle.queue, &self.egress.queue] {
            queue.refusals.answered(charge.at);
        }
    }

    /// On 429 shuts the budget it speaks for.
    async fn shut(
        &self,
        asks: &Asks,
        charge: Charge,
        mut response: Response<ResponseBody>,
    ) -> Response<ResponseBody> {
        let environment = &asks.handle.environment;
        let headers = response.headers();
        let (budget, name, window, queue) = if speaks_for_environment(headers) {
            (asks.handle.budget, environment.name.as_str(), environment.limit.window, &asks.handle.queue)
        } else {
            (self.egress.budget, EGRESS, self.egress.window, &self.egress.queue)
        };
        let refusals = queue.refusals.refused(charge.at, Timestamp::now());
        let wait = match (ratelimit::retry_hint(headers, unix_now()), refusals) {
            // At least a second, also where the window is shorter.
            (Some(hint), _) => hint.min(window).max(Duration::from_secs(1)),
            (None, Some(before)) => full_jitter(&self.retry, before),
            // In flight with another that was refused: that one's backoff is this one's.
            (None, None) => Duration::ZERO,
        };
        self.metrics.upstream_rate_limited(name);
        tracing::warn!(
            budget = name,
            request_id = &*asks.journal.request_id,
            wait_seconds = wait.as_secs_f64(),
            "upstream answered 429: the budget is shut"
        );
        self.limits.penalise(budget, wait).await;
        let opens = self.limits.fits_at(budget, 0, 0);
        response.extensions_mut().insert(ShutFor(opens.since(Timestamp::now())));
        // Those who wait learn of it now, not when their slot would have come.
        asks.handle.queue.ring();
        response
    }
}

/// The API's limiter sends `RateLimit-*`; its edge, which counts our address, does not.
fn speaks_for_environment(headers: &HeaderMap) -> bool {
    ratelimit::UPSTREAM_FIELDS.iter().any(|name| headers.contains_key(name))
}

/// Exponential backoff with full jitter: anything up to `initial × 2ⁿ`, so that replicas do not come back together.
fn full_jitter(retry: &Retry, refusals: u32) -> Duration {
    let ceiling = retry.initial_backoff.saturating_mul(2u32.saturating_pow(refusals.min(16)));
    ceiling.min(retry.max_backoff).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests;
