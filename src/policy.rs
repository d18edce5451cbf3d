//! The layers, one policy per file, in the order in which [`crate::pipeline`] stacks them.
//!
//! Each file has the same parts: why it stands where it stands, its `Layer`, its `Service`, a pure decision, its tests. They
//! never import each other: what they share stands below, in [`crate::exchange`] and [`crate::rejection`].

pub mod admit;
pub mod authenticate;
pub mod authorize;
pub mod budget;
pub mod cache;
pub mod catch_panic;
pub mod client_limit;
pub mod cors;
pub mod deadline;
pub mod forward;
pub mod identify;
pub mod inject;
pub mod observe;
pub mod respond;
pub mod retry;
