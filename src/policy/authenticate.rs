//! Authenticate: publishable key → environment. Nothing of the caller's credential survives this layer.
//!
//! Keys are looked up by digest. A secret key in the hands of a caller is refused even where no key is needed: it has been
//! shown to a browser, and its owner should know.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use foldhash::fast::RandomState;
use http::header::{AUTHORIZATION, HeaderMap};
use tower::{Layer, Service};

use crate::domain::environment::Environment;
use crate::domain::key::{KeyDigest, KeyKind};
use crate::domain::target::Extracted;
use crate::exchange::{Authenticated, DroppedCredential, EnvironmentHandle, Exchange, Identified};
use crate::rejection::{Gate, Rejection};
use crate::store::clients::ClientLimits;
use crate::telemetry::labels::{Outcome, Policy};
use crate::telemetry::metrics::Metrics;

/// What a failed authentication costs beside the request itself, in cells of the client's bucket.
const FAILURE: u32 = 9;

/// Which environment a caller belongs to.
pub struct Callers {
    keyring: Arc<Keyring>,
    /// Keys that were found there, as they came: to know one again takes a tenth of its digest. None that is not known comes in.
    again: RefCell<HashMap<Box<[u8]>, usize, RandomState>>,
    environments: Box<[Rc<EnvironmentHandle>]>,
    keyless: Option<Rc<EnvironmentHandle>>,
}

/// So many keys are known again; beyond them each is looked up by its digest.
const AGAIN: usize = 1024;

/// Publishable keys, each with the place of its environment. All workers look at one.
#[derive(Debug, Clone)]
pub struct Keyring {
    // Digests: nobody can choose them so that they collide.
    places: HashMap<KeyDigest, usize, RandomState>,
}

impl Keyring {
    /// Those of `environments`, in their order.
    pub fn of<'e>(environments: impl Iterator<Item = &'e Environment>) -> Self {
        let keys = environments.enumerate().flat_map(|(place, environment)| {
            environment.publishable_keys.iter().map(move |digest| (*digest, place))
        });
        Self { places: keys.collect() }
    }

    /// With more keys, of the environments at these places.
    #[must_use]
    pub fn and(mut self, more: impl IntoIterator<Item = (KeyDigest, usize)>) -> Self {
        self.places.extend(more);
        self
    }
}

impl Callers {
    /// Keys, and the environments that they are of, in the same order.
    pub fn new(keyring: Arc<Keyring>, environments: &[Rc<EnvironmentHandle>]) -> Self {
        let keyless = environments.iter().find(|handle| handle.environment.keyless).cloned();
        Self { keyring, again: RefCell::default(), environments: environments.into(), keyless }
    }

    fn whose(&self, key: &[u8]) -> Option<&Rc<EnvironmentHandle>> {
        let mut again = self.again.borrow_mut();
        let place = match again.get(key) {
            Some(place) => *place,
            None => {
                let place = *self.keyring.places.get(&KeyDigest::of(key))?;
                if again.len() < AGAIN {
                    again.insert(key.into(), place);
                }
                place
            }
        };
        self.environments.get(place)
    }

    /// Decides on what a caller showed: `Authorization`, else `?token=`, else `?key=` (the API's order).
    fn decide(&self, headers: &HeaderMap, extracted: &Extracted) -> Result<Rc<EnvironmentHandle>, Rejection> {
        let header = bearer(headers)?;
        let shown =
            [header.as_ref().ok().and_then(|key| *key), extracted.token.as_deref(), extracted.key.as_deref()];
        let malformed = header.is_err().then(|| headers.get(AUTHORIZATION)).flatten();
        let hidden = malformed.is_some_and(|line| holds_secret_key(line.as_bytes()));
        if hidden || shown.iter().flatten().any(|key| KeyKind::of(key) == KeyKind::Secret) {
            return Err(Rejection::Unauthorized(
                "This is a secret key: it must never leave a server. Revoke it in the Metorial dashboard and use a \
                 publishable key (metorial_pk_…).",
            ));
        }
        let key = match header {
            Ok(Some(key)) => Some(key),
            Ok(None) => extracted.token.as_deref().or(extracted.key.as_deref()),
            // Malformed, so it is no key of anybody's; a sidecar drops it.
            Err(malformed) => return self.keyless.clone().ok_or(malformed),
        };
        let known = key.and_then(|key| self.whose(key)).or(self.keyless.as_ref());
        known.cloned().ok_or(Rejection::Unauthorized(match key {
            Some(key) if KeyKind::of(key) == KeyKind::Publishable => {
                "This publishable key is not known to this proxy."
            }
            Some(_) => "This is no publishable key (metorial_pk_…).",
            None => "No publishable key was sent.",
        }))
    }
}

