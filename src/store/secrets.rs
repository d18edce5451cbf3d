//! The secret keys of an environment: which one is sent, and how old each is. Outlives pipelines, as what was learned of
//! a key must not be forgotten by a reload.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::domain::environment::Environment;
use crate::domain::key::KeyDigest;
use crate::domain::rotation::{Rotation, Which};
use crate::time::Instant;

/// The one or two keys of an environment; their text is not in here.
#[derive(Debug)]
pub struct Secrets {
    keys: Vec<Key>,
    since: Instant,
    rotation: Mutex<Rotation>,
    /// Upstream refused all there is when it was last asked.
    refused: AtomicBool,
}

#[derive(Debug, Clone)]
struct Key {
    digest: KeyDigest,
    fingerprint: String,
    read: Instant,
}

/// A key as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which one.
    pub which: Which,
    /// Its name.
    pub fingerprint: String,
    /// Since it was read.
    pub age: Duration,
    /// It is the one that upstream took last.
    pub in_use: bool,
}

impl Secrets {
    /// Of an environment that was just read.
    pub fn of(environment: &Environment) -> Self {
        let since = Instant::now();
        let keys = [Some(&environment.secret_key), environment.next_secret_key.as_ref()];
        let keys = keys.into_iter().flatten().map(|key| Key {
            digest: KeyDigest::of(key.expose().as_bytes()),
            fingerprint: key.fingerprint(),
            read: since,
        });
        Self { keys: keys.collect(), since, rotation: Mutex::default(), refused: AtomicBool::default() }
    }

    /// Of an environment that was read anew, while these `before` are in force: with the same keys it goes on with what was
    /// learned of them, from its own (they come first) or another's. A key that was known is as old as it was.
    pub fn after(environment: &Environment, before: &[Arc<Self>]) -> Arc<Self> {
        let mut new = Self::of(environment);
        if let Some(same) = before.iter().find(|before| before.has(&new.keys)) {
            return same.clone();
        }
        for key in &mut new.keys {
            let known =
                before.iter().flat_map(|before| &before.keys).filter(|known| known.digest == key.digest);
            key.read = known.map(|known| known.read).min().unwrap_or(key.read);
        }
        Arc::new(new)
    }

    fn has(&self, keys: &[Key]) -> bool {
        self.keys.iter().map(|key| key.digest).eq(keys.iter().map(|key| key.digest))
    }

    /// Whether its first key is one of which nothing is known: none of these `before` has it in use, nor are they the same.
    pub fn is_news_to(&self, before: &[Arc<Self>]) -> bool {
        let known = |before: &Arc<Self>| {
            let in_use = before.keys.get(before.rotation().in_use().index());
            before.has(&self.keys) || in_use.map(|key| key.digest) == self.keys.first().map(|key| key.digest)
        };
        !before.iter().any(known)
    }

    /// Whether upstream took a key when it was last asked.
    pub fn ok(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// The key to send a request with, to which upstream has `refused` one already or none.
    pub fn pick(self: &Arc<Self>, refused: Option<Which>) -> Picked {
        let which = match refused {
            // Without a second key there is nothing to choose.
            _ if !self.rotates() => Which::Current,
            // Whatever others have learned since: it is not sent twice with the same.
            Some(refused) => refused.other(),
            None => self.rotation().sent(),
        };
        // Asked for by none but those who have a choice.
        let at = if self.rotates() { self.since.elapsed() } else { Duration::ZERO };
        Picked { secrets: self.clone(), which, last: refused.is_some(), at }
    }

    /// Every key.
    pub fn standings(&self) -> Vec<Standing> {
        let in_use = self.rotation().in_use();
        let keys = [Which::Current, Which::Next].into_iter().zip(&self.keys);
        let standing = |(which, key): (Which, &Key)| Standing {
            which,
            fingerprint: key.fingerprint.clone(),
            age: key.read.elapsed(),
            in_use: which == in_use,
        };
        keys.map(standing).collect()
    }

    fn rotates(&self) -> bool {
        self.keys.len() > 1
    }

    fn rotation(&self) -> MutexGuard<'_, Rotation> {
        self.rotation.lock()
    }
}

/// The key that one request is sent with.
#[derive(Debug)]
pub struct Picked {
    secrets: Arc<Secrets>,
    which: Which,
    /// The other one was refused to this request.
    last: bool,
    /// When, since the keys were read.
    at: Duration,
}

impl Picked {
    /// Which one.
    pub fn which(&self) -> Which {
        self.which
    }

