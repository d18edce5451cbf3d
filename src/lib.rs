//! metorial-proxy: a reverse proxy for the Metorial API.

pub mod body;
pub mod config;
pub mod domain;
pub mod edge;
pub mod exchange;
pub mod mock;
pub mod pipeline;
pub mod policy;
pub mod rejection;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod time;
