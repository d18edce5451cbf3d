//! metorial-proxy: a reverse proxy for the Metorial API.

pub mod config;
pub mod domain;
pub mod time;
