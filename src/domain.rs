//! Values without I/O, async or a clock: what the proxy talks about.
//!
//! Everything here is decided from its arguments alone, so that each rule can be tested as a table.

pub mod access;
pub mod budget;
pub mod cache_control;
pub mod client_ip;
pub mod environment;
pub mod field;
pub mod freshness;
pub mod key;
pub mod operation;
pub mod origin;
pub mod page_key;
pub mod promise;
pub mod quota;
mod ramp;
pub mod ratelimit;
pub mod rotation;
pub mod secret_guard;
pub mod shares;
pub mod target;
pub mod token_bucket;
pub mod version;
pub mod window;