    /// Its name, for the log.
    pub fn fingerprint(&self) -> &str {
        &self.secrets.keys[self.which.index()].fingerprint
    }

    /// The other one's, where there is one.
    pub fn other_fingerprint(&self) -> Option<&str> {
        self.secrets.keys.get(self.which.other().index()).map(|key| key.fingerprint.as_str())
    }

    /// Upstream refused it. Whether this request is worth sending with the other one.
    pub fn refused(&self) -> bool {
        let refuse = || self.secrets.rotation().refuse(self.which, self.secrets.since.elapsed());
        self.secrets.rotates() && refuse() && !self.last
    }

    /// Whether the environment has a key that upstream takes, as this request showed.
    pub fn set_ok(&self, ok: bool) {
        // Only what changes is written: the cache line stays shared among the workers.
        if self.secrets.ok() != ok {
            self.secrets.refused.store(!ok, Ordering::Relaxed);
        }
    }

    /// Upstream took it. Whether it is in use from now on and was not before.
    pub fn accepted(&self) -> bool {
        self.secrets.rotates() && self.secrets.rotation().accept(self.which, self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::SecretKey;

    #[tokio::test(start_paused = true)]
    async fn both_keys_are_shown_with_their_age_and_the_one_in_use() {
        let mut environment = Environment::example("a");
        let alone = Arc::new(Secrets::of(&environment));
        assert!(!alone.pick(None).refused(), "there is no other to try");
        assert_eq!(alone.pick(None).which(), Which::Current);
        environment.next_secret_key = SecretKey::parse("metorial_sk_the_next_one").ok();
        let both = Arc::new(Secrets::of(&environment));
        crate::time::sleep(Duration::from_secs(90)).await;
        let (first, second) = (both.pick(None), both.pick(None));
        assert!(!first.accepted() && first.refused() && second.refused());
        let next = both.pick(Some(Which::Current));
        assert_eq!(next.which(), Which::Next);
        let name = environment.next_secret_key.map(|key| key.fingerprint());
        assert!(next.accepted() && Some(next.fingerprint()) == name.as_deref());
        assert_eq!(next.other_fingerprint(), Some(first.fingerprint()));
        assert_eq!(alone.pick(None).other_fingerprint(), None);
        let shown: Vec<_> =
            both.standings().into_iter().map(|key| (key.which, key.in_use, key.age.as_secs())).collect();
        assert_eq!(shown, [(Which::Current, false, 90), (Which::Next, true, 90)]);
    }
    #[tokio::test(start_paused = true)]
    async fn a_request_that_was_refused_one_key_is_sent_with_the_other_and_then_no_more() {
        let mut environment = Environment::example("a");
        environment.next_secret_key = SecretKey::parse("metorial_sk_the_next_one").ok();
        let both = Arc::new(Secrets::of(&environment));
        let (first, second) = (both.pick(None), both.pick(None));
        assert!(first.refused() && second.refused());
        let again = both.pick(Some(first.which()));
        assert_eq!(again.which(), Which::Next);
        assert!(!again.refused());
        // The turn is with the first one now, and whoever it was refused to does not send it all the same.
        assert_eq!(
            (both.pick(None).which(), both.pick(Some(second.which())).which()),
            (Which::Current, Which::Next)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_a_key_is_known_after_a_reload_too() {
        let key = |text: &str| SecretKey::parse(text).expect("a key");
        let mut environment = Environment::example("a");
        environment.next_secret_key = Some(key("metorial_sk_the_next_one"));
        let before = [Arc::new(Secrets::of(&environment))];
        crate::time::sleep(Duration::from_secs(90)).await;
        let same = Secrets::after(&environment, &before);
        assert!(Arc::ptr_eq(&same, &before[0]) && !same.is_news_to(&before));

        let mut alone = Environment::example("renamed");
        assert!(!Secrets::after(&alone, &before).is_news_to(&before), "the first is in use");
        alone.secret_key = key("metorial_sk_the_next_one");
        let next = Secrets::after(&alone, &before);
        assert!(next.is_news_to(&before), "nobody has used it yet");
        assert_eq!(next.standings()[0].age, Duration::from_secs(90));
        assert!(before[0].pick(None).refused() && before[0].pick(None).accepted());
        assert!(!next.is_news_to(&before), "now it is in use");
        assert!(Secrets::of(&Environment::example("b")).is_news_to(&before), "and the first no longer");
        alone.secret_key = key("metorial_sk_another");
        let other = Secrets::after(&alone, &before);
        assert!(other.is_news_to(&before) && other.standings()[0].age.is_zero());
    }
}
