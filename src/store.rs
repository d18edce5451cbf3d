//! Where counts and pages live: traits, and a backend of each in memory.
//!
//! The traits are async from the start, because the same calls go to a shared store when there are several replicas. One
//! contract suite each (`contract.rs` beside the trait) runs over every backend.

pub mod clients;
pub mod limits;
pub mod link;
pub mod pages;
pub mod places;
pub mod queues;
pub mod refusals;
pub mod secrets;
