//! The stand-in Metorial API: the tests' upstream, and a sandbox for who has no key.
//!
//! It answers with the API's real shapes, its surprises included: malformed credentials echoed in errors, `RateLimit-*`
//! with an epoch reset, a 429 without `Retry-After` or CORS, content types that are checked on every method. Behind
//! every list and get of the [route table](crate::domain::operation) stands a seeded, deterministic store that writes
//! change. `/_mock/requests` tells what was received, `/_mock/faults` makes the next answers go wrong.
//!
//! A request is handled in this order, the API's own: record → edge limit per IP → fault → authentication → limit per
//! key → route → latency.

pub use crate::mock::faults::{Fault, Reset};
pub use crate::mock::limit::{Algorithm, parse_quota};
pub use crate::mock::record::Record;

mod error;
mod faults;
mod limit;
mod page;
mod query;
mod record;
mod routes;
mod seed;
mod store;
mod sync;
