//! The two kinds of key, and how each is held.
//!
//! A *publishable* key (`metorial_pk_…`) may sit in a browser; we keep its SHA-256 digest and look callers up by it. A
//! *secret* key (`metorial_sk_…`) is kept as a [`SecretKey`]: redacted when printed, read only where the request leaves.
//! The prefix is the test, not the length: the API's own documentation shows keys of any length.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use secrecy::{ExposeSecret, SecretString};

/// What a publishable key begins with.
pub const PUBLISHABLE_PREFIX: &str = "metorial_pk_";
/// What an instance's secret key begins with.
pub const SECRET_PREFIX: &str = "metorial_sk_";

/// What a caller's credential looks like, judged by its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// May be held by anyone.
    Publishable,
    /// Gives rights that no caller of this proxy may hold: instance, user, management, app, session, fine-grained.
    Secret,
    /// No Metorial key at all.
    Other,
}

impl KeyKind {
    /// Judges `key` by its prefix (`metorial_` + two letters + `_`).
    pub fn of(key: &[u8]) -> Self {
        if key.starts_with(PUBLISHABLE_PREFIX.as_bytes()) {
            Self::Publishable
        } else if key.starts_with(b"metorial_") && key.get(11) == Some(&b'_') {
            Self::Secret
        } else {
            Self::Other
        }
    }
}

/// Why a string is no key of the wanted kind. Holds nothing of the string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// A publishable key where a secret key belongs.
    #[error("is a publishable key (metorial_pk_…); the secret key (metorial_sk_…) belongs here")]
    PublishableForSecret,
    /// A secret key where a publishable key belongs.
    #[error(
        "is a secret key (metorial_sk_…); only publishable keys (metorial_pk_…) belong here. \
         If it was ever shown to a browser, revoke it in the Metorial dashboard"
    )]
    SecretForPublishable,
    /// Not of the wanted form.
    #[error("does not begin with {0}")]
    WrongPrefix(&'static str),
    /// White space, control characters or non-ASCII inside.
    #[error("holds a character that no key has (white space, a control character or non-ASCII)")]
    BadCharacter,
    /// A digest that is not 64 hexadecimal digits.
    #[error("is no digest: sha256: and 64 hexadecimal digits are expected")]
    BadDigest,
}

/// SHA-256 of a publishable key; equality takes the same time wherever they differ.
#[derive(Clone, Copy, Eq)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// The digest of a key as a caller sent it.
    pub fn of(key: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest::digest(&digest::SHA256, key).as_ref());
        Self(out)
    }

    /// Reads `metorial_pk_…` (digested at once) or `sha256:<64 hex digits>`.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        match text.strip_prefix("sha256:") {
            Some(hex) => Self::from_hex(hex).ok_or(InvalidKey::BadDigest),
            None => {
                check_characters(text)?;
                match KeyKind::of(text.as_bytes()) {
                    KeyKind::Publishable if text.len() > PUBLISHABLE_PREFIX.len() => {
                        Ok(Self::of(text.as_bytes()))
                    }
                    KeyKind::Secret => Err(InvalidKey::SecretForPublishable),
                    KeyKind::Publishable | KeyKind::Other => Err(InvalidKey::WrongPrefix(PUBLISHABLE_PREFIX)),
                }
            }
        }
    }

    fn from_hex(hex: &str) -> Option<Self> {
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        Some(Self(out))
    }
}

