//! How pages are known and protected in a shared store: names that tell nothing, values that only replicas can read or make.
//!
//! Both keys are derived (HKDF-SHA-256) from the API's secret keys, which every replica has. With another secret the names differ,
//! and pages are simply not there. A value is sealed with AES-256-GCM under its own name, so one that is cut, changed, made by somebody else or moved
//! to another name does not open. The derived keys tell of the secret only what trying out every possible secret would: it
//! has to be of high entropy, which the API's keys are.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{hkdf, hmac};
use secrecy::{ExposeSecret, SecretSlice};

use crate::domain::page_key::PageKey;

/// Of the sealed form and of what is inside; another version's values are not read.
const VERSION: u8 = 1;

/// The keys. Not printed.
pub struct Seal {
    names: hmac::Key,
    pages: RandomizedNonceKey,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// From the secrets.
    ///
    /// # Errors
    /// Where the cryptographic library refuses; it has no reason to.
    pub fn new(secrets: &[&[u8]]) -> Result<Self, String> {
        Self::derive(secrets).map_err(|Unspecified| "no keys can be derived".to_owned())
    }

    fn derive(secrets: &[&[u8]]) -> Result<Self, Unspecified> {
        // Wiped when dropped.
        let secret = SecretSlice::from(parts(secrets));
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &[b"metorial-proxy pages ", &[VERSION][..]].concat());
        let root = salt.extract(secret.expose_secret());
        let key = |purpose: &[u8]| {
            let mut key = [0; 32];
            root.expand(&[purpose], hkdf::HKDF_SHA256)?.fill(&mut key)?;
            Ok::<_, Unspecified>(key)
        };
        Ok(Self {
            names: hmac::Key::new(hmac::HMAC_SHA256, &key(b"names")?),
            pages: RandomizedNonceKey::new(&AES_256_GCM, &key(b"pages")?)?,
        })
    }

    /// What a page is known by in the store.
    pub(super) fn name(&self, key: &PageKey) -> String {
        let tag = hmac::sign(&self.names, key.as_bytes());
        // 128 bits: nobody without the key can make two alike.
        tag.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Version, nonce, what was sealed, tag.
    pub(super) fn seal(&self, name: &str, mut plain: Vec<u8>) -> Option<Vec<u8>> {
        let nonce = self.pages.seal_in_place_append_tag(Aad::from(name), &mut plain).ok()?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + plain.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.append(&mut plain);
        Some(sealed)
    }

    /// What was sealed under this name; `None`: it was not.
    pub(super) fn open(&self, name: &str, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let (head, _) = sealed.split_at_checked(1 + NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(&head[1..]).ok()?;
        if head[0] != VERSION {
            return None;
        }
        let plain =
            self.pages.open_in_place(nonce, Aad::from(name), &mut sealed[1 + NONCE_LEN..]).ok()?.len();
        sealed.drain(..1 + NONCE_LEN);
        sealed.truncate(plain);
        Some(sealed)
    }
}

/// Each preceded by its length, so that no two different lists agree.
fn parts(parts: &[&[u8]]) -> Vec<u8> {
    // Never moved on the way, which would leave a copy.
    let mut all = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
    for part in parts {
        all.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        all.extend_from_slice(part);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::contract::key;
    use super::*;

    fn seal(secret: &str) -> Seal {
        Seal::new(&[secret.as_bytes()]).expect("keys")
    }

    #[test]
    fn what_was_sealed_opens_under_its_name_and_key_only() {
        let ours = seal("metorial_sk_a");
        let name = ours.name(&key("e", 0, "/things"));
        assert_eq!(name.len(), 32);
        let sealed = ours.seal(&name, b"a page".to_vec()).expect("sealed");
        assert!(!sealed.windows(6).any(|part| part == b"a page"));
        let opened = |seal: &Seal, name: &str, sealed: &[u8]| seal.open(name, sealed.to_vec());
        assert_eq!(opened(&seal("metorial_sk_a"), &name, &sealed).as_deref(), Some(&b"a page"[..]));
        assert_eq!(opened(&ours, &ours.name(&key("e", 1, "/things")), &sealed), None, "moved");
        let other = seal("metorial_sk_b");
        assert_ne!(other.name(&key("e", 0, "/things")), name);
        assert_eq!(opened(&other, &name, &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(opened(&ours, &name, &changed), None, "changed at {at}");
            assert_eq!(opened(&ours, &name, &sealed[..at]), None, "cut at {at}");
        }
        assert_ne!(ours.seal(&name, b"a page".to_vec()), Some(sealed), "no nonce is used twice");
    }

    #[test]
    fn lists_of_secrets_are_kept_apart() {
        let name = |secrets: &[&[u8]]| Seal::new(secrets).expect("keys").name(&key("e", 0, "/things"));
        assert_ne!(name(&[b"ab", b"c"]), name(&[b"a", b"bc"]));
    }
}