/// Whether a secret key stands anywhere in a field that is not of the right form.
fn holds_secret_key(line: &[u8]) -> bool {
    (0..line.len()).any(|at| KeyKind::of(&line[at..]) == KeyKind::Secret)
}

/// The key of the `Authorization` field: nothing, a key, or why it cannot be read.
fn bearer(headers: &HeaderMap) -> Result<Result<Option<&[u8]>, Rejection>, Rejection> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let Some(line) = lines.next() else { return Ok(Ok(None)) };
    if lines.next().is_some() {
        return Err(Rejection::BadRequest("there is more than one Authorization field".into()));
    }
    let line = line.as_bytes().trim_ascii();
    let key = line.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "));
    match key.map(|(_, key)| key) {
        // To the end: so the compiler has it look at sixteen at once, which takes a third.
        Some(key) if !key.is_empty() && key.iter().fold(true, |is, byte| is & byte.is_ascii_graphic()) => {
            Ok(Ok(Some(key)))
        }
        _ => Ok(Err(Rejection::Unauthorized(
            "The Authorization field is not of the form: Bearer metorial_pk_…",
        ))),
    }
}

/// Knows callers by their publishable key.
#[derive(Clone)]
pub struct AuthenticateLayer(Rc<Shared>);

struct Shared {
    callers: Callers,
    clients: Arc<ClientLimits>,
    metrics: Arc<Metrics>,
}

impl AuthenticateLayer {
    /// `clients` is charged more for a failed attempt.
    pub fn new(callers: Callers, clients: Arc<ClientLimits>, metrics: Arc<Metrics>) -> Self {
        Self(Rc::new(Shared { callers, clients, metrics }))
    }
}

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, shared: self.0.clone() }
    }
}

/// See [`AuthenticateLayer`].
#[derive(Clone)]
pub struct Authenticate<S> {
    inner: S,
    shared: Rc<Shared>,
}

