//! The order: every request passes these layers from top to bottom, and its answer from bottom to top.
//!
//! No logic here. Each line says which layer, and why it stands where it stands. A dangerous change of places does not
//! compile: the stages of an [`Exchange`](crate::exchange::Exchange) are types.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;

use http::Response;
use tower::util::UnsyncBoxService;
use tower::{Service, ServiceBuilder};

use crate::body::ResponseBody;
use crate::exchange::Arrival;
use crate::policy::admit::AdmitLayer;
use crate::policy::authenticate::AuthenticateLayer;
use crate::policy::authorize::AuthorizeLayer;
use crate::policy::budget::BudgetLayer;
use crate::policy::cache::CacheLayer;
use crate::policy::catch_panic::CatchPanicLayer;
use crate::policy::client_limit::ClientLimitLayer;
use crate::policy::cors::CorsLayer;
use crate::policy::deadline::DeadlineLayer;
use crate::policy::forward::{ForwardLayer, Transport};
use crate::policy::identify::IdentifyLayer;
use crate::policy::inject::InjectLayer;
use crate::policy::observe::ObserveLayer;
use crate::policy::respond::RespondLayer;
use crate::policy::retry::RetryLayer;
use crate::store::limits::LimitStore;
use crate::store::pages::PageStore;

/// All layers as one service: one box, at this outer edge, gives them a name.
///
/// A worker has one, and each request passes through it as it is: cloning it for each would cost as much as finding a page.
/// One request passes it on one thread, from the first byte to the last: nothing on its way is counted or locked for another.
pub struct Pipeline(RefCell<UnsyncBoxService<Arrival, Response<ResponseBody>, Infallible>>);

/// An answer on its way.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>>>>;

impl Pipeline {
    /// Serves one request. No layer has anyone wait until it is ready: each refuses, or waits as part of the request.
    pub fn serve(&self, arrival: Arrival) -> Answering {
        self.0.borrow_mut().call(arrival)
    }
}

/// Each layer, made from one configuration and the parts that outlive it.
pub struct Layers<L, P> {
    /// Request id, metrics, access log.
    pub observe: ObserveLayer,
    /// Origins and preflights.
    pub cors: CorsLayer,
    /// Refusals as HTTP.
    pub respond: RespondLayer<L>,
    /// Panics as refusals.
    pub catch_panic: CatchPanicLayer,
    /// In-flight cap.
    pub admit: AdmitLayer,
    /// The request's deadline.
    pub deadline: DeadlineLayer,
    /// Target and client.
    pub identify: IdentifyLayer,
    /// Limit per client IP.
    pub client_limit: ClientLimitLayer,
    /// Key to environment.
    pub authenticate: AuthenticateLayer,
    /// Rules to permit.
    pub authorize: AuthorizeLayer,
    /// List pages.
    pub cache: CacheLayer<P, L>,
    /// Further attempts.
    pub retry: RetryLayer,
    /// Environment and egress.
    pub budget: BudgetLayer<L>,
    /// The secret key.
    pub inject: InjectLayer,
    /// To upstream and back.
    pub forward: ForwardLayer,
}

/// Stacks the layers over a transport.
pub fn build<L, P, T>(layers: Layers<L, P>, transport: T) -> Pipeline
where
    L: LimitStore,
    P: PageStore,
    T: Transport,
{
    let stack = ServiceBuilder::new()
        // Outermost: a refusal is a served request too.
        .layer(layers.observe)
        // Sees every answer as HTTP, so that a browser can read refusals; answers preflights, which cost nothing.
        .layer(layers.cors)
        // The one place where a refusal becomes HTTP.
        .layer(layers.respond)
        // A panic of any layer below becomes a refusal.
        .layer(layers.catch_panic)
        // Before memory is spent on the request.
        .layer(layers.admit)
        // Waits, retries and coalescing included; carried along.
        .layer(layers.deadline)
        // One reading of target and client: all below decide on what is forwarded.
        .layer(layers.identify)
        // Before authentication: guessing keys must cost.
        .layer(layers.client_limit)
        // Nothing of the caller's credential survives it.
        .layer(layers.authenticate)
        // Its permit is the type that everything below requires.
        .layer(layers.authorize)
        // Below authorize, or a page is served to anyone; above the budgets, so that a hit costs nothing.
        .layer(layers.cache)
        // Inside the cache: coalesced waiters share one loop; every attempt below pays again.
        .layer(layers.retry)
        // Environment and egress in one step per attempt.
        .layer(layers.budget)
        // Innermost but one: no key, line, metric or span above sees the secret.
        .layer(layers.inject)
        // Allowlist, authority, transport, and the guard on what comes back.
        .layer(layers.forward)
        .service(transport);
    Pipeline(RefCell::new(UnsyncBoxService::new(stack)))
}