impl PartialEq for KeyDigest {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl std::hash::Hash for KeyDigest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDigest({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// The secret key that is injected. Printing it prints `metorial_sk_…` and nothing more.
///
/// The memory is wiped when dropped. The copies that HTTP libraries make of a header while sending it are not.
#[derive(Clone)]
pub struct SecretKey(SecretString);

impl SecretKey {
    /// Reads a secret key; one trailing line break (as files have) is dropped.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        check_characters(text)?;
        if KeyKind::of(text.as_bytes()) == KeyKind::Publishable {
            return Err(InvalidKey::PublishableForSecret);
        }
        if !text.starts_with(SECRET_PREFIX) || text.len() == SECRET_PREFIX.len() {
            return Err(InvalidKey::WrongPrefix(SECRET_PREFIX));
        }
        Ok(Self(SecretString::from(text)))
    }

    /// The key itself, for the `Authorization` field and the secret guard only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether `other` is the same key; takes the same time wherever they differ.
    pub fn is(&self, other: &Self) -> bool {
        KeyDigest::of(self.expose().as_bytes()) == KeyDigest::of(other.expose().as_bytes())
    }

    /// A name for this secret that gives nothing away: eight hexadecimal digits of its SHA-256.
    ///
    /// Environments with the same fingerprint draw from one budget, since the API counts them together.
    pub fn fingerprint(&self) -> String {
        let KeyDigest(digest) = KeyDigest::of(self.expose().as_bytes());
        digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(metorial_sk_…)")
    }
}

fn check_characters(text: &str) -> Result<(), InvalidKey> {
    if text.is_empty() {
        return Err(InvalidKey::Empty);
    }
    if text.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(()) } else { Err(InvalidKey::BadCharacter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_key_is_known_by_its_prefix_and_loses_one_line_break() {
        assert_eq!(
            SecretKey::parse("metorial_sk_abc\n").map(|key| key.expose().to_owned()),
            Ok("metorial_sk_abc".into())
        );
        assert_eq!(
            SecretKey::parse("metorial_sk_abc\r\n").map(|key| key.expose().to_owned()),
            Ok("metorial_sk_abc".into())
        );
        for (text, error) in [
            ("", InvalidKey::Empty),
            ("\n", InvalidKey::Empty),
            ("metorial_sk_", InvalidKey::WrongPrefix(SECRET_PREFIX)),
            ("metorial_pk_abc", InvalidKey::PublishableForSecret),
            ("metorial_uk_abc", InvalidKey::WrongPrefix(SECRET_PREFIX)),
            ("sk_live_1", InvalidKey::WrongPrefix(SECRET_PREFIX)),
            ("metorial_sk_a b", InvalidKey::BadCharacter),
            ("metorial_sk_ab\n\n", InvalidKey::BadCharacter),
        ] {
            assert_eq!(SecretKey::parse(text).map(|_| ()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_publishable_key_equals_its_digest_form() {
        // printf metorial_pk_demo | sha256sum
        let hex = "sha256:2249011665eb2ffdb00387691601b5cf63f0441064d2e71457073c28590e1ab6";
        let key = KeyDigest::parse("metorial_pk_demo").expect("a key");
        assert_eq!(KeyDigest::parse(hex), Ok(key));
        assert_ne!(key, KeyDigest::of(b"metorial_pk_dem0"));
        for (text, error) in [
            ("", InvalidKey::Empty),
            ("metorial_sk_abc", InvalidKey::SecretForPublishable),
            ("metorial_pk_", InvalidKey::WrongPrefix(PUBLISHABLE_PREFIX)),
            ("sha256:12", InvalidKey::BadDigest),
            (
                "sha256:zz2d5ba6fe2e2ae2b2ae3a31b0c2f31a7a3d3e3fc8a7b2a5f4a7c2f8f5b1d0c9",
                InvalidKey::BadDigest,
            ),
        ] {
            assert_eq!(KeyDigest::parse(text).map(|_| ()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn nothing_of_a_secret_is_printed() {
        let key = SecretKey::parse("metorial_sk_topsecret").expect("a key");
        assert_eq!(format!("{key:?}"), "SecretKey(metorial_sk_…)");
        assert!(!key.fingerprint().contains("topsecret"));
    }

    #[test]
    fn every_kind_but_publishable_counts_as_secret() {
        for key in ["metorial_sk_x", "metorial_uk_x", "metorial_lk_x", "metorial_ek_x", "metorial_fk_x"] {
            assert_eq!(KeyKind::of(key.as_bytes()), KeyKind::Secret, "{key}");
        }
        assert_eq!(KeyKind::of(b"metorial_pk_x"), KeyKind::Publishable);
        assert_eq!(KeyKind::of(b"sk-proj-1"), KeyKind::Other);
    }
}
