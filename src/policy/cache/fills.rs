//! Who fetches which page in this process, and who waits for it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::fill::Common;
use crate::domain::page_key::PageKey;
use crate::exchange::Journal;

/// Fills under way, by page. Outlives the pipeline.
#[derive(Default)]
pub struct Fills(Mutex<HashMap<PageKey, watch::Sender<Option<Common>>>>);

impl Fills {
    fn lock(&self) -> MutexGuard<'_, HashMap<PageKey, watch::Sender<Option<Common>>>> {
        self.0.lock()
    }

    /// Joins the fill of a page, as its leader where there is none.
    pub(super) fn join(self: &Arc<Self>, key: &PageKey) -> (watch::Receiver<Option<Common>>, Option<Lead>) {
        let mut fills = self.lock();
        if let Some(sender) = fills.get(key) {
            return (sender.subscribe(), None);
        }
        let (sender, receiver) = watch::channel(None);
        fills.insert(key.clone(), sender.clone());
        (receiver, Some(Lead { fills: self.clone(), key: key.clone(), sender }))
    }
}

/// The duty to publish an outcome. Dropped without one (a panic), the waiters learn that too.
pub(super) struct Lead {
    fills: Arc<Fills>,
    key: PageKey,
    sender: watch::Sender<Option<Common>>,
}

impl Lead {
    pub(super) fn publish(self, common: Common) {
        self.sender.send_replace(Some(common));
    }

    /// Resolves when everybody has left and nothing of `journal`'s request is on its way: then nobody can join any more. What
    /// has gone upstream is paid for, and its answer is awaited.
    pub(super) async fn abandoned(&self, journal: &Journal) {
        loop {
            self.sender.closed().await;
            journal.idle().await;
            let mut fills = self.fills.lock();
            if self.sender.receiver_count() == 0 {
                fills.remove(&self.key);
                return;
            }
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut fills = self.fills.lock();
        // Abandoned, its place may be another's by now.
        if fills.get(&self.key).is_some_and(|sender| sender.same_channel(&self.sender)) {
            fills.remove(&self.key);
        }
    }
}
