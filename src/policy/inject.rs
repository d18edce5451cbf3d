//! Inject: the secret key, for one request, innermost but one.
//!
//! No cache key, log line, metric or span above ever sees it. The prepared field is marked sensitive: it prints as
//! `Sensitive` and HPACK does not index it.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::HeaderValue;
use tower::{Layer, Service};

use crate::domain::environment::Environment;
use crate::domain::secret_guard::SecretGuard;
use crate::exchange::{Armed, Exchange, Failure, Permitted};

/// What is kept ready for each environment, by its index.
#[derive(Clone)]
pub struct InjectLayer(Arc<[Prepared]>);

struct Prepared {
    authorization: HeaderValue,
    guard: SecretGuard,
}

impl InjectLayer {
    /// Prepares the field and the guard of every environment.
    ///
    /// # Errors
    /// Names the environment whose key cannot be sent in a field.
    pub fn new<'e>(environments: impl Iterator<Item = &'e Environment>) -> Result<Self, String> {
        let prepared: Result<Vec<Prepared>, String> = environments.map(prepare).collect();
        Ok(Self(prepared?.into()))
    }
}

fn prepare(environment: &Environment) -> Result<Prepared, String> {
    let fault = |_| format!("the secret key of environment {} cannot be used", environment.name);
    let key = environment.secret_key.expose();
    let mut authorization = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| fault(()))?;
    authorization.set_sensitive(true);
    let guard = SecretGuard::new(key).map_err(|_| fault(()))?;
    Ok(Prepared { authorization, guard })
}

impl<S> Layer<S> for InjectLayer {
    type Service = Inject<S>;

    fn layer(&self, inner: S) -> Inject<S> {
        Inject { inner, prepared: self.0.clone() }
    }
}

/// See [`InjectLayer`].
#[derive(Clone)]
pub struct Inject<S> {
    inner: S,
    prepared: Arc<[Prepared]>,
}

impl<S> Service<Exchange<Permitted>> for Inject<S>
where
    S: Service<Exchange<Armed>, Error = Failure>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<Permitted>) -> Self::Future {
        // Handles and prepared secrets are made from the same list, in the same order.
        let prepared = &self.prepared[exchange.stage.permit.environment().index];
        let (authorization, guard) = (prepared.authorization.clone(), prepared.guard.clone());
        self.inner.call(exchange.stage(|Permitted { permit, .. }| Armed { permit, authorization, guard }))
    }
}
