//! What the proxy does, through real sockets: each module is one behaviour, each test a sentence about it.

#![cfg(test)]

#[path = "../support/client.rs"]
mod client;
#[path = "../support/harness.rs"]
mod harness;

mod access;
mod budget;
mod cache;
mod cors;
mod protocol;
mod upstream;
