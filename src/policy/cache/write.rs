//! Writes: each that may have succeeded makes the pages of its collections unreachable.

use std::sync::Arc;

use http::Response;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::Shared;
use crate::body::ResponseBody;
use crate::domain::operation::collection;
use crate::exchange::{Exchange, Journal, Permitted};
use crate::rejection::{Rejection, UpstreamFault};
use crate::store::limits::LimitStore;
use crate::store::pages::PageStore;
use crate::time::sleep;

pub(super) async fn write<P, L, S>(
    shared: Arc<Shared<P, L>>,
    mut inner: S,
    exchange: Exchange<Permitted>,
) -> Result<Response<ResponseBody>, Rejection>
where
    P: PageStore,
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection>,
{
    let mut pending = Pending::new(shared, &exchange);
    let outcome = inner.call(exchange).await;
    if pending.was_sent() && may_have_happened(&outcome) {
        pending.invalidate().await;
    }
    // An answer settles it; without one upstream may still be at it.
    let settled = outcome.is_ok() || !may_have_happened(&outcome) || !pending.was_sent();
    if settled {
        pending.done();
    }
    outcome
}

/// Whether upstream may have changed something: anything but its own refusal, or none of it ever reached it.
fn may_have_happened(outcome: &Result<Response<ResponseBody>, Rejection>) -> bool {
    match outcome {
        Ok(response) => !response.status().is_client_error(),
        Err(Rejection::Upstream(fault)) => !matches!(
            fault,
            UpstreamFault::Dns
                | UpstreamFault::ConnectionRefused
                | UpstreamFault::ConnectionTimeout
                | UpstreamFault::Unavailable
                | UpstreamFault::TlsCertificate
                | UpstreamFault::TlsProtocol
        ),
        Err(Rejection::RateLimited { .. } | Rejection::UpstreamCredentials) => false,
        Err(_) => true,
    }
}

/// What a write has to drop. A caller that leaves before the answer has been seen leaves an unknown outcome.
struct Pending<P: PageStore, L: LimitStore> {
    shared: Arc<Shared<P, L>>,
    budget: String,
    collections: Vec<String>,
    journal: Arc<Journal>,
}

impl<P: PageStore, L: LimitStore> Pending<P, L> {
    fn new(shared: Arc<Shared<P, L>>, exchange: &Exchange<Permitted>) -> Self {
        let (permit, journal) = (&exchange.stage.permit, exchange.journal.clone());
        let route = permit.route();
        let own = collection(permit.target().path()).to_owned();
        let named = route.invalidates.iter().map(|path| collection(path).to_owned());
        let collections = std::iter::once(own).chain(named).collect();
        Self { shared, budget: permit.environment().environment.budget.clone(), collections, journal }
    }

    /// Whether an attempt was made at all: one that still waits, or whose body never came, changed nothing.
    fn was_sent(&self) -> bool {
        self.journal.attempts() > 0
    }

    async fn invalidate(&self) {
        invalidate(&self.shared, &self.budget, &self.collections).await;
    }

    fn done(&mut self) {
        self.collections.clear();
    }
}

impl<P: PageStore, L: LimitStore> Drop for Pending<P, L> {
    fn drop(&mut self) {
        if self.collections.is_empty() || !self.was_sent() {
            return;
        }
        let (shared, budget) = (self.shared.clone(), std::mem::take(&mut self.budget));
        let collections = std::mem::take(&mut self.collections);
        // Now, and once more when upstream must be done: a list fetched in between may lack the write. A task that drain
        // does not wait for, because there are no pages to drop once the process has gone.
        TaskTracker::new().spawn(async move {
            invalidate(&shared, &budget, &collections).await;
            sleep(shared.request_timeout).await;
            invalidate(&shared, &budget, &collections).await;
        });
    }
}

async fn invalidate<P: PageStore, L: LimitStore>(
    shared: &Shared<P, L>,
    budget: &str,
    collections: &[String],
) {
    for collection in collections {
        shared.pages.invalidate(budget, collection).await;
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn only_what_surely_changed_nothing_drops_nothing() {
        let answered = |status: u16| {
            let mut response = Response::new(ResponseBody::empty());
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            may_have_happened(&Ok(response))
        };
        for (status, expected) in
            [(200, true), (302, true), (500, true), (503, true), (400, false), (404, false)]
        {
            assert_eq!(answered(status), expected, "{status}");
        }
        for (rejection, expected) in [
            (Rejection::Upstream(UpstreamFault::ConnectionRefused), false),
            (Rejection::Upstream(UpstreamFault::ConnectionTerminated), true),
            (Rejection::Upstream(UpstreamFault::ResponseTimeout), true),
            (Rejection::SecretGuard, true),
            (Rejection::UpstreamCredentials, false),
        ] {
            assert_eq!(may_have_happened(&Err(rejection.clone())), expected, "{rejection:?}");
        }
    }
}
