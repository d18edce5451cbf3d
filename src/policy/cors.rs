//! CORS (Fetch standard, §3.2): lets listed origins read answers, errors included, and answers preflights.
//!
//! Stands outside everything that refuses, so that a browser can read a 401 or 429 as well. Preflights are answered here:
//! they carry no key and cost no budget. Before authentication the union of all environments' origins counts, afterwards
//! the environment's own. The official browser SDK sends credentials, so the origin is echoed and never `*`.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, Entry, HOST,
    HeaderMap, HeaderValue, ORIGIN, VARY,
};
use http::{Method, Request, Response, StatusCode, Version};
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tower::{Layer, Service};

use crate::body::ResponseBody;
use crate::domain::origin::Origins;
use crate::exchange::{Exchange, HadFragment, HadManyFields, HadTwoLengths, Journal, Received};
use crate::rejection::Rejection;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
/// The API's own list, and what this proxy adds.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "content-type, authorization, cookies, metorial-version, metorial-instance-id, metorial-organization-id, \
     baggage, sentry-trace, metorial-client, metorial-consumer-profile-id, metorial-consumer-session-client-secret, \
     x-request-id, traceparent",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "ratelimit-policy, ratelimit, retry-after, cache-status, age, etag, proxy-status, x-request-id, metorial-req-id, \
     metorial-version",
);
/// Browsers cap it at two hours anyway (Chromium).
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const BY_ORIGIN: HeaderValue = HeaderValue::from_static("Origin");

/// Adds CORS fields to every answer.
#[derive(Clone)]
pub struct CorsLayer {
    union: Rc<Origins>,
}

impl CorsLayer {
    /// `union`: the origins of all environments.
    pub fn new(union: Origins) -> Self {
        Self { union: Rc::new(union) }
    }
}

impl<S> Layer<S> for CorsLayer {
    type Service = Cors<S>;

    fn layer(&self, inner: S) -> Cors<S> {
        Cors { inner, union: self.union.clone() }
    }
}

/// See [`CorsLayer`].
#[derive(Clone)]
pub struct Cors<S> {
    inner: S,
    union: Rc<Origins>,
}

impl<S> Service<Exchange<Received>> for Cors<S>
where
    S: Service<Exchange<Received>, Response = Response<ResponseBody>, Error = Infallible>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Decorating<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, exchange: Exchange<Received>) -> Self::Future {
        let mut origins = exchange.request.headers().get_all(ORIGIN).iter();
        let (origin, second) = (origins.next(), origins.next());
        if is_preflight(&exchange.request) {
            let response = match second {
                // Else authorize says so.
                Some(_) => refused(
                    Rejection::BadRequest("there is more than one Origin field".into()),
                    &exchange.journal,
                ),
                None => preflight(origin.cloned(), &self.union, &exchange.journal),
            };
            return Decorating::Preflight { response: Some(response) };
        }
        // The operator's own: the caller's would keep the bytes of its request, and the connection's buffer with them.
        let origin = origin.and_then(|origin| self.union.listed(origin.as_bytes())).cloned();
        let journal = exchange.journal.clone();
        Decorating::Answer { future: self.inner.call(exchange), origin, journal }
    }
}

/// Where anything is wrong with how it asks, the layers inside say what.
fn is_preflight<B>(request: &Request<B>) -> bool {
    if request.method() != Method::OPTIONS {
        return false;
    }
    let extensions = request.extensions();
    let hosts = request.headers().get_all(HOST).iter().count();
    request.uri().path().starts_with('/')
        && (hosts == 1 || (hosts == 0 && request.version() != Version::HTTP_11))
        && extensions.get::<HadFragment>().is_none()
        && extensions.get::<HadTwoLengths>().is_none()
        && extensions.get::<HadManyFields>().is_none()
}

/// The answer to a preflight; any OPTIONS is taken as one, as the API does.
fn preflight(origin: Option<HeaderValue>, union: &Origins, journal: &Journal) -> Response<ResponseBody> {
    let allowed = match origin {
        // No browser asks: there is nothing to refuse, and nothing to allow.
        None => None,
        Some(origin) if union.allows(origin.as_bytes()) => Some(origin),
        Some(_) => {
            let rejection = Rejection::Forbidden {
                message: "This origin may not use this proxy from a browser.".to_owned(),
                hint: Some("The operator can list it in this environment's origins.".to_owned()),
            };
            return refused(rejection, journal);
        }
    };
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(VARY, BY_ORIGIN);
    if let Some(origin) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    }
    response
}

/// A preflight that is refused tells the browser nothing but that.
fn refused(rejection: Rejection, journal: &Journal) -> Response<ResponseBody> {
    let mut response = rejection.to_response(&journal.request_id, Duration::ZERO, HeaderMap::new());
    response.headers_mut().insert(VARY, BY_ORIGIN);
    journal.refused(rejection);
    response
}

