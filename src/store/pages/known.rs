//! What a replica knows of generations: pure, from what it is told and what it does itself.
//!
//! The store counts each collection's writes and numbers all changes from 1 (`last`) within an *epoch*, a random number that is new
//! whenever the store has lost what it knew. A collection's generation is the sum of both, so one of an earlier epoch never
//! comes again. From the moment of a write of our own until the store has taken it the collection has a generation that no other
//! replica has.

use std::collections::HashMap;

use serde::Deserialize;

/// Changes, as they are published.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Change {
    /// Where they are counted.
    #[serde(deserialize_with = "number")]
    pub(super) epoch: u64,
    /// Which one it is.
    pub(super) last: u64,
    /// Collections and their count now.
    pub(super) changed: Vec<(String, u64)>,
}

/// An epoch, as text, since the store's numbers have 53 bits.
pub(super) fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// A collection as the store names it; no budget's name has a space.
pub(super) fn field(budget: &str, collection: &str) -> String {
    format!("{budget} {collection}")
}

/// See the module.
#[derive(Debug)]
pub(super) struct Known {
    epoch: u64,
    /// All changes up to this one are in here.
    applied: u64,
    /// By budget and collection; only those that were written to.
    budgets: HashMap<String, HashMap<String, Collection>>,
}

#[derive(Debug, Default)]
struct Collection {
    /// The store's count.
    count: u64,
    /// What it was in an epoch that we don't know yet when a write of ours was stored.
    ahead: Option<(u64, u64)>,
    /// The generation that only we have.
    own: Option<u64>,
    /// Writes of ours that are on their way to the store.
    storing: u32,
    /// One could not be stored.
    owed: bool,
}

impl Collection {
    /// The store's count holds again where it has every write of ours.
    fn settle(&mut self) {
        if self.storing == 0 && !self.owed && self.ahead.is_none() {
            self.own = None;
        }
    }
}

impl Known {
    /// Nothing, in an epoch of our own.
    pub(super) fn new(epoch: u64) -> Self {
        Self { epoch, applied: 0, budgets: HashMap::new() }
    }

    /// How far we know.
    pub(super) fn position(&self) -> (u64, u64) {
        (self.epoch, self.applied)
    }

    /// The generation of a collection.
    pub(super) fn generation(&self, budget: &str, collection: &str) -> u64 {
        match self.budgets.get(budget).and_then(|collections| collections.get(collection)) {
            None => self.epoch,
            Some(Collection { own: Some(own), .. }) => *own,
            Some(Collection { count, .. }) => self.epoch.wrapping_add(*count),
        }
    }

    /// A write of ours begins its way to the store.
    pub(super) fn begin(&mut self, budget: &str, collections: &[String], own: u64) {
        for collection in collections {
            let collection = self.entry(budget, collection);
            collection.own = Some(own);
            collection.storing += 1;
        }
    }

    /// It is there, and these are the counts.
    pub(super) fn stored(&mut self, budget: &str, collections: &[String], epoch: u64, counts: &[u64]) {
        let same = epoch == self.epoch;
        for (collection, count) in collections.iter().zip(counts) {
            let collection = self.entry(budget, collection);
            collection.storing = collection.storing.saturating_sub(1);
            match same {
                true => collection.count = collection.count.max(*count),
                false => collection.ahead = Some((epoch, *count)),
            }
            collection.settle();
        }
    }

    /// It did not get there, or nobody knows: it is to be stored later.
    pub(super) fn failed(&mut self, budget: &str, collections: &[String]) {
        for collection in collections {
            let collection = self.entry(budget, collection);
            collection.storing = collection.storing.saturating_sub(1);
            collection.owed = true;
        }
    }

    /// What could not be stored begins its way once more.
    pub(super) fn owed(&mut self) -> Vec<(String, Vec<String>)> {
        let budgets = self.budgets.iter_mut().map(|(budget, collections)| {
            let owed = collections.iter_mut().filter(|(_, collection)| collection.owed);
            let owed = owed.map(|(name, collection)| {
                collection.owed = false;
                collection.storing += 1;
                name.clone()
            });
            (budget.clone(), owed.collect::<Vec<_>>())
        });
        budgets.filter(|(_, owed)| !owed.is_empty()).collect()
    }

    /// A change was published. Whether nothing before it is missing.
    pub(super) fn hear(&mut self, change: &Change) -> bool {
        if change.epoch != self.epoch {
            return false;
        }
        for (field, count) in &change.changed {
            self.count(field, *count);
        }
        if change.last == self.applied + 1 {
            self.applied = change.last;
        }
        change.last <= self.applied
    }

