//! Which requests are answered by the same page.
//!
//! Everything that can change an answer is in the key: environment, generation of the collection, path, canonical query,
//! `metorial-version`, `Accept` and the forwarded headers. Queries are compared without regard to the order of *different*
//! parameters and otherwise to the letter: duplicates, brackets and encodings are kept apart.

use std::borrow::{Borrow, Cow};

use bytes::Bytes;
use http::header::HeaderName;
use memchr::memchr3;

use crate::domain::target::{self, Pair};

/// The identity of a page. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PageKey(Bytes);

/// What a key is made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The environment, by what its answers depend on: pages are never shared between environments.
    pub environment: &'a str,
    /// Generation of the collection: a write makes every older page unreachable.
    pub generation: u64,
    /// The path, as forwarded.
    pub path: &'a str,
    /// The query, as forwarded.
    pub query: &'a str,
    /// Values of the request fields that can change the answer, in a fixed order; absent is not empty.
    pub fields: &'a [Option<&'a [u8]>],
}

impl Parts<'_> {
    /// The bytes of the page's key, to look for it by.
    pub fn bytes(&self) -> Vec<u8> {
        let query = canonical(self.query);
        let fields: usize = self.fields.iter().map(|field| field.map_or(1, <[u8]>::len) + 4).sum();
        let texts = self.environment.len() + self.path.len() + query.len();
        let mut bytes = Vec::with_capacity(texts + size_of_val(&self.generation) + 4 * 4 + fields);
        let mut part = |part: &[u8]| {
            bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        part(self.environment.as_bytes());
        part(&self.generation.to_be_bytes());
        part(self.path.as_bytes());
        part(query.as_bytes());
        for field in self.fields {
            // No field value holds a NUL, so an absent field is unlike any that is there.
            part(field.unwrap_or(&[0]));
        }
        bytes
    }
}

impl PageKey {
    /// Puts the parts together. Each is preceded by its length, so that no two different lists of parts agree.
    pub fn of(parts: &Parts<'_>) -> Self {
        Self(parts.bytes().into())
    }

    /// The key of the same page where it varies by these request fields.
    #[must_use]
    pub fn varied<'a>(&self, fields: impl Iterator<Item = (&'a HeaderName, Option<&'a [u8]>)>) -> Self {
        let mut bytes = self.0.to_vec();
        let mut part = |part: &[u8]| {
            bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        for (name, value) in fields {
            part(name.as_str().as_bytes());
            part(value.unwrap_or(&[0]));
        }
        Self(bytes.into())
    }

    /// Its bytes, which are the same in every replica.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Bytes it takes up.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: there is always an environment.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for PageKey {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// Pages are looked for by bytes that nobody keeps.
impl Borrow<[u8]> for PageKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// The query with its parameters in one order.
///
/// Sorted by the *root* of the decoded name (`status` for `status[0]`, `status%5B0%5D`, `status`), stably: parameters that
/// feed one array keep their order among themselves, because there the order may matter to the reader.
pub fn canonical(query: &str) -> Cow<'_, str> {
    // Of most there is nothing to decode and nothing to cut off.
    let sorted = match memchr3(b'%', b'+', b'[', query.as_bytes()) {
        None => target::pairs(query).map(|pair| pair.name(query)).is_sorted(),
        Some(_) => target::pairs(query).map(|pair| root(pair.name(query))).is_sorted(),
    };
    if sorted {
        return Cow::Borrowed(query);
    }
    let mut pairs: Vec<Pair> = target::pairs(query).collect();
    pairs.sort_by_cached_key(|pair| root(pair.name(query)));
    let pairs: Vec<&str> = pairs.into_iter().map(|pair| &query[pair.whole]).collect();
    Cow::Owned(pairs.join("&"))
}

