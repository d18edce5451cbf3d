//! Everything with a socket, a file or a signal.

pub mod admin;
