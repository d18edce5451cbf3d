//! Authorize: method, route, version and origin → [`Permit`], the type that everything below requires.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{HeaderMap, HeaderName, HeaderValue, ORIGIN};
use tower::{Layer, Service};

use crate::domain::access::ShadowRefusal;
use crate::domain::environment::Environment;
use crate::domain::target::Extracted;
use crate::exchange::{Authenticated, Exchange, Journal, Permit, Permitted};
use crate::rejection::{Gate, Rejection};
use crate::telemetry::labels::{Outcome, Policy};
use crate::telemetry::metrics::Metrics;

const VERSION: HeaderName = HeaderName::from_static("metorial-version");
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const CONSUMER_SECRET: HeaderName = HeaderName::from_static("metorial-consumer-session-client-secret");

/// Asks the environment's rules.
#[derive(Clone)]
pub struct AuthorizeLayer {
    metrics: Arc<Metrics>,
}

impl AuthorizeLayer {
    /// Counts in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, metrics: self.metrics.clone() }
    }
}

/// See [`AuthorizeLayer`].
#[derive(Clone)]
pub struct Authorize<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Service<Exchange<Authenticated>> for Authorize<S>
where
    S: Service<Exchange<Permitted>, Error = Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = Gate<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<Authenticated>) -> Self::Future {
        let Exchange { request, stage, deadline, journal } = exchange;
        let Authenticated { target, extracted, client, environment } = stage;
        let decision = decide(&environment.environment, request.headers(), &extracted).and_then(|()| {
            Permit::decide(environment.clone(), request.method(), target).map_err(|denied| {
                denied.template.and_then(|template| journal.refused_route.set(template).err());
                denied.rule.and_then(|rule| journal.refusing_rule.set(rule).err());
                match denied.ambiguous {
                    true => Rejection::BadRequest(denied.message.into()),
                    false => Rejection::Forbidden { message: denied.message, hint: denied.hint },
                }
            })
        });
        match decision {
            Ok(permit) => {
                self.metrics.decision(Policy::Authorize, Outcome::Allowed);
                journal.decided.set((environment, Some(permit.route().id))).ok();
                if let Some(refusal) = permit.shadow() {
                    self.report(&permit, refusal, &journal);
                }
                let stage = Permitted { client, permit, unless: None, refused: None };
                Gate::passed(self.inner.call(Exchange { request, stage, deadline, journal }))
            }
            Err(rejection) => {
                self.metrics.decision(Policy::Authorize, Outcome::Refused);
                journal.decided.set((environment, None)).ok();
                journal.leave(request);
                Gate::refused(rejection)
            }
        }
    }
}

impl<S> Authorize<S> {
    /// Tells what a shadow rule would have refused. The request goes on all the same.
    fn report(&self, permit: &Permit, refusal: ShadowRefusal, journal: &Journal) {
        let environment = &*permit.environment().environment.name;
        self.metrics.shadow_refused(environment, &refusal.rule);
        tracing::info!(
            request_id = &*journal.request_id,
            environment,
            rule = refusal.rule,
            constraint = refusal.constraint,
            route = permit.route().template,
            "a shadow rule would have refused this request"
        );
        journal.shadow.set(Box::new(refusal)).ok();
    }
}

