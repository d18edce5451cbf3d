//! The life of a request at the stand-in, in the order of the API: record, edge limit, authentication, limit, route.

use std::net::IpAddr;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::domain::key::SecretKey;
use crate::mock::Options;
use crate::mock::answer::{Answer, version};
use crate::mock::auth::{self, Caller};
use crate::mock::body;
use crate::mock::error::ApiError;
use crate::mock::faults::{Fault, Faults, Reset};
use crate::mock::handlers;
use crate::mock::limit::{Algorithm, Limiters, Verdict};
use crate::mock::query::Query;
use crate::mock::record::Recorder;
use crate::mock::seed::Item;
use crate::mock::store::Store;
use crate::time::{self, Timestamp};

/// All that the stand-in remembers.
#[derive(Debug)]
pub(crate) struct State {
    key: Option<SecretKey>,
    latency: Duration,
    store: Store,
    limits: Mutex<Limiters<String>>,
    egress: Mutex<Limiters<IpAddr>>,
    pub(crate) recorder: Mutex<Recorder>,
    pub(crate) faults: Mutex<Faults>,
}

impl State {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            key: options.key.clone(),
            latency: options.latency,
            store: Store::new(options.items),
            limits: Mutex::new(Limiters::new(options.limit, options.algorithm)),
            egress: Mutex::new(Limiters::new(options.egress_limit, Algorithm::Trailing)),
            recorder: Mutex::default(),
            faults: Mutex::default(),
        }
    }

    /// Answers a request of `peer`; the fault that it met is the connection's to act out.
    pub(crate) async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> (Answer, Option<Fault>) {
        let (head, incoming) = request.into_parts();
        let number = self.recorder.lock().receive(&head.method, &head.uri, &head.headers);
        let admitted = self.egress.lock().take(&peer, Timestamp::now()).allowed;
        let (mut answer, fault) = if admitted {
            let fault = self.faults.lock().take(&head.method, head.uri.path());
            (self.api(&head, incoming, fault.as_ref()).await, fault)
        } else {
            self.recorder.lock().refused += 1;
            drain(incoming).await;
            (Answer::edge(), None)
        };
        let delay = self.latency + fault.as_ref().map_or(Duration::ZERO, Fault::delay);
        if !delay.is_zero() {
            time::sleep(delay).await;
        }
        if let Some(fault) = &fault {
            dress(&mut answer, fault, &head);
        }
        let silent = fault.as_ref().is_some_and(|fault| fault.reset == Some(Reset::Before));
        if !silent {
            self.recorder.lock().answered(number, answer.status.as_u16());
        }
        (answer, fault)
    }

    async fn api(&self, head: &http::request::Parts, incoming: Incoming, fault: Option<&Fault>) -> Answer {
        let refusal = fault.and_then(Fault::refusal);
        let query = Query::parse(head.uri.query().unwrap_or(""));
        let gate = self.gate(head, &query, refusal);
        // Read in any case: an answer over an unread body costs the caller its connection.
        let body = body::read(incoming).await;
        let (caller, verdict) = match gate {
            Ok(passed) => passed,
            Err(mut answer) => {
                // A fault has the last word, except over the limit's.
                if let Some(status) = refusal.filter(|_| answer.status != StatusCode::TOO_MANY_REQUESTS) {
                    answer.replace(status);
                }
                return *answer;
            }
        };
        let mut answer = Answer::new(StatusCode::OK);
        match (refusal, body) {
            (Some(status), _) => answer.replace(status),
            (None, Ok(body)) => answer = handlers::answer(&self.store, head, &query, &caller, &body),
            (None, Err(error)) => answer = Answer::error(&error),
        }
        answer.routed(version(&head.headers, &query));
        // For secret keys they are left out: a browser must not read with one.
        if caller.publishable {
            answer.cors(&head.headers);
        }
        answer.rate_limit(self.limits.lock().quota(), &verdict);
        answer
    }

    /// Whether a request gets to a handler: who calls, and how often. An answer where it doesn't.
    fn gate(
        &self,
        head: &http::request::Parts,
        query: &Query,
        refusal: Option<StatusCode>,
    ) -> Result<(Caller, Verdict), Box<Answer>> {
        if let Some(answer) = Answer::before_authentication(&head.method, head.uri.path(), &head.headers) {
            return Err(Box::new(answer));
        }
        let caller = auth::identify(&head.headers, query, self.key.as_ref()).map_err(|error| {
            let mut answer = Answer::error(&error);
            answer.cors(&head.headers);
            answer.powered_by();
            Box::new(answer)
        })?;
        let mut limits = self.limits.lock();
        let quota = limits.quota();
        let verdict = match refusal {
            Some(StatusCode::TOO_MANY_REQUESTS) => {
                Verdict { allowed: false, remaining: 0, reset: quota.window }
            }
            _ => limits.take(&caller.organization, Timestamp::now()),
        };
        let mut recorder = self.recorder.lock();
        if verdict.allowed {
            recorder.counted += 1;
            return Ok((caller, verdict));
        }
        if refusal != Some(StatusCode::TOO_MANY_REQUESTS) {
            recorder.refused += 1;
        }
        // Neither CORS nor a request id: the API's limiter answers before both.
        let mut answer = Answer::error(&ApiError::rate_limited());
        answer.rate_limit(quota, &verdict);
        Err(Box::new(answer))
    }
}

/// What a fault changes of an answer that is sent all the same.
fn dress(answer: &mut Answer, fault: &Fault, head: &http::request::Parts) {
    // A refusal is there already; what remains is another kind of success.
    let status = fault.status.and_then(|status| StatusCode::from_u16(status).ok());
    if let Some(status) = status.filter(|status| status.is_success() && answer.status.is_success()) {
        answer.status = status;
    }
    let echoed = auth::authorization(&head.headers).filter(|_| fault.echo);
    if let Some(value) = echoed {
        if let Ok(field) = http::HeaderValue::try_from(&value) {
            answer.headers.insert("x-echo", field);
        }
        let mut body = serde_json::from_slice::<Item>(&answer.body).unwrap_or_default();
        body.insert("echo".to_owned(), value.into());
        answer.body = serde_json::to_vec(&body).map(bytes::Bytes::from).unwrap_or_default();
    }
    if matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        answer.body = bytes::Bytes::new();
        answer.headers.remove(http::header::CONTENT_TYPE);
    }
    fault.change(&mut answer.headers);
}

/// Reads a body for its connection's sake.
async fn drain(incoming: Incoming) {
    // Whether it could be read matters to nobody.
    body::read(incoming).await.ok();
}