/// The fields of an answer that is no preflight's, for `origin`, which may read it.
fn decorate(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    // Always, or a shared cache would serve one origin's answer to another; first, for readers that look at the first line only.
    match headers.entry(VARY) {
        Entry::Vacant(vary) => drop(vary.insert(BY_ORIGIN)),
        Entry::Occupied(mut vary) => {
            let rest: SmallVec<[HeaderValue; 2]> = vary.iter().skip(1).cloned().collect();
            let first = vary.insert(BY_ORIGIN);
            std::iter::once(first).chain(rest).for_each(|other| vary.append(other));
        }
    }
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}

pin_project! {
    /// Waits for the answer and decorates it.
    #[project = DecoratingProjection]
    #[expect(missing_docs, reason = "the macro takes no comment on a field of a variant")]
    pub enum Decorating<F> {
        /// Known at once.
        Preflight {
            response: Option<Response<ResponseBody>>
        },
        /// What the layer inside says.
        Answer {
            #[pin]
            future: F,
            origin: Option<HeaderValue>,
            journal: Rc<Journal>
        },
    }
}

impl<F> Future for Decorating<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Infallible>>,
{
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            DecoratingProjection::Preflight { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => Poll::Pending,
            },
            DecoratingProjection::Answer { future, origin, journal } => {
                let Poll::Ready(Ok(mut response)) = future.poll(cx) else { return Poll::Pending };
                let environment = journal.environment();
                let listed = |origin: &HeaderValue| {
                    environment.is_none_or(|handle| handle.environment.origins.allows(origin.as_bytes()))
                };
                decorate(response.headers_mut(), origin.take().filter(listed));
                Poll::Ready(Ok(response))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;
    use crate::domain::environment::Environment;
    use crate::exchange::testing;

    fn origins() -> Origins {
        Origins::new(vec!["https://app.example".into()])
    }

    /// What an answer from an environment with these origins says to `origin`, where `union` has the others' too.
    async fn answered(origin: &'static str, environment: Option<&'static str>) -> HeaderMap {
        let inner = tower::service_fn(move |exchange: Exchange<Received>| {
            if let Some(own) = environment {
                let mut handle = Environment::example("test");
                handle.origins = Origins::new(vec![own.into()]);
                exchange.journal.decided.set((testing::handle(handle), None)).ok();
            }
            std::future::ready(Ok::<_, Infallible>(Response::new(ResponseBody::empty())))
        });
        let union = vec!["https://app.example".into(), "https://other.example".into()];
        let exchange = testing::permitted(Method::GET, "/providers", 1);
        let mut exchange = exchange.stage(|_| Received { peer: [127, 0, 0, 1].into() });
        exchange.request.headers_mut().insert(ORIGIN, HeaderValue::from_static(origin));
        let answer = CorsLayer::new(Origins::new(union)).layer(inner).oneshot(exchange).await;
        answer.map(|answer| answer.into_parts().0.headers).unwrap_or_default()
    }

    #[tokio::test(flavor = "local")]
    async fn a_listed_origin_may_read_and_any_other_is_told_nothing() {
        for (origin, environment, allowed) in [
            ("https://app.example", Some("https://app.example"), true),
            ("https://other.example", Some("https://app.example"), false),
            ("https://other.example", None, true),
            ("https://evil.example", Some("https://app.example"), false),
            ("https://evil.example", None, false),
            ("null", None, false),
        ] {
            let headers = answered(origin, environment).await;
            let told = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(HeaderValue::as_bytes);
            assert_eq!(told, allowed.then_some(origin.as_bytes()), "{origin} {environment:?}");
            assert_eq!(headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS), allowed);
            assert_eq!(headers[VARY], "Origin", "{origin}");
        }
    }

    #[test]
    fn a_preflight_of_a_listed_origin_is_answered_and_any_other_refused() {
        let journal = Journal::of("req_1");
        let answer = |origin: Option<&'static str>| {
            preflight(origin.map(HeaderValue::from_static), &origins(), &journal)
        };
        let good = answer(Some("https://app.example"));
        assert_eq!(good.status(), StatusCode::NO_CONTENT);
        assert!(
            good.headers()[ACCESS_CONTROL_ALLOW_HEADERS]
                .to_str()
                .is_ok_and(|list| list.contains("metorial-version"))
        );
        assert_eq!(good.headers()[ACCESS_CONTROL_MAX_AGE], "7200");
        let anonymous = answer(None);
        assert_eq!(anonymous.status(), StatusCode::NO_CONTENT);
        assert!(!anonymous.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        for origin in [Some("https://evil.example"), Some("null")] {
            let refused = answer(origin);
            assert_eq!(refused.status(), StatusCode::FORBIDDEN);
            assert!(!refused.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        }
    }
}