    /// The store's whole knowledge as of the change `last`.
    pub(super) fn adopt(&mut self, epoch: u64, last: u64, counts: &[(String, u64)]) {
        if epoch != self.epoch {
            (self.epoch, self.applied) = (epoch, 0);
            for collection in self.budgets.values_mut().flat_map(HashMap::values_mut) {
                // Anything else that it was ahead of is gone, like all that was counted.
                let ahead = collection.ahead.take().filter(|(ahead, _)| *ahead == epoch);
                collection.count = ahead.map_or(0, |(_, count)| count);
                collection.settle();
            }
            self.budgets.retain(|_, collections| {
                collections.retain(|_, collection| collection.own.is_some() || collection.count > 0);
                !collections.is_empty()
            });
        }
        for (field, count) in counts {
            self.count(field, *count);
        }
        self.applied = self.applied.max(last);
    }

    fn count(&mut self, field: &str, count: u64) {
        if let Some((budget, collection)) = field.split_once(' ') {
            let collection = self.entry(budget, collection);
            collection.count = collection.count.max(count);
        }
    }

    fn entry(&mut self, budget: &str, collection: &str) -> &mut Collection {
        self.budgets.entry(budget.to_owned()).or_default().entry(collection.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: u64 = 1000;

    fn known() -> Known {
        let mut known = Known::new(7);
        known.adopt(EPOCH, 3, &[("b /things".into(), 2), ("b /others".into(), 1)]);
        known
    }

    fn things() -> Vec<String> {
        vec!["/things".into()]
    }

    fn change(last: u64, count: u64) -> Change {
        Change { epoch: EPOCH, last, changed: vec![("b /things".into(), count)] }
    }

    #[test]
    fn changes_are_applied_in_order_and_a_gap_is_noticed() {
        let mut known = known();
        assert_eq!(known.generation("b", "/things"), EPOCH + 2);
        assert_eq!(known.generation("b", "/never-written"), EPOCH);
        assert!(known.hear(&change(4, 3)));
        assert_eq!((known.generation("b", "/things"), known.position()), (EPOCH + 3, (EPOCH, 4)));
        assert!(known.hear(&change(4, 3)), "heard twice");
        assert!(!known.hear(&change(6, 5)), "5 is missing");
        assert_eq!(known.position(), (EPOCH, 4), "and nothing after it is acknowledged");
        known.adopt(EPOCH, 6, &[("b /things".into(), 5)]);
        assert_eq!((known.generation("b", "/things"), known.position()), (EPOCH + 5, (EPOCH, 6)));
        assert!(!known.hear(&Change { epoch: 1, ..change(7, 6) }), "of another epoch");
    }

    #[test]
    fn a_write_of_our_own_has_a_generation_of_its_own_until_it_is_stored() {
        let mut known = known();
        known.begin("b", &things(), 55);
        assert_eq!(known.generation("b", "/things"), 55);
        assert!(known.hear(&change(4, 3)), "heard before the answer");
        assert_eq!(known.generation("b", "/things"), 55);
        known.begin("b", &things(), 66);
        known.stored("b", &things(), EPOCH, &[3]);
        assert_eq!(known.generation("b", "/things"), 66, "another is on its way");
        known.stored("b", &things(), EPOCH, &[4]);
        assert_eq!(known.generation("b", "/things"), EPOCH + 4);
        assert_eq!(known.position(), (EPOCH, 4), "what was stored is still to be heard in order");
        known.adopt(EPOCH, 4, &[("b /things".into(), 3)]);
        assert_eq!(known.generation("b", "/things"), EPOCH + 4, "never back");
    }

    #[test]
    fn a_write_that_could_not_be_stored_is_owed() {
        let mut known = known();
        known.begin("b", &things(), 55);
        known.failed("b", &things());
        known.adopt(EPOCH, 5, &[("b /things".into(), 4)]);
        assert_eq!(known.generation("b", "/things"), 55, "what others wrote is not what we wrote");
        assert_eq!(known.owed(), [("b".to_owned(), things())]);
        assert!(known.owed().is_empty(), "it is on its way");
        known.stored("b", &things(), EPOCH, &[5]);
        assert_eq!(known.generation("b", "/things"), EPOCH + 5);
    }

    #[test]
    fn a_store_that_lost_everything_begins_an_epoch_in_which_no_generation_returns() {
        let mut known = known();
        known.adopt(2000, 0, &[]);
        assert_eq!((known.generation("b", "/things"), known.position()), (2000, (2000, 0)));
    }

    #[test]
    fn a_write_stored_in_an_epoch_that_is_not_known_yet_is_not_forgotten() {
        let mut known = known();
        known.begin("b", &things(), 55);
        known.stored("b", &things(), 2000, &[1]);
        assert_eq!(known.generation("b", "/things"), 55);
        // Asked before the write got there, answered after.
        known.adopt(2000, 0, &[]);
        assert_eq!(known.generation("b", "/things"), 2001);
        known.begin("b", &things(), 66);
        known.stored("b", &things(), 3000, &[1]);
        known.adopt(4000, 0, &[]);
        assert_eq!(known.generation("b", "/things"), 4000);
    }
}