/// The decoded name up to its first bracket; decoded only where it has to be.
fn root(name: &str) -> Cow<'_, [u8]> {
    let end = |name: &[u8]| name.iter().position(|byte| *byte == b'[').unwrap_or(name.len());
    match target::decode(name) {
        Cow::Borrowed(name) => Cow::Borrowed(&name[..end(name)]),
        Cow::Owned(mut name) => {
            name.truncate(end(&name));
            Cow::Owned(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(environment: &str, generation: u64, path: &str, query: &str, fields: &[Option<&[u8]>]) -> PageKey {
        PageKey::of(&Parts { environment, generation, path, query, fields })
    }

    #[test]
    fn different_parameters_may_change_places_and_nothing_else_may() {
        let same = |a: &str, b: &str| key("e", 0, "/x", a, &[]) == key("e", 0, "/x", b, &[]);
        assert!(same("a=1&b=2", "b=2&a=1"));
        assert!(same("limit=2&status[0]=a&status[1]=b", "status[0]=a&status[1]=b&limit=2"));
        for (a, b) in [
            ("a=1&a=2", "a=2&a=1"),
            ("a[]=1&a=2", "a=2&a[]=1"),
            ("status[0]=a&status[1]=b", "status%5B0%5D=a&status%5B1%5D=b"),
            ("status[0]=a&status[1]=b", "status=a&status=b"),
            ("a=1", "a=1&"),
            ("a=1", "a=%31"),
            ("a", "a="),
            ("a=1&a=1", "a=1"),
            ("", "a"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn everything_that_can_change_an_answer_is_in_the_key() {
        let base = key("e", 1, "/x", "a=1", &[Some(b"v"), None]);
        assert_eq!(base, key("e", 1, "/x", "a=1", &[Some(b"v"), None]));
        for other in [
            key("f", 1, "/x", "a=1", &[Some(b"v"), None]),
            key("e", 2, "/x", "a=1", &[Some(b"v"), None]),
            key("e", 1, "/y", "a=1", &[Some(b"v"), None]),
            key("e", 1, "/x", "a=2", &[Some(b"v"), None]),
            key("e", 1, "/x", "a=1", &[None, Some(b"v")]),
            key("e", 1, "/x", "a=1", &[Some(b"v"), Some(b"")]),
            key("e", 1, "/x", "a=1", &[Some(b"v")]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn what_a_page_varies_by_is_in_its_key() {
        let primary = key("e", 0, "/x", "", &[]);
        let varied = |value: Option<&[u8]>| primary.varied([(&http::header::COOKIE, value)].into_iter());
        assert_eq!(varied(Some(b"a")), varied(Some(b"a")));
        for (a, b) in [(Some(b"a" as &[u8]), Some(b"b" as &[u8])), (Some(b""), None)] {
            assert_ne!(varied(a), varied(b));
        }
        assert_ne!(primary, varied(None));
    }

    proptest! {
        /// Any permutation of parameters with distinct names gives the same key; nothing is lost on the way.
        #[test]
        fn the_order_of_distinct_parameters_does_not_matter(
            parameters in proptest::collection::btree_map("[a-z]{1,6}", "[a-z0-9%+]{0,6}", 0..8),
            seed in any::<u64>(),
        ) {
            let pairs: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let mut shuffled = pairs.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            let (a, b) = (pairs.join("&"), shuffled.join("&"));
            prop_assert_eq!(key("e", 0, "/", &a, &[]), key("e", 0, "/", &b, &[]));
            let mut kept: Vec<String> = canonical(&b).split('&').map(str::to_owned).collect();
            let mut sent: Vec<String> = b.split('&').map(str::to_owned).collect();
            kept.sort();
            sent.sort();
            prop_assert_eq!(kept, sent);
        }

        /// Keys that agree stand for queries with the same parameters.
        #[test]
        fn equal_keys_mean_equal_parameters(a in "[ab=&%\\[\\]]{0,12}", b in "[ab=&%\\[\\]]{0,12}") {
            if key("e", 0, "/", &a, &[]) == key("e", 0, "/", &b, &[]) {
                let sorted = |query: &str| {
                    let mut pairs: Vec<String> = query.split('&').map(str::to_owned).collect();
                    pairs.sort();
                    pairs
                };
                prop_assert_eq!(sorted(&a), sorted(&b));
            }
        }
    }
}
