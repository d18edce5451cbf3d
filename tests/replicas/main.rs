//! Several replicas and a Redis server of their own, through real sockets: that together they are one client of the API, and
//! stay one whatever becomes of the server, of the way to it, or of one of them.

#![cfg(test)]

#[path = "../support/client.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod client;
#[path = "../support/harness.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod harness;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/redis.rs"]
mod redis_server;
#[path = "../support/relay.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod relay;
#[path = "../support/signals.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod signals;

mod figures;
mod fleet;
mod lives;
mod load;
mod matrix;
mod outage;
mod places;
mod sharing;
