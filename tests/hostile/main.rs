//! Callers and an API that break the rules of HTTP on purpose: what each sends is a line in a table, beside what may come
//! of it; after each, honest requests on the same connection and on another get their own answers.

#![cfg(test)]

#[path = "../support/client.rs"]
mod client;
#[path = "../support/h2_client.rs"]
mod h2_client;
#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/raw_client.rs"]
mod raw_client;
#[path = "../support/raw_upstream.rs"]
mod raw_upstream;

mod answers;
mod floods;
mod http2;
mod requests;
mod slow;
