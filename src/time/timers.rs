//! Timers that serve one after another.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::coop::unconstrained;
use tokio::time::Sleep;

use super::{Instant, sleep_until};

/// So many are kept; beyond them each is made for one future alone.
const KEPT: usize = 1024;

/// The timers of one runtime, for what is most often there long before it is due.
///
/// To arm a timer and to take it off again are two ways through the runtime's wheel, each under its lock. One that is only moved
/// on stays there until it would have been due: that is one atomic step.
#[derive(Debug, Default)]
pub struct Timers(RefCell<Vec<Pin<Box<Sleep>>>>);

impl Timers {
    /// What comes of `future` where that is by `deadline`.
    pub fn by<F: Future>(&self, deadline: Instant, future: F) -> By<'_, F> {
        By { future, deadline, timers: self, lent: None }
    }

    fn lend(&self, deadline: Instant) -> Lent<'_> {
        let kept = self.0.borrow_mut().pop();
        let timer = match kept {
            Some(mut timer) => {
                timer.as_mut().reset(deadline);
                timer
            }
            None => Box::pin(sleep_until(deadline)),
        };
        Lent { timers: self, timer: Some(timer) }
    }
}

pin_project! {
    /// See [`Timers::by`]. No `async fn`: what such a one is given has two places in it.
    pub struct By<'t, F> {
        #[pin]
        future: F,
        deadline: Instant,
        timers: &'t Timers,
        lent: Option<Lent<'t>>,
    }
}

impl<F: Future> Future for By<'_, F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Some(output));
        }
        let timer = &mut this.lent.get_or_insert_with(|| this.timers.lend(*this.deadline)).timer;
        // Unconstrained: a future that uses up the task's budget, and asks for more, must not keep it from being heard.
        let late = timer.as_mut().map(|timer| pin!(unconstrained(timer.as_mut())).poll(cx));
        late.unwrap_or(Poll::Pending).map(|()| None)
    }
}

/// Comes back when it is dropped.
struct Lent<'t> {
    timers: &'t Timers,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut kept = self.timers.0.borrow_mut();
        if kept.len() < KEPT {
            kept.extend(self.timer.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::super::sleep;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_there_at_once_needs_no_timer() {
        // There is no runtime here to make one.
        assert_eq!(Timers::default().by(Instant::now(), async { 1 }).now_or_never(), Some(Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_timer_serves_who_is_due_later_and_who_is_due_sooner() {
        let timers = Timers::default();
        for due in [4, 10, 2, 7] {
            let start = Instant::now();
            assert_eq!(timers.by(start + SECOND * due, sleep(SECOND)).await, Some(()));
            assert_eq!(timers.by(start + SECOND * due, pending::<()>()).await, None);
            assert_eq!(start.elapsed(), SECOND * due);
            assert_eq!(timers.0.borrow().len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_has_a_timer_of_its_own_meanwhile() {
        let (timers, start) = (Timers::default(), Instant::now());
        let each = (1..=KEPT as u32 + 8).map(|due| {
            let timers = &timers;
            async move {
                assert_eq!(timers.by(start + SECOND * due, pending::<()>()).await, None);
                assert_eq!(start.elapsed(), SECOND * due);
            }
        });
        futures_util::future::join_all(each).await;
        assert_eq!(timers.0.borrow().len(), KEPT, "no more than that");
    }
}
