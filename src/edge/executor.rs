//! Where the library's own tasks run: on the thread of the connection that they are of.

use std::future::Future;

use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

/// The thread that asks, which has a runtime of its own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ThisThread;

impl<F: Future + 'static> Executor<F> for ThisThread
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        TaskTracker::new().spawn_local(future);
    }
}
