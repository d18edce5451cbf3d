//! Runs a stream's task as far as it goes before it becomes a task of the runtime's: most answers are there at once, and a
//! task that is over by then is none. Making one, waking it and taking it down again is a tenth of a hit over HTTP/2.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

/// What HTTP/2 is served by.
#[derive(Debug, Clone, Default)]
pub(super) struct Eager(TaskTracker);

impl<F> Executor<F> for Eager
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        // Nobody has to be woken: what is not ready is polled again when its task begins.
        let ready = pin!(&mut future).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if !ready {
            self.0.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn what_is_ready_is_over_at_once_and_what_waits_is_woken() {
        let (over, wake) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let (eager, count) = (Eager::default(), over.clone());
        eager.execute(async move {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(over.load(Ordering::Relaxed), 1);
        let (count, woken) = (over.clone(), wake.clone());
        eager.execute(async move {
            woken.notified().await;
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!((over.load(Ordering::Relaxed), eager.0.len()), (1, 1));
        wake.notify_one();
        eager.0.close();
        eager.0.wait().await;
        assert_eq!(over.load(Ordering::Relaxed), 2);
    }
}