impl<S> Service<Exchange<Identified>> for Authenticate<S>
where
    S: Service<Exchange<Authenticated>, Error = Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = Gate<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange<Identified>) -> Self::Future {
        let Shared { callers, clients, metrics } = &*self.shared;
        match callers.decide(exchange.request.headers(), &exchange.stage.extracted) {
            Ok(environment) => {
                metrics.decision(Policy::Authenticate, Outcome::Allowed);
                let removed = exchange.request.headers_mut().remove(AUTHORIZATION);
                if environment.environment.keyless && removed.is_some() {
                    exchange.request.extensions_mut().insert(DroppedCredential);
                }
                Gate::passed(self.inner.call(exchange.stage(|identified| {
                    let Identified { target, mut extracted, client } = identified;
                    (extracted.token, extracted.key) = (None, None);
                    Authenticated { target, extracted, client, environment }
                })))
            }
            Err(rejection) => {
                metrics.decision(Policy::Authenticate, Outcome::Refused);
                clients.penalise(exchange.stage.client, FAILURE);
                exchange.refuse(rejection)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::environment::Environment;
    use crate::exchange::testing::handle;

    fn callers(keyless: bool) -> Callers {
        let environment = |name: &str, keys: &[&str], keyless| {
            let publishable_keys = keys.iter().map(|key| KeyDigest::parse(key).expect("a key")).collect();
            handle(Environment { publishable_keys, keyless, ..Environment::example(name) })
        };
        let environments =
            [environment("a", &["metorial_pk_a"], false), environment("b", &["metorial_pk_b"], keyless)];
        let keyring = Keyring::of(environments.iter().map(|handle| &*handle.environment));
        Callers::new(Arc::new(keyring), &environments)
    }

    fn ask(
        callers: &Callers,
        authorization: &[&str],
        token: Option<&str>,
        key: Option<&str>,
    ) -> Result<String, u16> {
        let mut headers = HeaderMap::new();
        for line in authorization {
            headers.append(AUTHORIZATION, line.parse().expect("a value"));
        }
        let bytes = |text: &str| text.as_bytes().to_vec();
        let extracted = Extracted { token: token.map(bytes), key: key.map(bytes), ..Extracted::default() };
        let decision = callers.decide(&headers, &extracted);
        decision
            .map(|handle| handle.environment.name.clone())
            .map_err(|rejection| rejection.status().as_u16())
    }

    #[test]
    fn a_known_key_names_its_environment_in_the_apis_order() {
        let callers = callers(false);
        for (authorization, token, key, expected) in [
            (&["Bearer metorial_pk_a"] as &[_], None, None, Ok("a")),
            (&["bearer metorial_pk_b"], None, None, Ok("b")),
            (&["Bearer metorial_pk_a"], Some("metorial_pk_b"), None, Ok("a")),
            (&[], Some("metorial_pk_b"), Some("metorial_pk_a"), Ok("b")),
            (&[], None, Some("metorial_pk_a"), Ok("a")),
            (&[], None, None, Err(401)),
            (&["Bearer metorial_pk_x"], None, Some("metorial_pk_a"), Err(401)),
            (&["Bearer  metorial_pk_a"], None, None, Err(401)),
            (&["Basic metorial_pk_a"], None, None, Err(401)),
            (&["metorial_pk_a"], None, None, Err(401)),
            (&["Bearer metorial_pk_a x"], None, None, Err(401)),
            (&["Bearer metorial_pk_a", "Bearer metorial_pk_a"], None, None, Err(400)),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(
                ask(&callers, authorization, token, key),
                expected,
                "{authorization:?} {token:?} {key:?}"
            );
        }
    }

    #[test]
    fn each_key_is_found_again_however_many_there_are_and_no_other_is_kept() {
        let keys: Vec<String> = (0..2 * AGAIN).map(|number| format!("metorial_pk_{number:04}")).collect();
        let whose = |number: usize| ["even", "odd"][number % 2];
        let environments = ["even", "odd"].map(|name| {
            let own = keys.iter().enumerate().filter(|(number, _)| whose(*number) == name);
            let publishable_keys = own.map(|(_, key)| KeyDigest::parse(key).expect("a key")).collect();
            handle(Environment { publishable_keys, ..Environment::example(name) })
        });
        let keyring = Keyring::of(environments.iter().map(|handle| &*handle.environment));
        let callers = Callers::new(Arc::new(keyring), &environments);
        for known in [0, AGAIN, AGAIN] {
            assert_eq!(callers.again.borrow().len(), known);
            for (number, key) in keys.iter().enumerate() {
                assert_eq!(ask(&callers, &[], None, Some(key)), Ok(whose(number).into()));
                assert_eq!(ask(&callers, &[], None, Some(&format!("{key}x"))), Err(401));
            }
        }
    }

    #[test]
    fn a_secret_key_is_refused_wherever_it_stands_even_when_none_is_needed() {
        for keyless in [false, true] {
            let callers = callers(keyless);
            assert_eq!(ask(&callers, &["Bearer metorial_sk_x"], None, None), Err(401));
            assert_eq!(ask(&callers, &["Bearer metorial_pk_a"], Some("metorial_sk_x"), None), Err(401));
            assert_eq!(ask(&callers, &[], None, Some("metorial_uk_x")), Err(401));
            for line in ["metorial_sk_x", "Token metorial_sk_x", "Bearer  metorial_sk_x"] {
                assert_eq!(ask(&callers, &[line], None, None), Err(401), "{line}");
            }
        }
    }

    #[test]
    fn keyless_serves_callers_with_any_other_credential_or_none() {
        let callers = callers(true);
        assert_eq!(ask(&callers, &[], None, None), Ok("b".into()));
        assert_eq!(ask(&callers, &["Basic dXNlcg=="], None, None), Ok("b".into()));
        assert_eq!(ask(&callers, &["Bearer whatever"], None, None), Ok("b".into()));
        assert_eq!(ask(&callers, &["Bearer metorial_pk_a"], None, None), Ok("a".into()));
    }
}
