//! One request on its way through the layers.
//!
//! An [`Exchange`] changes its type as it passes: [`Received`] → [`Identified`] → [`Authenticated`] → [`Permitted`] → [`Armed`]. A layer
//! takes the stage it needs, so a dangerous order (a cache above authorization) does not compile. What is learned on the
//! way and told on the way out (access log, metrics, limit fields) is written into the [`Journal`].

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request};

use crate::body::RequestBody;
use crate::domain::access::{Denied, Route, RouteId, ShadowRefusal};
use crate::domain::client_ip::ClientKey;
use crate::domain::environment::Environment;
use crate::domain::rotation::Which;
use crate::domain::secret_guard::SecretGuard;
use crate::domain::target::{Extracted, Target};
use crate::rejection::{Gate, Rejection};
use crate::store::limits::BudgetId;
use crate::store::queues::Queue;
use crate::store::secrets::Picked;
use crate::time::Instant;

mod cache_status;
mod journal;

pub use cache_status::{CacheStatus, Kept};
pub use journal::{Answered, Journal, MINTED, RequestId};

/// A request as a connection hands it over.
#[derive(Debug)]
pub struct Arrival {
    /// The request.
    pub request: Box<Request<RequestBody>>,
    /// Who is at the other end of the connection.
    pub peer: IpAddr,
}

/// The target had a fragment, which the parser cut off: an extension of a request.
#[derive(Debug, Clone, Copy)]
pub struct HadFragment;

/// The fields told the length of the body twice, and the parser took one of them out: an extension of a request.
#[derive(Debug, Clone, Copy)]
pub struct HadTwoLengths;

/// There were more fields than are taken, and it is without the rest of them: an extension of a request.
#[derive(Debug, Clone, Copy)]
pub struct HadManyFields;

/// A request at one stage of its way.
#[derive(Debug)]
pub struct Exchange<S> {
    /// Method, fields and body, as received. Boxed: every layer moves it on.
    pub request: Box<Request<RequestBody>>,
    /// What is known so far.
    pub stage: S,
    /// When an answer is due.
    pub deadline: Instant,
    /// What is told at the end.
    pub journal: Rc<Journal>,
}

impl<S: Clone> Exchange<S> {
    /// The same exchange once more, without its body.
    #[must_use]
    pub fn bodyless(&self) -> Self {
        let mut request = Box::new(Request::new(RequestBody::Empty));
        *request.method_mut() = self.request.method().clone();
        *request.headers_mut() = self.request.headers().clone();
        Self { request, stage: self.stage.clone(), deadline: self.deadline, journal: self.journal.clone() }
    }
}

impl<S> Exchange<S> {
    /// Not served: the request is left for what is told about that.
    pub fn refuse<F>(self, rejection: Rejection) -> Gate<F> {
        self.journal.leave(self.request);
        Gate::refused(rejection)
    }

    /// The same request, one stage further.
    pub fn stage<T>(self, next: impl FnOnce(S) -> T) -> Exchange<T> {
        Exchange {
            request: self.request,
            stage: next(self.stage),
            deadline: self.deadline,
            journal: self.journal,
        }
    }
}

/// Nothing is known but the peer.
#[derive(Debug)]
pub struct Received {
    /// The other end of the connection.
    pub peer: IpAddr,
}

/// The target reads one way, and we know who is calling.
pub struct Identified {
    /// What is asked for.
    pub target: Target,
    /// What the query said beside.
    pub extracted: Extracted,
    /// Who asks, as counted.
    pub client: ClientKey,
}

/// The caller's key named an environment; nothing of the credential is left.
pub struct Authenticated {
    /// What is asked for.
    pub target: Target,
    /// What the query said beside the credential.
    pub extracted: Extracted,
    /// Who asks, as counted.
    pub client: ClientKey,
    /// On whose behalf.
    pub environment: Rc<EnvironmentHandle>,
}

/// It may be done.
#[derive(Debug, Clone)]
pub struct Permitted {
    /// Who asks, as counted.
    pub client: ClientKey,
    /// The proof.
    pub permit: Permit,
    /// Only if what we have has changed: `ETag` and `Last-Modified` as upstream sent them.
    pub unless: Option<Box<[Option<HeaderValue>; 2]>>,
    /// The secret key that upstream has refused to this request already.
    pub refused: Option<Which>,
}

/// It goes upstream with the secret key.
pub struct Armed {
    /// The proof.
    pub permit: Permit,
    /// Only if what we have has changed.
    pub unless: Option<Box<[Option<HeaderValue>; 2]>>,
    /// The injected field; sensitive.
    pub authorization: HeaderValue,
    /// Which key it is, and where to tell how that went.
    pub key: Picked,
    /// Finds the environment's secrets in what comes back.
    pub guard: SecretGuard,
}

/// An environment with the handle of its budget.
#[derive(Debug, Clone)]
pub struct EnvironmentHandle {
    /// The environment.
    pub environment: Arc<Environment>,
    /// Its budget in the limit store.
    pub budget: BudgetId,
    /// Who waits for that budget.
    pub queue: Arc<Queue>,
    /// Whose pages its own are: what changes with everything that another answer may come of.
    pub pages: Box<str>,
    /// Its place in the configuration, from 0.
    pub index: usize,
}

