//! Which of an environment's two secret keys is sent, while one takes the place of the other.
//!
//! The first is sent until upstream refuses it; then the next one is tried, and once upstream took it, it is the one in
//! use. Where both are refused, requests try them in turn, one attempt each: either may come back. Moments are told by the
//! caller, as time since some beginning.

use std::time::Duration;

/// A key that was refused so recently is not tried in addition to the other, unless that one was taken since: it would
/// double what is sent for nothing.
const HOLD_OFF: Duration = Duration::from_secs(1);

/// A key that was taken so recently is still good, whatever one request says: there are routes that refuse any key, and
/// whoever asks for those must not have everybody's requests fail.
const PROVEN: Duration = Duration::from_secs(60);

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// `secret_key`
    #[default]
    Current,
    /// `next_secret_key`
    Next,
}

impl Which {
    /// Its place in a list of both.
    pub fn index(self) -> usize {
        match self {
            Self::Current => 0,
            Self::Next => 1,
        }
    }

    /// The one that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Current => Self::Next,
            Self::Next => Self::Current,
        }
    }
}

/// Where a rotation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rotation {
    sent: Which,
    in_use: Which,
    /// When upstream refused each, where it has not been taken since.
    refused: [Option<Duration>; 2],
    /// When the last request was sent for which upstream took each.
    taken: [Option<Duration>; 2],
}

impl Rotation {
    /// The key that the next request is sent with.
    pub fn sent(&self) -> Which {
        self.sent
    }

    /// The key that is proven, or the first.
    pub fn in_use(&self) -> Which {
        self.in_use
    }

    /// Upstream refused `key` at `now`. Whether the other one is worth trying at once.
    pub fn refuse(&mut self, key: Which, now: Duration) -> bool {
        let other = key.other();
        self.refused[key.index()] = Some(now);
        // Else that waits until the other one is taken.
        if !self.is_proven(key, now) {
            self.sent = other;
        }
        // What was refused before this one was taken may be taken now that this one is refused.
        let news = |at| now >= at + HOLD_OFF || self.taken[key.index()] >= Some(at);
        self.refused[other.index()].is_none_or(news) || self.is_proven(other, now)
    }

    fn is_proven(&self, key: Which, now: Duration) -> bool {
        self.taken[key.index()].is_some_and(|taken| now < taken + PROVEN)
    }

    /// Upstream took `key` in answer to a request that was sent at `sent`. Whether it is in use from now on and was not
    /// before.
    pub fn accept(&mut self, key: Which, sent: Duration) -> bool {
        // An answer to a request that was sent before the key was refused proves nothing.
        if self.refused[key.index()].is_some_and(|refused| refused > sent) {
            return false;
        }
        self.refused[key.index()] = None;
        self.taken[key.index()] = self.taken[key.index()].max(Some(sent));
        if self.refused[key.other().index()].is_some() {
            self.sent = key;
        }
        let proven = self.sent == key && self.in_use != key;
        if proven {
            self.in_use = key;
        }
        proven
    }
}

#[cfg(test)]
mod tests {
    use Which::{Current, Next};

    use super::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_next_key_is_tried_when_the_first_is_refused_and_in_use_once_it_is_proven() {
        let mut rotation = Rotation::default();
        assert!(!rotation.accept(Current, at(0.0)));
        assert_eq!((rotation.sent(), rotation.in_use()), (Current, Current));
        assert!(rotation.refuse(Current, at(1.0)), "the next is tried at once");
        assert!(rotation.refuse(Current, at(1.1)), "by everyone whom the first one failed");
        assert!(rotation.accept(Next, at(1.1)) && !rotation.accept(Next, at(1.1)));
        assert_eq!((rotation.sent(), rotation.in_use()), (Next, Next));
    }

    #[test]
    fn a_late_answer_to_the_old_key_changes_nothing() {
        let mut rotation = Rotation::default();
        rotation.refuse(Current, at(1.0));
        assert!(!rotation.accept(Current, at(0.9)), "also where the next is not proven yet");
        assert_eq!(rotation.sent(), Next);
        rotation.accept(Next, at(1.0));
        assert!(!rotation.accept(Current, at(0.9)));
        assert_eq!((rotation.sent(), rotation.in_use()), (Next, Next));
    }

    #[test]
    fn when_both_are_refused_each_request_asks_once_and_whichever_comes_back_is_found() {
        let mut rotation = Rotation::default();
        assert!(rotation.refuse(Current, at(0.0)) && !rotation.refuse(Next, at(0.0)));
        for (expected, now) in [(Current, 0.5), (Next, 0.9), (Current, 1.2), (Next, 1.9)] {
            assert_eq!(rotation.sent(), expected);
            assert!(!rotation.refuse(expected, at(now)));
        }
        assert!(rotation.refuse(Current, at(2.9)), "after a while one may ask twice again");
        assert!(!rotation.refuse(Next, at(2.9)));
        assert_eq!(rotation.in_use(), Current);
        assert!(!rotation.accept(Current, at(3.0)), "it is in use already");
        assert_eq!(rotation.sent(), Current);
        assert!(rotation.refuse(Current, at(9.0)), "and what was refused long ago is tried again");
        assert!(rotation.accept(Next, at(9.0)));
    }

    #[test]
    fn a_key_that_upstream_goes_back_to_is_tried_at_once_and_only_until_it_is_refused_too() {
        let mut rotation = Rotation::default();
        assert!(rotation.refuse(Current, at(1.0)));
        rotation.accept(Next, at(1.0));
        assert!(rotation.refuse(Next, at(1.2)), "it was taken since the first was refused");
        assert!(rotation.refuse(Next, at(1.2)), "and by everyone whom it failed");
        rotation.refuse(Current, at(1.2));
        assert!(!rotation.refuse(Next, at(1.3)), "but nothing was taken since");
        assert_eq!(rotation.sent(), Next, "of two that are refused the one that was good just now");
        rotation.accept(Current, at(1.4));
        assert_eq!((rotation.sent(), rotation.in_use()), (Current, Current));
    }

    #[test]
    fn a_route_that_refuses_any_key_fails_nobody_else() {
        let mut rotation = Rotation::default();
        rotation.accept(Current, at(0.0));
        for tenths in 1..600 {
            let now = at(f64::from(tenths) / 10.0);
            rotation.refuse(Current, now);
            assert!(rotation.refuse(Next, now), "whoever sent the next one may try the good one");
            assert_eq!((rotation.sent(), rotation.in_use()), (Current, Current), "{now:?}");
        }
        rotation.refuse(Current, at(60.0));
        assert_eq!(rotation.sent(), Next, "it was last taken a minute ago");
    }

    #[test]
    fn a_key_that_is_taken_while_the_other_is_refused_is_the_one_that_is_sent() {
        let mut rotation = Rotation::default();
        rotation.refuse(Current, at(0.0));
        rotation.refuse(Next, at(0.0));
        // Tried in addition by a request that sent the first, while others had the turn pass on.
        assert_eq!(rotation.sent(), Current);
        assert!(rotation.accept(Next, at(0.1)));
        assert_eq!((rotation.sent(), rotation.in_use()), (Next, Next));
    }
}
