//! Respond: the one place where a [`Rejection`] becomes HTTP, and where limits are told.
//!
//! `RateLimit-Policy` and `RateLimit` stand on every answer after identification, hits and refusals alike; before
//! authentication they tell the client limit only.

use std::convert::Infallible;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::body::ResponseBody;
use crate::domain::client_ip::ClientKey;
use crate::domain::field;
use crate::domain::quota::Quota;
use crate::domain::ratelimit::{self, RATELIMIT, RATELIMIT_POLICY, Standing};
use crate::exchange::{EnvironmentHandle, Exchange, Journal, Received};
use crate::rejection::{FIELDS, Limit, Rejection};
use crate::store::limits::LimitStore;
use crate::time::{Timestamp, whole_seconds};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Turns refusals into answers and tells the limits.
pub struct RespondLayer<L>(Rc<Shared<L>>);

struct Shared<L> {
    limits: Arc<L>,
    /// `RateLimit-Policy` before authentication.
    client: Option<HeaderValue>,
    /// `RateLimit-Policy` of each environment, by its index.
    environments: Box<[Option<HeaderValue>]>,
    max_retry_after: Duration,
}

impl<L> RespondLayer<L> {
    /// `client`: the limit per client IP; a wait beyond `max_retry_after` is not told as `Retry-After`.
    pub fn new(
        limits: Arc<L>,
        client: Quota,
        environments: &[Rc<EnvironmentHandle>],
        max_retry_after: Duration,
    ) -> Self {
        let policy = |environment| value(ratelimit::policy(client, environment));
        let environments = environments.iter().map(|handle| policy(Some(handle.environment.limit)));
        let environments = environments.collect();
        Self(Rc::new(Shared { limits, client: policy(None), environments, max_retry_after }))
    }
}

impl<L, S> Layer<S> for RespondLayer<L> {
    type Service = Respond<L, S>;

    fn layer(&self, inner: S) -> Respond<L, S> {
        Respond { inner, shared: self.0.clone() }
    }
}

/// See [`RespondLayer`].
pub struct Respond<L, S> {
    inner: S,
    shared: Rc<Shared<L>>,
}

impl<L, S: Clone> Clone for Respond<L, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<L, S> Service<Exchange<Received>> for Respond<L, S>
where
    L: LimitStore,
    S: Service<Exchange<Received>, Response = Response<ResponseBody>, Error = Rejection>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Responding<L, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // No layer inside refuses to be ready; it refuses the request, with a reason.
        self.inner.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, exchange: Exchange<Received>) -> Self::Future {
        let (journal, shared) = (exchange.journal.clone(), self.shared.clone());
        let head = *exchange.request.method() == Method::HEAD;
        Responding { future: self.inner.call(exchange), head, journal, shared }
    }
}

pin_project! {
    /// Waits for an answer or a refusal.
    pub struct Responding<L, F> {
        #[pin]
        future: F,
        head: bool,
        journal: Rc<Journal>,
        shared: Rc<Shared<L>>,
    }
}

impl<L, F> Future for Responding<L, F>
where
    L: LimitStore,
    F: Future<Output = Result<Response<ResponseBody>, Rejection>>,
{
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Poll::Ready(outcome) = this.future.poll(cx) else { return Poll::Pending };
        let response = match outcome {
            Ok(mut response) => {
                this.shared.tell(response.headers_mut(), this.journal, None);
                response
            }
            Err(rejection) => {
                // Whoever refused it left it: a flood is made of refusals.
                let left = this.journal.left().map(|mut request| mem::take(request.headers_mut()));
                let (id, room) = (&this.journal.request_id, field::room(left.unwrap_or_default(), FIELDS));
                let response = rejection.to_response(id, this.shared.max_retry_after, room);
                let mut response = if *this.head { headless(response) } else { response };
                this.shared.tell(response.headers_mut(), this.journal, Some(&rejection));
                this.journal.refused(rejection);
                response
            }
        };
        Poll::Ready(Ok(response))
    }
}

impl<L: LimitStore> Shared<L> {
    fn tell(&self, headers: &mut HeaderMap, journal: &Journal, refused: Option<&Rejection>) {
        if let Some((client, standing)) = journal.client.get() {
            let environment = journal.environment();
            let policy = environment.map_or(&self.client, |handle| &self.environments[handle.index]);
            insert(headers, RATELIMIT_POLICY, policy.clone());
            let environment = environment.map(|handle| self.standing(handle, *client, refused));
            insert(headers, RATELIMIT, passing(ratelimit::standing(*standing, environment)));
        }
        insert(headers, CACHE_STATUS, passing(journal.cache_status().and_then(|status| status.field())));
    }

    /// As this caller sees it: what is held back from it is not there for it, and those who wait before it are served first.
    fn standing(
        &self,
        handle: &EnvironmentHandle,
        client: ClientKey,
        refused: Option<&Rejection>,
    ) -> Standing {
        let quota = handle.environment.limit;
        let told = |remaining, wait| Standing { quota, remaining, grows_in: whole_seconds(wait) };
        if let Some(Rejection::RateLimited {
            limit: Limit::Environment | Limit::Egress | Limit::Upstream,
            wait,
        }) = refused
        {
            // As in the body: nothing is left for it, be it of our address's budget, so it is not now.
            return told(0, (*wait).max(Duration::from_secs(1)));
        }
        let rule = handle.environment.rule();
        let held_back = handle.queue.held_back(client, rule);
        let snapshot = self.limits.snapshot(handle.budget, held_back);
        let grows_at = match held_back > 0 && snapshot.remaining == 0 {
            true => Some(handle.queue.next_slot(&*self.limits, &[handle.budget], 0, client, rule)),
            false => snapshot.grows_at.map(Timestamp),
        };
        told(snapshot.remaining, grows_at.map_or(Duration::ZERO, |at| at.since(Timestamp::this_turn())))
    }
}

/// The answer to HEAD: the length of a body that is not sent. HTTP/1 would see to it by itself, HTTP/2 does not.
fn headless(response: Response<ResponseBody>) -> Response<ResponseBody> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| ResponseBody::empty());
    response.headers_mut().extend(length.map(|length| (CONTENT_LENGTH, HeaderValue::from(length))));
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// A value that the next answer has no use for: HPACK is not to keep it (RFC 7541 §7.1.3), or it would drive those out that
/// all answers have.
fn passing(value: Option<HeaderValue>) -> Option<HeaderValue> {
    let mut value = value?;
    value.set_sensitive(true);
    Some(value)
}

fn value(text: String) -> Option<HeaderValue> {
    HeaderValue::try_from(text).ok()
}
