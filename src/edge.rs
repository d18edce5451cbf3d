//! Everything with a socket, a file or a signal.

pub mod activation;
pub mod admin;
pub mod admission;
mod certificate;
pub mod config_watch;
pub mod connection;
pub mod deadlines;
pub mod descriptors;
mod executor;
pub mod in_force;
pub mod listener;
pub mod notify;
pub mod otlp;
pub mod outbox;
pub mod proof;
pub mod proxy_protocol;
pub mod redis;
pub mod state_file;
pub mod tls;
pub mod upstream;
pub mod wire;
pub mod worker;
