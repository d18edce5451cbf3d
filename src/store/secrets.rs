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

    /// The key to send a request with, to which upstream has `refused` one already or none.
    pub fn pick(self: &Arc<Self>, refused: Option<Which>) -> Picked {
        let which = match refused {
            // Without a second key there is nothing to choose.
            _ if !self.rotates() => Which::Current,
            // Whatever others have learned since: it is not sent twice with the same.
            Some(refused) => refused.other(),
            None => self.rotation().sent(),
        };
        Picked { secrets: self.clone(), which, last: refused.is_some(), at: self.since.elapsed() }
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
        &self.secrets.fingerprints[self.which.index()]
    }

    /// The other one's, where there is one.
    pub fn other_fingerprint(&self) -> Option<&str> {
        self.secrets.fingerprints.get(self.which.other().index()).map(String::as_str)
    }

    /// Upstream refused it. Whether this request is worth sending with the other one.
    pub fn refused(&self) -> bool {
        let now = self.secrets.since.elapsed();
        self.secrets.rotates() && self.secrets.rotation().refuse(self.which, now) && !self.last
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
        let next = both.pick(None);
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
}
