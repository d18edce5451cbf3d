//! How a connection's task is called when nothing of its own would wake it.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// Calls a connection's task. It listens each time it is polled, with each request, so listening costs no more than a look,
/// where a `select` would poll two futures of the runtime's besides.
#[derive(Debug, Default)]
pub(super) struct Attention {
    called: Cell<bool>,
    listening: RefCell<Option<Waker>>,
}

impl Attention {
    /// Its task is polled soon, and finds that it was called.
    pub(super) fn call(&self) {
        self.called.set(true);
        if let Some(waker) = &*self.listening.borrow() {
            waker.wake_by_ref();
        }
    }

    /// `known`: who listens already.
    pub(super) fn poll(&self, known: &mut Option<Waker>, cx: &Context<'_>) -> Poll<()> {
        if !known.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            let waker = Some(cx.waker().clone());
            self.listening.borrow_mut().clone_from(&waker);
            *known = waker;
        }
        if self.called.replace(false) { Poll::Ready(()) } else { Poll::Pending }
    }
}
