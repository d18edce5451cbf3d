//! What the fuzzers of this folder look for.

pub mod properties;