/// Proof that a method on a target is allowed. There is no other way to one than the decision itself.
#[derive(Debug, Clone)]
pub struct Permit {
    environment: Rc<EnvironmentHandle>,
    method: Method,
    target: Target,
    route: RouteId,
}

impl Permit {
    /// Decides, by the environment's access table.
    ///
    /// # Errors
    /// Why not.
    pub fn decide(
        environment: Rc<EnvironmentHandle>,
        method: &Method,
        target: Target,
    ) -> Result<Self, Denied> {
        let route = environment.environment.access.decide(method, target.path(), target.query())?.id;
        Ok(Self { environment, method: method.clone(), target, route })
    }

    /// On whose behalf.
    pub fn environment(&self) -> &Rc<EnvironmentHandle> {
        &self.environment
    }

    /// What may be done.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// To what.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// As which route.
    pub fn route(&self) -> &Route {
        self.environment.environment.access.route(self.route)
    }

    /// What a stricter candidate would have refused.
    pub fn shadow(&self) -> Option<ShadowRefusal> {
        self.environment.environment.access.shadow(&self.method, self.target.path(), self.target.query())
    }

    /// The same permit for GET instead of HEAD: what may be asked for without its body may be asked for with it.
    #[must_use]
    pub fn with_body(mut self) -> Self {
        if self.method == Method::HEAD {
            self.method = Method::GET;
        }
        self
    }
}

/// The caller of a keyless environment had a credential of its own, which was dropped.
#[derive(Debug, Clone, Copy)]
pub struct DroppedCredential;

/// Upstream answered 429, and the budget it speaks for is shut for so long.
#[derive(Debug, Clone, Copy)]
pub struct ShutFor(pub Duration);

/// What an attempt to have a request answered upstream came to.
#[derive(Debug)]
pub struct Failure {
    /// What the caller is told.
    pub rejection: Rejection,
    /// Whether upstream may have seen the request.
    pub delivery: Delivery,
    /// The request's body, where it was not used up.
    pub body: Option<RequestBody>,
}

impl Failure {
    /// Refused by ourselves, before anything was sent.
    pub fn refused(rejection: Rejection, body: RequestBody) -> Self {
        Self { rejection, delivery: Delivery::Refused, body: Some(body) }
    }
}

/// A request that upstream did not serve, for whoever sends it once more.
#[derive(Debug)]
pub struct Unserved {
    /// Without its body, which the [`Failure`] has where it was not used up.
    pub request: Box<Request<RequestBody>>,
    /// The proof.
    pub permit: Permit,
    /// Only if what we have has changed.
    pub unless: Option<Box<[Option<HeaderValue>; 2]>>,
}

/// Whether upstream may have seen a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// We refused it ourselves: trying again changes nothing.
    Refused,
    /// Surely not a byte of it was written.
    Never,
    /// Some of it may have been: only what is safe may be sent again.
    Possible,
    /// It was, and was refused for this key alone: with the other one it may be sent again.
    KeyRefused(Which),
    /// It was, and answered 429: nothing was done.
    Limited,
}

impl Delivery {
    /// Whether it may have.
    pub fn is_possible(self) -> bool {
        !matches!(self, Self::Refused | Self::Never)
    }
}

/// Requests for the tests of single layers.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// `method` on `target`, permitted to client `client` in an example environment with budget 0, due in 20 s.
    pub(crate) fn permitted(method: Method, target: &'static str, client: u64) -> Exchange<Permitted> {
        waiting(method, target, client, &Arc::new(Queue::new(Duration::from_secs(600), Arc::default())))
    }

    /// This environment with budget 0.
    pub(crate) fn handle(environment: Environment) -> Rc<EnvironmentHandle> {
        let queue = Arc::new(Queue::new(environment.limit.window, Arc::default()));
        let (environment, pages) = (Arc::new(environment), "test".into());
        Rc::new(EnvironmentHandle { environment, budget: BudgetId(0), queue, pages, index: 0 })
    }

    /// The same, where those who wait for the budget stand in `queue`.
    pub(crate) fn waiting(
        method: Method,
        target: &'static str,
        client: u64,
        queue: &Arc<Queue>,
    ) -> Exchange<Permitted> {
        let handle = EnvironmentHandle {
            environment: Arc::new(Environment::example("test")),
            budget: BudgetId(0),
            queue: queue.clone(),
            pages: "test".into(),
            index: 0,
        };
        let target = http::uri::PathAndQuery::from_static(target);
        let (target, _) = Target::parse(&target, "").expect("a target");
        let permit = Permit::decide(Rc::new(handle), &method, target).expect("permitted");
        let mut request = Box::new(Request::new(RequestBody::Empty));
        *request.method_mut() = method;
        let deadline = Instant::now() + Duration::from_secs(20);
        let stage = Permitted { client: ClientKey(client), permit, unless: None, refused: None };
        Exchange { request, stage, deadline, journal: Rc::new(Journal::of("req_test")) }
    }
}
