//! Inject: the secret key, for one request, innermost but one.
//!
//! No cache key, log line, metric or span above ever sees it. The prepared field is marked sensitive: it prints as
//! `Sensitive` and HPACK does not index it. While a key takes the place of another, each attempt is sent with the one that
//! upstream is known to take and never with one that it has refused to this request; the guard looks for both.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::HeaderValue;
use tower::{Layer, Service};

use crate::domain::environment::Environment;
use crate::domain::key::SecretKey;
use crate::domain::secret_guard::SecretGuard;
use crate::exchange::{Armed, Exchange, Failure, Permitted};
use crate::store::secrets::Secrets;

/// What is kept ready for each environment, by its index.
#[derive(Clone)]
pub struct InjectLayer(Arc<[Prepared]>);

struct Prepared {
    /// The field for each key.
    authorization: Vec<HeaderValue>,
    secrets: Arc<Secrets>,
    guard: SecretGuard,
}

impl InjectLayer {
    /// Prepares the fields and the guard of every environment; which key is sent is kept in its `Secrets`.
    ///
    /// # Errors
    /// Names the environment whose key cannot be sent in a field.
    pub fn new<'e>(
        environments: impl Iterator<Item = (&'e Environment, &'e Arc<Secrets>)>,
    ) -> Result<Self, String> {
        let prepared: Result<Vec<Prepared>, String> =
            environments.map(|(environment, secrets)| prepare(environment, secrets)).collect();
        Ok(Self(prepared?.into()))
    }
}

fn prepare(environment: &Environment, secrets: &Arc<Secrets>) -> Result<Prepared, String> {
    let keys = || [Some(&environment.secret_key), environment.next_secret_key.as_ref()].into_iter().flatten();
    let fault = || format!("a secret key of environment {} cannot be used", environment.name);
    let fields: Option<Vec<HeaderValue>> = keys().map(field).collect();
    let guard = SecretGuard::new(keys().map(SecretKey::expose)).map_err(|_| fault())?;
    Ok(Prepared { authorization: fields.ok_or_else(fault)?, secrets: secrets.clone(), guard })
}

/// What a request says that is sent with `key`; sensitive. `None`: no field can hold it.
pub fn field(key: &SecretKey) -> Option<HeaderValue> {
    let mut field = HeaderValue::try_from(format!("Bearer {}", key.expose())).ok()?;
    field.set_sensitive(true);
    Some(field)
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
        let key = prepared.secrets.pick(exchange.stage.refused);
        let guard = prepared.guard.clone();
        let authorization = prepared.authorization[key.which().index()].clone();
        self.inner.call(exchange.stage(|Permitted { permit, unless, .. }| Armed {
            permit,
            unless,
            authorization,
            key,
            guard,
        }))
    }
}
