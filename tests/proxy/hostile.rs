//! Callers and an API that break the rules of HTTP on purpose: what each sends is a line in a table, beside what may come
//! of it; after each, honest requests on the same connection and on another get their own answers.

mod answers;
mod floods;
mod http2;
mod requests;
mod slow;
