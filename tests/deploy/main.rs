//! What is in `deploy/`: held to what the documentation promises.

#![cfg(test)]

mod image;
