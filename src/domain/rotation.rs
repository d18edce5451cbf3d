//! Which of an environment's two secret keys is sent, while one takes the place of the other.
//!
//! The first is sent until upstream refuses it; then the next one is tried, and once upstream took it, it is the one in
//! use. Where both are refused, requests try them in turn, one attempt each: either may come back.

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

    fn other(self) -> Self {
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
    refused: [bool; 2],
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

    /// Upstream refused `key`. Whether the other one is worth trying at once.
    pub fn refuse(&mut self, key: Which) -> bool {
        let other = key.other();
        self.refused[key.index()] = true;
        self.sent = other;
        // Refused as well: the next request may ask whether that has changed, this one has asked enough.
        !std::mem::replace(&mut self.refused[other.index()], false)
    }

    /// Upstream took `key`. Whether it is in use from now on and was not before.
    pub fn accept(&mut self, key: Which) -> bool {
        // With one that works, what was said of the other is old: it is worth trying when this one fails.
        self.refused = [false; 2];
        // An answer to a request that was sent before the key was refused proves nothing.
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

    #[test]
    fn the_next_key_is_tried_when_the_first_is_refused_and_in_use_once_it_is_proven() {
        let mut rotation = Rotation::default();
        assert!(!rotation.accept(Current));
        assert_eq!((rotation.sent(), rotation.in_use()), (Current, Current));
        assert!(rotation.refuse(Current), "the next is tried at once");
        assert_eq!((rotation.sent(), rotation.in_use()), (Next, Current));
        assert!(rotation.refuse(Current), "by everyone whom the first one failed");
        assert!(rotation.accept(Next) && !rotation.accept(Next));
        assert_eq!((rotation.sent(), rotation.in_use()), (Next, Next));
    }

    #[test]
    fn a_late_answer_to_the_old_key_changes_nothing() {
        let mut rotation = Rotation::default();
        rotation.refuse(Current);
        rotation.accept(Next);
        assert!(!rotation.accept(Current));
        assert_eq!((rotation.sent(), rotation.in_use()), (Next, Next));
    }

    #[test]
    fn when_both_are_refused_each_request_asks_once_and_whichever_comes_back_is_found() {
        let mut rotation = Rotation::default();
        assert!(rotation.refuse(Current) && !rotation.refuse(Next));
        for expected in [Current, Next, Current, Next] {
            assert_eq!(rotation.sent(), expected);
            assert!(!rotation.refuse(expected));
        }
        assert_eq!(rotation.in_use(), Current);
        assert!(!rotation.accept(Current), "it is in use already");
        assert_eq!(rotation.sent(), Current);
        assert!(rotation.refuse(Current), "and what was refused long ago is tried again");
        assert!(rotation.accept(Next));
    }
}
