//! Who waits in this process for pages that other replicas are fetching.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// What is heard of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    /// It is there.
    Kept,
    /// It will not be: each is to fetch it for itself.
    Alone,
    /// It is to be claimed again: nobody fetches it any more, or what there was to hear may have been missed.
    Again,
}

/// By the name of the page.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<HashMap<String, Vec<oneshot::Sender<Word>>>>);

impl Waits {
    /// From here on nothing is missed.
    pub(super) fn wait<'a>(&'a self, name: &'a str) -> Waiting<'a> {
        let (sender, word) = oneshot::channel();
        self.lock().entry(name.to_owned()).or_default().push(sender);
        Waiting { waits: self, name, word }
    }

    pub(super) fn tell(&self, name: &str, word: Word) {
        tell_each(self.lock().remove(name).unwrap_or_default(), word);
    }

    pub(super) fn tell_all(&self, word: Word) {
        let all = std::mem::take(&mut *self.lock());
        all.into_values().for_each(|waiting| tell_each(waiting, word));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<oneshot::Sender<Word>>>> {
        self.0.lock()
    }
}

fn tell_each(waiting: Vec<oneshot::Sender<Word>>, word: Word) {
    for waiting in waiting {
        // Whoever has left hears nothing.
        waiting.send(word).ok();
    }
}

/// Leaves its place when dropped.
pub(super) struct Waiting<'a> {
    waits: &'a Waits,
    name: &'a str,
    word: oneshot::Receiver<Word>,
}

impl Waiting<'_> {
    pub(super) async fn word(mut self) -> Word {
        (&mut self.word).await.unwrap_or(Word::Again)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.word.close();
        let mut waits = self.waits.lock();
        if let Some(waiting) = waits.get_mut(self.name) {
            waiting.retain(|waiting| !waiting.is_closed());
            if waiting.is_empty() {
                waits.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_hears_of_its_own_page_and_leaves_nothing_behind() {
        let waits = Waits::default();
        let (a, b, other) = (waits.wait("a"), waits.wait("a"), waits.wait("b"));
        drop(b);
        waits.tell("a", Word::Kept);
        assert_eq!(a.word().await, Word::Kept);
        waits.tell_all(Word::Again);
        assert_eq!(other.word().await, Word::Again);
        drop(waits.wait("c"));
        assert!(waits.lock().is_empty());
    }
}
