//! A promise: what one replica may spend of a shared budget without asking.
//!
//! Whoever keeps the budget sees to it that what counts as spent and all promises together are within the limit. So replicas
//! that are cut off, however many and for however long, spend no more than that between them: each spends its promise, and of
//! what lapses its share.

/// What was promised when the budget was last heard of.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Promise {
    /// So many requests; parts of one add up with what lapses.
    pub amount: f64,
    /// So much of what has lapsed since, 0 to 1.
    pub share: f64,
    /// How many had lapsed then.
    pub lapsed: u64,
    /// How many counted then: no more of them can lapse.
    pub spent: u64,
    /// So many of them may count for longer than they seem to: they were not answered yet.
    pub uncertain: u64,
}

impl Promise {
    /// What it has grown to by the time at which `lapsed` have lapsed, in whole requests.
    pub fn worth(&self, lapsed: u64) -> u64 {
        // Never negative, and far below what a float holds exactly.
        self.exactly(lapsed) as u64
    }

    /// The same promise as of the time at which `lapsed` have lapsed and `spent` of what counted are left.
    #[must_use]
    pub fn renewed(&self, lapsed: u64, spent: u64) -> Self {
        let passed = lapsed.saturating_sub(self.lapsed).min(self.spent);
        let (amount, uncertain) = (self.exactly(lapsed), self.uncertain.saturating_sub(passed));
        Self { amount, lapsed, spent, uncertain, ..*self }
    }

    fn exactly(&self, lapsed: u64) -> f64 {
        let lapsed = lapsed.saturating_sub(self.lapsed).min(self.spent).saturating_sub(self.uncertain);
        self.amount + self.share.clamp(0.0, 1.0) * lapsed as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_grows_by_its_share_of_what_lapses_and_no_further() {
        let promise = Promise { amount: 10.0, share: 0.25, lapsed: 100, spent: 40, uncertain: 4 };
        let worth = [90, 100, 104, 112, 140, 500].map(|lapsed| promise.worth(lapsed));
        assert_eq!(worth, [10, 10, 10, 12, 19, 19]);
        let renewed = promise.renewed(102, 38).renewed(107, 33);
        assert_eq!([112, 140, 500].map(|lapsed| renewed.worth(lapsed)), [12, 19, 19]);
    }

    proptest! {
        /// However unevenly they were promised, and whenever each looks, all together never exceed the limit.
        #[test]
        fn replicas_that_are_cut_off_spend_no_more_than_there_is(
            limit in 1u64..5000,
            spent_share in 0.0f64..=1.0,
            weights in proptest::collection::vec(0.0f64..1.0, 1..8),
            lapses in proptest::collection::vec(0.0f64..=1.0, 1..8),
        ) {
            let spent = (limit as f64 * spent_share) as u64;
            let free = limit - spent;
            let sum: f64 = weights.iter().sum::<f64>().max(1e-9);
            let promises: Vec<Promise> = weights
                .iter()
                .map(|weight| Promise {
                    amount: (free as f64 * weight / sum).floor(),
                    share: 1.0 / weights.len() as f64,
                    spent,
                    ..Promise::default()
                })
                .collect();
            for lapsed in lapses.iter().map(|share| (spent as f64 * share) as u64) {
                let worth: u64 = promises.iter().map(|promise| promise.worth(lapsed)).sum();
                prop_assert!(spent - lapsed + worth <= limit, "{spent} {lapsed} {worth} {limit}");
            }
        }
    }
}
