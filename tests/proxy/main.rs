//! What the proxy does, through real sockets: each module is one behaviour, each test a sentence about it.

#![cfg(test)]

#[path = "../support/bad_upstream.rs"]
mod bad;
#[path = "../support/black_hole.rs"]
mod black_hole;
#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/client.rs"]
mod client;
#[path = "../support/collector.rs"]
mod collector;
#[path = "../support/h2_client.rs"]
mod h2_client;
#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/pty.rs"]
mod pty;
#[path = "../support/raw_client.rs"]
mod raw_client;
#[path = "../support/raw_upstream.rs"]
mod raw_upstream;
#[path = "../support/redis.rs"]
mod redis;
#[path = "../support/relay.rs"]
mod relay;
#[path = "../support/signals.rs"]
mod signals;

mod access;
mod agreement;
mod bad_upstream;
mod budget;
mod cache;
mod commands;
mod cors;
mod crowd;
mod explain;
mod guard;
mod hostile;
mod lifecycle;
mod live;
mod protocol;
mod proxy_protocol;
mod reload;
mod replicas;
mod rolling;
mod rotation;
mod rules;
mod scarcity;
mod service;
mod shared_clients;
mod terminal;
mod tls;
mod top;
mod traces;
mod upstream;
mod watching;
