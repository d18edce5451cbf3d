//! Writes: each that may have succeeded makes the pages of its collections unreachable, in every replica before its answer
//! is passed on.

use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Waker};

use http::Response;
use tokio::select;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::Shared;
use crate::body::{BodyError, Lease, ResponseBody};
use crate::domain::operation::collection;
use crate::exchange::{Exchange, Journal, Permitted};
use crate::rejection::Rejection;
use crate::store::limits::LimitStore;
use crate::store::pages::PageStore;
use crate::time::sleep;

/// Has the write done in a task of its own: what has gone upstream may change something there, whoever is still here.
pub(super) async fn write<P, L, S>(
    shared: Rc<Shared<P, L>>,
    mut inner: S,
    exchange: Exchange<Permitted>,
) -> Result<Response<ResponseBody>, Rejection>
where
    P: PageStore,
    L: LimitStore,
    S: Service<Exchange<Permitted>, Response = Response<ResponseBody>, Error = Rejection> + 'static,
{
    let pending = Pending::new(shared.clone(), &exchange);
    let (mut answer, mine) = oneshot::channel();
    shared.tasks.spawn_local(async move {
        let journal = exchange.journal.clone();
        let outcome = select! {
            biased;
            outcome = inner.call(exchange) => outcome,
            () = abandoned(&mut answer, &journal) => return,
        };
        answer.send(pending.settled_by(outcome).await).ok();
    });
    // Without an answer the task panicked.
    mine.await.unwrap_or(Err(Rejection::Internal))
}

/// Resolves when the caller has left and nothing of its request is on its way.
async fn abandoned<T>(answer: &mut oneshot::Sender<T>, journal: &Journal) {
    answer.closed().await;
    journal.idle().await;
}

/// Whether upstream may have changed something: anything but its own refusal, or none of it ever reached it.
fn may_have_happened(outcome: &Result<Response<ResponseBody>, Rejection>) -> bool {
    match outcome {
        Ok(response) => !response.status().is_client_error(),
        Err(Rejection::Upstream(fault)) => !fault.is_of_connecting(),
        Err(Rejection::RateLimited { .. } | Rejection::UpstreamCredentials) => false,
        Err(_) => true,
    }
}

/// What a write has to drop. A caller that leaves before the answer has been seen leaves an unknown outcome.
struct Pending<P: PageStore, L: LimitStore> {
    shared: Rc<Shared<P, L>>,
    budget: String,
    collections: Vec<String>,
    journal: Rc<Journal>,
}

impl<P: PageStore, L: LimitStore> Pending<P, L> {
    fn new(shared: Rc<Shared<P, L>>, exchange: &Exchange<Permitted>) -> Self {
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

    /// Drops what `outcome` may have changed: before anybody sees it, and where it is still coming, once more before its end.
    async fn settled_by(
        mut self,
        outcome: Result<Response<ResponseBody>, Rejection>,
    ) -> Result<Response<ResponseBody>, Rejection> {
        if !self.was_sent() || !may_have_happened(&outcome) {
            self.collections.clear();
            return outcome;
        }
        // Without an answer upstream may still be at it.
        let mut response = outcome?;
        self.shared.pages.invalidate(&self.budget, &self.collections).await;
        match response.body_mut().lease() {
            Some(lease) => *lease = Some(Box::new(Coming { pending: self, lease: lease.take() })),
            None => self.collections.clear(),
        }
        Ok(response)
    }
}

/// The answer to a write that is still coming: upstream may act until it ends.
struct Coming<P: PageStore, L: LimitStore> {
    pending: Pending<P, L>,
    lease: Option<Box<dyn Lease>>,
}

impl<P: PageStore, L: LimitStore> Lease for Coming<P, L> {
    fn finish(mut self: Box<Self>) {
        let (shared, budget) = (self.pending.shared.clone(), std::mem::take(&mut self.pending.budget));
        let collections = std::mem::take(&mut self.pending.collections);
        at_once(async move { shared.pages.invalidate(&budget, &collections).await });
        if let Some(lease) = self.lease {
            lease.finish();
        }
    }

    fn broken(self: Box<Self>, error: &BodyError) {
        if let Some(lease) = self.lease {
            lease.broken(error);
        }
    }
}

/// Does as much as can be done without waiting, and the rest behind the caller's back: in a task that drain does not wait for,
/// because there are no pages to drop once the process has gone.
fn at_once(work: impl Future<Output = ()> + 'static) {
    let mut work = Box::pin(work);
    if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        TaskTracker::new().spawn_local(work);
    }
}

impl<P: PageStore, L: LimitStore> Drop for Pending<P, L> {
    fn drop(&mut self) {
        if self.collections.is_empty() || !self.was_sent() {
            return;
        }
        let (shared, budget) = (self.shared.clone(), std::mem::take(&mut self.budget));
        let collections = std::mem::take(&mut self.collections);
        let again = (shared.clone(), budget.clone(), collections.clone());
        at_once(async move { shared.pages.invalidate(&budget, &collections).await });
        // And once more when upstream must be done: a list fetched in between may lack the write. Never begun here, where a
        // runtime that is being shut down has no timers any more.
        TaskTracker::new().spawn_local(async move {
            let (shared, budget, collections) = again;
            sleep(shared.request_timeout).await;
            shared.pages.invalidate(&budget, &collections).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::rejection::UpstreamFault;

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
