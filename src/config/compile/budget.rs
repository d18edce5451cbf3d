//! Which environments draw from one budget, and whether they agree on how large it is.

use std::collections::BTreeMap;

use crate::config::fault::Wrong;
use crate::config::reader::Reader;
use crate::domain::quota::{Algorithm, Quota};

/// What decides which budget an environment draws from.
pub(super) struct Share {
    /// Its place in `environments`.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) limit: Quota,
    pub(super) algorithm: Algorithm,
    /// The key its limit comes from.
    pub(super) limit_key: &'static str,
    /// The budget's name, if it has one.
    pub(super) budget: Option<String>,
    /// That of its secret key, if that could be read.
    pub(super) secret: Option<String>,
    /// That of its next one, likewise.
    pub(super) next: Option<String>,
}

impl Share {
    fn keys(&self) -> impl Iterator<Item = &str> {
        [&self.secret, &self.next].into_iter().flatten().map(String::as_str)
    }
}

/// The budget of each share. The API counts what comes with one secret key together, so whoever has a key in common with
/// an environment that names its budget draws from that budget too: the next key is sent from one answer to another.
pub(super) fn compile(file: &mut Reader<'_, '_>, shares: &[Share]) -> Vec<String> {
    check_rotations(file, shares);
    let groups = groups(shares);
    let mut named: BTreeMap<usize, &Share> = BTreeMap::new();
    for (share, group) in shares.iter().zip(&groups).filter(|(share, _)| share.budget.is_some()) {
        let first = *named.entry(*group).or_insert(share);
        if first.budget != share.budget {
            let how = match first.secret == share.secret {
                true => "has the same secret key",
                false => "is counted with it by way of a next_secret_key",
            };
            let message = format!("is another than that of {:?}, which {how}", first.name);
            let cure = "name the same budget in both: the API counts them together";
            file.entry("environments", share.index).refuse("budget", Wrong::new(message, cure));
        }
    }
    let budget = |(share, group): (&Share, &usize)| {
        let named = share.budget.as_ref().or_else(|| named.get(group)?.budget.as_ref());
        named.cloned().unwrap_or_else(|| {
            let members = shares.iter().zip(&groups).filter(|(_, of)| *of == group).map(|(member, _)| member);
            match lasting(members) {
                Some(fingerprint) => format!("secret:{fingerprint}"),
                // Its secret could not be read: on its own, so that it is not found at odds with anyone.
                None => format!("environment:{}", share.index),
            }
        })
    };
    let budgets: Vec<String> = shares.iter().zip(&groups).map(budget).collect();

    let mut sizes: BTreeMap<&str, &Share> = BTreeMap::new();
    for (share, budget) in shares.iter().zip(&budgets) {
        let first = *sizes.entry(budget).or_insert(share);
        if first.limit != share.limit {
            let message =
                format!("is another than that of {:?}, which draws from the same budget", first.name);
            let cure = format!("give {:?} and {:?} the same kind or limit", first.name, share.name);
            file.entry("environments", share.index).refuse(share.limit_key, Wrong::new(message, cure));
        }
        if first.algorithm != share.algorithm {
            let message =
                format!("is another than that of {:?}, which draws from the same budget", first.name);
            let cure = format!("give {:?} and {:?} the same algorithm", first.name, share.name);
            file.entry("environments", share.index).refuse("algorithm", Wrong::new(message, cure));
        }
    }
    budgets
}

/// Who sends a key in common, also by way of a third; each by the place of the first of them.
fn groups(shares: &[Share]) -> Vec<usize> {
    let mut groups: Vec<usize> = (0..shares.len()).collect();
    let mut holders: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, share) in shares.iter().enumerate() {
        for key in share.keys() {
            let holder = *holders.entry(key).or_insert(at);
            let (first, later) = (groups[at].min(groups[holder]), groups[at].max(groups[holder]));
            groups.iter_mut().filter(|group| **group == later).for_each(|group| *group = first);
        }
    }
    groups
}

/// The secret key that a budget is known by, so that it changes as seldom as can be: one that nobody in the group is
/// leaving, or else the first. An environment alone keeps it when a `next_secret_key` is added or taken away.
fn lasting<'s>(group: impl Iterator<Item = &'s Share> + Clone) -> Option<&'s str> {
    let mut stays = group.clone().filter(|share| share.next.is_none());
    stays
        .find_map(|share| share.secret.as_deref())
        .or_else(|| group.clone().find_map(|share| share.secret.as_deref()))
}

/// Refuses rotations that go in a circle.
///
/// A next key that another environment has already is as it should be: of two that share an instance, one may have been
/// moved to the new key before the other, or both are on their way to it. That it belongs to another instance cannot be
/// seen, as keys don't tell theirs. But where A gives way to B, and B to A, whatever was meant, one of the two is wrong.
fn check_rotations(file: &mut Reader<'_, '_>, shares: &[Share]) {
    let mut steps: Vec<(&str, &str, &Share)> = Vec::new();
    for share in shares {
        let (Some(key), Some(next)) = (share.secret.as_deref(), share.next.as_deref()) else { continue };
        // The same key twice is refused where it stands.
        if key == next {
            continue;
        }
        let mut reached = vec![next];
        let mut at = 0;
        while let Some(here) = reached.get(at).copied() {
            for (_, to, _) in steps.iter().filter(|(from, ..)| *from == here) {
                if !reached.contains(to) {
                    reached.push(to);
                }
            }
            at += 1;
        }
        if reached.contains(&key) {
            let leaving = steps.iter().find(|(from, ..)| *from == next).map_or("", |(.., other)| &other.name);
            let message = format!("is the key that {leaving:?} is leaving, in the end for this secret_key");
            let cure = "remove one next_secret_key: of two keys one is the new one";
            file.entry("environments", share.index).refuse("next_secret_key", Wrong::new(message, cure));
        }
        steps.push((key, next, share));
    }
}
