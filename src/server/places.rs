//! Places for requests in flight, of which a reload may make more or fewer.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::policy::admit;

/// Places in all, and those of them that requests with a body may have.
pub(super) struct Places {
    all: Bounded,
    with_body: Bounded,
}

impl Places {
    pub(super) fn new(size: usize) -> Self {
        Self { all: Bounded::new(size), with_body: Bounded::new(admit::Places::with_body(size)) }
    }

    /// Those that are free.
    pub(super) fn free(&self) -> admit::Places {
        admit::Places::of(self.all.free(), self.with_body.free())
    }

    /// So many from now on.
    pub(super) fn resize(&self, size: usize) {
        self.all.resize(size);
        self.with_body.resize(admit::Places::with_body(size));
    }
}

/// So many places.
struct Bounded {
    free: Arc<Semaphore>,
    size: Mutex<usize>,
}

impl Bounded {
    fn new(size: usize) -> Self {
        let size = size.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(size)), size: Mutex::new(size) }
    }

    fn free(&self) -> Arc<Semaphore> {
        self.free.clone()
    }

    /// Whoever has a place keeps it; what is too many is taken away as it becomes free.
    fn resize(&self, size: usize) {
        let size = size.min(Semaphore::MAX_PERMITS);
        let before = std::mem::replace(&mut *self.size.lock().unwrap_or_else(PoisonError::into_inner), size);
        if size >= before {
            return self.free.add_permits(size - before);
        }
        let gone = before - size;
        let taken = u32::try_from(gone - self.free.forget_permits(gone)).unwrap_or(u32::MAX);
        if taken > 0 {
            let free = self.free.clone();
            TaskTracker::new().spawn(async move {
                if let Ok(places) = free.acquire_many_owned(taken).await {
                    places.forget();
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_that_are_taken_away_stay_with_whoever_has_them() {
        let places = Bounded::new(3);
        let free = places.free();
        let mut held: Vec<_> = (0..3).map(|_| free.clone().try_acquire_owned().expect("a place")).collect();
        places.resize(1);
        tokio::task::yield_now().await;
        for left in [2, 1] {
            held.truncate(left);
            assert!(free.clone().try_acquire_owned().is_err(), "{left} are still held, of 1");
        }
        held.clear();
        tokio::task::yield_now().await;
        let one = free.clone().try_acquire_owned().expect("a place");
        assert!(free.clone().try_acquire_owned().is_err());
        places.resize(2);
        assert!(free.try_acquire_owned().is_ok());
        drop(one);
    }
}
