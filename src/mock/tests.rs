//! The stand-in over real sockets.

mod api;
mod control;
mod faults;
mod limits;
mod support;
