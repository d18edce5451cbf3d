//! metorial-proxy: a reverse proxy for the Metorial API that holds the secret key, so that frontends hold only
//! publishable ones; that enforces the documented limits, so that the API never has to refuse; and that keeps list pages,
//! so that a small budget goes a long way.
//!
//! # The life of a request
//!
//! A [connection](edge::connection) reads a request and hands it to the [pipeline], the one place where the order of the
//! layers is written. From the outside in:
//!
//! 1. [`observe`](policy::observe): request id, duration, access log.
//! 2. [`cors`](policy::cors): lets listed origins read answers, refusals too; answers preflights.
//! 3. [`respond`](policy::respond): refusals become HTTP, limits are told.
//! 4. [`catch_panic`](policy::catch_panic): a fault of ours costs one request.
//! 5. [`admit`](policy::admit): so many in flight and no more.
//! 6. [`deadline`](policy::deadline): an answer is due.
//! 7. [`identify`](policy::identify): one reading of the target, one client IP.
//! 8. [`client_limit`](policy::client_limit): governor's GCRA per client IP.
//! 9. [`authenticate`](policy::authenticate): publishable key → environment.
//! 10. [`authorize`](policy::authorize): rules → [`Permit`](exchange::Permit), which all below require.
//! 11. [`cache`](policy::cache): list pages, coalescing, invalidation by writes.
//! 12. [`retry`](policy::retry): what is safe to try again.
//! 13. [`budget`](policy::budget): environment and egress, in one step per attempt.
//! 14. [`inject`](policy::inject): the secret key.
//! 15. [`forward`](policy::forward): allowlist, transport, and the guard on what comes back.
//!
//! Below that, an [upstream pool](edge::upstream) per worker sends it on. What is written, either way, leaves with all else that
//! the worker's turn brings ([`edge::outbox`]). A request carries what is known of it as a type
//! ([`exchange`]); what a layer refuses is a value ([`rejection`]); what is counted lives behind traits ([`store`]); what can
//! be decided without a clock or a socket is in [`domain`].
//!
//! # The rest of the house
//!
//! [`config`] reads and checks what an operator wrote, [`server`] builds all of this from it and stops it again,
//! [`telemetry`] tells what happens, [`edge::admin`] answers probes, and [`mock`] is a stand-in for the API itself.

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

// Support that tests of this crate and those beside it share.
#[cfg(test)]
extern crate self as metorial_proxy;
#[cfg(test)]
#[path = "../tests/support/redis.rs"]
mod redis_server;
#[cfg(test)]
#[path = "../tests/support/virtual_redis.rs"]
mod virtual_redis;
