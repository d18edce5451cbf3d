//! Whether upstream takes a secret key, asked before it replaces one that works: one cheap GET, charged like any other.
//!
//! The key goes to upstream's authority, by its own connector, and nowhere else; of the answer nothing but its head is
//! looked at.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HOST, HeaderMap, HeaderValue};
use http::uri::Authority;
use http::{Method, StatusCode};

use crate::domain::key::SecretKey;
use crate::domain::ratelimit::{self, UPSTREAM_FIELDS};
use crate::exchange::Journal;
use crate::policy::forward::{Outgoing, Transport};
use crate::policy::inject;
use crate::store::limits::{BudgetId, Draw, LimitStore};
use crate::telemetry::health::UpstreamHealth;
use crate::telemetry::metrics::Metrics;
use crate::time::{Instant, Timestamp, sleep_until, timeout, unix_now};

/// What a secret key may ask for in any version of the API: the instance it belongs to, one short object.
const PATH: &str = "/instance";
/// How long a proof waits for its slot in the budget.
const PATIENCE: Duration = Duration::from_secs(10);

/// What upstream says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It took it.
    Taken,
    /// It refused it with 401.
    Refused,
    /// Nothing, and why.
    Unknown(String),
}

/// Where and how the question is asked.
pub struct Prover<'a, L, T> {
    /// What it is charged to.
    pub limits: &'a Arc<L>,
    /// To upstream.
    pub transport: &'a T,
    /// The only one the key is told.
    pub authority: &'a Authority,
    /// Path prefix of the API: empty, or `/a/b`.
    pub base_path: &'a str,
    /// For the head of the answer.
    pub attempt_timeout: Duration,
    /// Counts.
    pub metrics: &'a Metrics,
    /// How upstream is doing.
    pub health: &'a UpstreamHealth,
}

impl<L: LimitStore, T: Transport> Prover<'_, L, T> {
    /// Asks with `key`, for `environment`, on these budgets: its own and that of our address.
    pub async fn prove(&self, key: &SecretKey, environment: &str, budgets: [BudgetId; 2]) -> Verdict {
        let Some(mut request) = self.request(key) else {
            return Verdict::Unknown("it cannot be sent in a field".into());
        };
        let due = Instant::now() + PATIENCE;
        let charge = loop {
            match self.limits.acquire(Draw { budgets, ahead: 0, held_back: 0 }).await {
                Ok(charge) => break charge,
                Err(refused) if refused.until.to_instant() <= due => {
                    sleep_until(refused.until.to_instant()).await;
                }
                Err(refused) => {
                    let wait = refused.until.since(Timestamp::now()).as_secs();
                    return Verdict::Unknown(format!(
                        "the budget has no room for a request to try it for {wait} s"
                    ));
                }
            }
        };
        let journal = Journal::of("req_reload");
        let started = Instant::now();
        let answer = timeout(self.attempt_timeout, self.transport.send(&mut request, &journal)).await;
        match answer {
            Ok(Ok(answer)) => {
                let (status, fields) = (answer.head.status, &answer.head.headers);
                let end = Ok(status.as_u16());
                self.metrics.client.record(&Method::GET, end, environment, started.elapsed());
                self.health.set_healthy(!status.is_server_error());
                let heard = (status != StatusCode::TOO_MANY_REQUESTS)
                    .then(|| ratelimit::observe(fields, unix_now()))
                    .flatten();
                self.limits.settle(charge, heard);
                if status == StatusCode::TOO_MANY_REQUESTS {
                    let shut = if speaks_for_key(fields) { budgets[0] } else { budgets[1] };
                    let wait = ratelimit::retry_hint(fields, unix_now()).unwrap_or(Duration::from_secs(1));
                    self.limits.penalise(shut, wait.min(Duration::from_secs(600))).await;
                }
                verdict(status, fields)
            }
            Ok(Err(error)) => {
                self.health.set_healthy(false);
                match journal.is_written() {
                    true => drop(self.limits.settle(charge, None)),
                    false => self.limits.refund(charge),
                }
                Verdict::Unknown(format!("upstream failed ({}: {})", error.fault.name(), error.detail))
            }
            Err(_) => {
                self.health.set_healthy(false);
                self.limits.settle(charge, None);
                Verdict::Unknown("upstream did not answer in time".into())
            }
        }
    }

    fn request(&self, key: &SecretKey) -> Option<Outgoing> {
        let mut request = Outgoing::new(Method::GET, format!("{}{PATH}", self.base_path).parse().ok()?);
        request.fields = vec![
            (HOST, HeaderValue::from_str(self.authority.as_str()).ok()?),
            (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            (AUTHORIZATION, inject::field(key)?),
        ];
        Some(request)
    }
}

fn verdict(status: StatusCode, fields: &HeaderMap) -> Verdict {
    match status {
        StatusCode::UNAUTHORIZED => Verdict::Refused,
        // The API counts whom it knows: an answer that tells of the count comes after it has looked at the key.
        _ if status.is_success() || speaks_for_key(fields) => Verdict::Taken,
        _ => Verdict::Unknown(format!("upstream answered {}", status.as_u16())),
    }
}

fn speaks_for_key(fields: &HeaderMap) -> bool {
    UPSTREAM_FIELDS.iter().any(|name| fields.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_comes_after_the_key_was_looked_at_speaks_for_it() {
        let counted = HeaderMap::from_iter([(ratelimit::RATELIMIT_LIMIT, HeaderValue::from_static("5000"))]);
        let silent = HeaderMap::new();
        for (status, fields, expected) in [
            (200, &silent, "Taken"),
            (401, &silent, "Refused"),
            (401, &counted, "Refused"),
            (403, &silent, "Unknown"),
            (403, &counted, "Taken"),
            (429, &silent, "Unknown"),
            (429, &counted, "Taken"),
            (503, &silent, "Unknown"),
            (301, &silent, "Unknown"),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(format!("{:?}", verdict(status, fields)).starts_with(expected), "{status}");
        }
    }
}