/// What has to hold whatever the route.
fn decide(environment: &Environment, headers: &HeaderMap, extracted: &Extracted) -> Result<(), Rejection> {
    let forbidden = |message: &str, hint: Option<&str>| {
        Err(Rejection::Forbidden { message: message.to_owned(), hint: hint.map(str::to_owned) })
    };
    // Compared, not looked up: so long a name would be hashed each time, and it is in hardly any request.
    if extracted.consumer_secret || headers.keys().any(|name| *name == CONSUMER_SECRET) {
        return forbidden("Requests with a consumer's secret are not served by this proxy.", None);
    }
    // An Origin authenticates browsers only, so its absence means nothing.
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        if origins.next().is_some() {
            return Err(Rejection::BadRequest("there is more than one Origin field".into()));
        }
        if !environment.origins.allows(origin.as_bytes()) {
            let hint = "The operator can list it in this environment's origins.";
            return forbidden("This origin may not use this proxy from a browser.", Some(hint));
        }
    } else if environment.keyless && headers.get_all(&SITE).iter().any(is_foreign) {
        // A page can have its browser send a GET without an Origin, and no key keeps it from being served.
        return forbidden("Pages of other sites may not use this proxy.", None);
    }
    // Another version answers differently. The API reads the field first, but both have to be among the accepted ones.
    let mut versions = headers.get_all(&VERSION).iter();
    let header = versions.next().map(|version| version.as_bytes());
    if versions.next().is_some() {
        return Err(Rejection::BadRequest("there is more than one metorial-version field".into()));
    }
    let parameter = extracted.api_version.as_deref();
    let accepted = match (header, parameter) {
        (None, None) => environment.versions.allows(None),
        (header, parameter) => [header, parameter]
            .into_iter()
            .flatten()
            .all(|version| environment.versions.allows(Some(version))),
    };
    if accepted {
        Ok(())
    } else {
        let hint = "The operator can list it in this environment's versions.";
        forbidden("This proxy does not serve this API version.", Some(hint))
    }
}

/// Whether a browser says that another site's page asks (Fetch Metadata). Programs say nothing.
fn is_foreign(site: &HeaderValue) -> bool {
    site != "same-origin" && site != "none"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::origin::Origins;

    fn ask(fields: &[(&'static str, &'static str)], extracted: &Extracted) -> Result<(), u16> {
        ask_of(Environment::example("a"), fields, extracted)
    }

    fn ask_of(
        mut environment: Environment,
        fields: &[(&'static str, &'static str)],
        extracted: &Extracted,
    ) -> Result<(), u16> {
        environment.origins = Origins::new(vec!["https://app.example".into()]);
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a value"));
        }
        decide(&environment, &headers, extracted).map_err(|rejection| rejection.status().as_u16())
    }

    #[test]
    fn where_no_key_is_needed_pages_of_other_sites_are_refused() {
        for (fields, keyless, keyed) in [
            (&[("sec-fetch-site", "cross-site")] as &[_], Err(403), Ok(())),
            (&[("sec-fetch-site", "same-site")], Err(403), Ok(())),
            (&[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], Err(403), Ok(())),
            (&[("sec-fetch-site", "same-origin")], Ok(()), Ok(())),
            (&[("sec-fetch-site", "none")], Ok(()), Ok(())),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://app.example")], Ok(()), Ok(())),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")], Err(403), Err(403)),
        ] {
            let sidecar = Environment { keyless: true, ..Environment::example("a") };
            assert_eq!(ask_of(sidecar, fields, &Extracted::default()), keyless, "{fields:?}");
            assert_eq!(ask(fields, &Extracted::default()), keyed, "{fields:?}");
        }
    }

    #[test]
    fn origin_version_and_consumer_secret_are_judged() {
        let none = Extracted::default();
        assert_eq!(ask(&[], &none), Ok(()));
        for (fields, expected) in [
            (&[("origin", "https://app.example")] as &[_], Ok(())),
            (&[("origin", "https://evil.example")], Err(403)),
            (&[("origin", "null")], Err(403)),
            (&[("origin", "https://app.example"), ("origin", "https://app.example")], Err(400)),
            (&[("metorial-version", "2026-01-01-magnetar")], Ok(())),
            (&[("metorial-version", "2025-01-01-pulsar")], Ok(())),
            (&[("metorial-version", "mt_2025_01_01_dashboard")], Err(403)),
            (&[("metorial-version", "magnetar"), ("metorial-version", "magnetar")], Err(400)),
            (&[("metorial-consumer-session-client-secret", "x")], Err(403)),
        ] {
            assert_eq!(ask(fields, &none), expected, "{fields:?}");
        }
        let version = |version: &str| Extracted {
            api_version: Some(version.as_bytes().to_vec()),
            ..Extracted::default()
        };
        assert_eq!(ask(&[], &version("magnetar")), Ok(()));
        assert_eq!(ask(&[], &version("dashboard")), Err(403));
        assert_eq!(ask(&[("metorial-version", "magnetar")], &version("dashboard")), Err(403));
        assert_eq!(ask(&[], &Extracted { consumer_secret: true, ..Extracted::default() }), Err(403));
    }
}
