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
    /// Its secret's, if that could be read.
    pub(super) fingerprint: Option<String>,
}

/// The budget of each share. The API counts what comes with one secret key together, so whoever shares a key with an
/// environment that names its budget draws from that budget too.
pub(super) fn compile(file: &mut Reader<'_, '_>, shares: &[Share]) -> Vec<String> {
    let mut by_secret: BTreeMap<&str, &Share> = BTreeMap::new();
    for share in shares.iter().filter(|share| share.budget.is_some()) {
        let Some(fingerprint) = &share.fingerprint else { continue };
        let first = *by_secret.entry(fingerprint).or_insert(share);
        if first.budget != share.budget {
            let message = format!("is another than that of {:?}, which has the same secret key", first.name);
            let cure = "name the same budget in both: the API counts them together";
            file.entry("environments", share.index).refuse("budget", Wrong::new(message, cure));
        }
    }
    let budget = |share: &Share| {
        let fingerprint = share.fingerprint.as_deref().unwrap_or_default();
        let named = share.budget.as_ref().or_else(|| by_secret.get(fingerprint)?.budget.as_ref());
        named.cloned().unwrap_or_else(|| match fingerprint {
            // Its secret could not be read: on its own, so that it is not found at odds with anyone.
            "" => format!("environment:{}", share.index),
            _ => format!("secret:{fingerprint}"),
        })
    };
    let budgets: Vec<String> = shares.iter().map(budget).collect();

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
