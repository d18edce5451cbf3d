//! Who fetches which page in this process, and who waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::select;
use tokio::sync::{Notify, watch};

use super::outcome::Common;
use crate::domain::client_ip::ClientKey;
use crate::domain::page_key::PageKey;
use crate::exchange::Journal;

/// Fills under way, by page. Outlives the pipeline.
#[derive(Default)]
pub struct Fills(Mutex<HashMap<PageKey, Arc<UnderWay>>>);

/// A fill, as those see it who wait for it.
struct UnderWay {
    outcome: watch::Sender<Option<Common>>,
    /// For whom it is fetched: it waits for the budget in this one's place.
    client: ClientKey,
    /// Some of its request may have been written.
    written: Arc<AtomicBool>,
    /// Whoever overtook it has brought the outcome.
    answered: Notify,
}

impl UnderWay {
    fn is_written(&self) -> bool {
        self.written.load(Ordering::SeqCst)
    }
}

/// What becomes of whoever wants a page.
pub(super) enum Joined {
    /// It fetches it.
    Lead(Lead, watch::Receiver<Option<Common>>),
    /// It waits, for what is fetched for this client.
    Wait(watch::Receiver<Option<Common>>, ClientKey),
}

impl Fills {
    fn lock(&self) -> MutexGuard<'_, HashMap<PageKey, Arc<UnderWay>>> {
        self.0.lock()
    }

    /// Joins the fill of a page, as its leader where there is none. Where one waits for the budget still, `client` may be one
    /// that `overtakes` its leader: then it has a fill of its own, and that one hears of what comes of it.
    pub(super) fn join(
        self: &Arc<Self>,
        key: &PageKey,
        client: ClientKey,
        overtakes: impl FnOnce(ClientKey) -> bool,
    ) -> Joined {
        let mut fills = self.lock();
        let before = fills.get(key).cloned();
        if let Some(before) = before.as_ref().filter(|fill| fill.is_written() || !overtakes(fill.client)) {
            return Joined::Wait(before.outcome.subscribe(), before.client);
        }
        let (outcome, receiver) = watch::channel(None);
        let (written, answered) = (Arc::default(), Notify::new());
        let fill = Arc::new(UnderWay { outcome, client, written, answered });
        fills.insert(key.clone(), fill.clone());
        Joined::Lead(Lead { fills: self.clone(), key: key.clone(), fill, before }, receiver)
    }

    fn leave(&self, key: &PageKey, fill: &Arc<UnderWay>) {
        let mut fills = self.lock();
        // Its place may be another's by now.
        if fills.get(key).is_some_and(|present| Arc::ptr_eq(present, fill)) {
            fills.remove(key);
        }
    }
}

/// The duty to publish an outcome. Dropped without one (a panic), the waiters learn that too.
pub(super) struct Lead {
    fills: Arc<Fills>,
    key: PageKey,
    fill: Arc<UnderWay>,
    before: Option<Arc<UnderWay>>,
}

impl Lead {
    /// This is its request.
    pub(super) fn begins(&self, journal: &Journal) {
        journal.mirrored_by(self.fill.written.clone());
    }

    pub(super) fn publish(self, common: Common) {
        // Whoever asks once more is not to find it again.
        self.fills.leave(&self.key, &self.fill);
        self.fill.outcome.send_replace(Some(common));
    }

    /// Resolves when nobody waits for the outcome, because everybody has left or has it from another fill, and nothing of
    /// `journal`'s request is on its way: then nobody can join any more. What has gone upstream is paid for, and its answer is
    /// awaited.
    pub(super) async fn abandoned(&self, journal: &Journal) {
        let UnderWay { outcome, answered, .. } = &*self.fill;
        loop {
            select! {
                () = outcome.closed() => {}
                () = answered.notified() => {}
            }
            journal.idle().await;
            let mut fills = self.fills.lock();
            if outcome.receiver_count() == 0 || outcome.borrow().is_some() {
                if fills.get(&self.key).is_some_and(|present| Arc::ptr_eq(present, &self.fill)) {
                    fills.remove(&self.key);
                }
                return;
            }
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.fills.leave(&self.key, &self.fill);
        let Some(before) = self.before.take() else { return };
        let Some(common) = self.fill.outcome.borrow().clone().filter(Common::is_for_all) else { return };
        let is_news = before.outcome.send_if_modified(|outcome| {
            let is_news = outcome.is_none();
            outcome.get_or_insert(common);
            is_news
        });
        if is_news {
            before.answered.notify_one();
        }
    }
}
