//! What is in `deploy/`: held to what the documentation promises, to the configuration beside it, and to the tools that
//! read it.

#![cfg(test)]

#[path = "../support/process.rs"]
mod process;
#[expect(dead_code, reason = "the tests of the store use the rest")]
#[path = "../support/redis.rs"]
mod redis;
#[expect(dead_code, reason = "no process is stopped by a signal here")]
#[path = "../support/signals.rs"]
mod signals;

mod compose;
mod config;
mod image;
mod kubernetes;
mod systemd;
