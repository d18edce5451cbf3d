//! How a connection's task is called when nothing of its own would wake it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};

/// Calls a connection's task. It listens each time it is polled, with each request, so listening costs no more than a look,
/// where a `select` would poll two futures of the runtime's besides.
#[derive(Debug, Default)]
pub(super) struct Attention {
    called: AtomicBool,
    listening: Mutex<Option<Waker>>,
}

impl Attention {
    fn listening(&self) -> MutexGuard<'_, Option<Waker>> {
        self.listening.lock()
    }

    /// Its task is polled soon, and finds that it was called.
    pub(super) fn call(&self) {
        self.called.store(true, Ordering::Release);
        if let Some(waker) = &*self.listening() {
            waker.wake_by_ref();
        }
    }

    /// `known`: who listens already.
    pub(super) fn poll(&self, known: &mut Option<Waker>, cx: &Context<'_>) -> Poll<()> {
        if !known.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            let waker = Some(cx.waker().clone());
            self.listening().clone_from(&waker);
            *known = waker;
        }
        let called = self.called.load(Ordering::Acquire) && self.called.swap(false, Ordering::Acquire);
        if called { Poll::Ready(()) } else { Poll::Pending }
    }
}
