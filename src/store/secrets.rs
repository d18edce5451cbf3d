//! The secret keys of an environment: which one is sent, and how old each is. Outlives pipelines, as what was learned of
//! a key must not be forgotten by a reload.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::environment::Environment;
use crate::domain::rotation::{Rotation, Which};
use crate::time::Instant;

/// The one or two keys of an environment; their text is not in here.
#[derive(Debug)]
pub struct Secrets {
    fingerprints: Vec<String>,
    since: Instant,
    rotation: Mutex<Rotation>,
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
        let keys = [Some(&environment.secret_key), environment.next_secret_key.as_ref()];
        Self {
            fingerprints: keys.into_iter().flatten().map(|key| key.fingerprint()).collect(),
            since: Instant::now(),
            rotation: Mutex::default(),
        }
    }

    /// The key to send a request with.
    pub fn pick(self: &Arc<Self>) -> Picked {
        // Without a second key there is nothing to choose.
        let which = if self.rotates() { self.rotation().sent() } else { Which::Current };
        Picked { secrets: self.clone(), which }
    }

    /// Every key.
    pub fn standings(&self) -> Vec<Standing> {
        let in_use = self.rotation().in_use();
        let keys = [Which::Current, Which::Next].into_iter().zip(&self.fingerprints);
        let standing = |(which, fingerprint): (Which, &String)| Standing {
            which,
            fingerprint: fingerprint.clone(),
            age: self.since.elapsed(),
            in_use: which == in_use,
        };
        keys.map(standing).collect()
    }

    fn rotates(&self) -> bool {
        self.fingerprints.len() > 1
    }

    fn rotation(&self) -> MutexGuard<'_, Rotation> {
        self.rotation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key that one request is sent with.
#[derive(Debug)]
pub struct Picked {
    secrets: Arc<Secrets>,
    which: Which,
}

impl Picked {
    /// Which one.
    pub fn which(&self) -> Which {
        self.which
    }

    /// Upstream refused it. Whether another one is worth trying at once.
    pub fn refused(&self) -> bool {
        self.secrets.rotates() && self.secrets.rotation().refuse(self.which)
    }

    /// Upstream took it. Its fingerprint, where it is in use from now on and was not before.
    pub fn accepted(&self) -> Option<&str> {
        let proven = self.secrets.rotates() && self.secrets.rotation().accept(self.which);
        proven.then(|| self.secrets.fingerprints[self.which.index()].as_str())
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
        assert!(!alone.pick().refused(), "there is no other to try");
        assert_eq!(alone.pick().which(), Which::Current);
        environment.next_secret_key = SecretKey::parse("metorial_sk_the_next_one").ok();
        let both = Arc::new(Secrets::of(&environment));
        crate::time::sleep(Duration::from_secs(90)).await;
        let (first, second) = (both.pick(), both.pick());
        assert!(first.accepted().is_none() && first.refused() && second.refused());
        let next = both.pick();
        assert_eq!(next.which(), Which::Next);
        let name = environment.next_secret_key.map(|key| key.fingerprint());
        assert_eq!(next.accepted(), name.as_deref());
        let shown: Vec<_> =
            both.standings().into_iter().map(|key| (key.which, key.in_use, key.age.as_secs())).collect();
        assert_eq!(shown, [(Which::Current, false, 90), (Which::Next, true, 90)]);
    }
}
