//! Locks that outlive a panic elsewhere: a test's upstream goes on.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, whatever became of its last holder. Never held over an await.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
