//! Values without I/O, async or a clock: what the proxy talks about.
//!
//! Everything here is decided from its arguments alone, so that each rule can be tested as a table.

pub mod access;
pub mod environment;
pub mod key;
pub mod operation;
pub mod origin;
pub mod quota;
