//! What a browser gets: Chromium, by Playwright, against the binary over real sockets.

#![cfg(test)]

#[path = "../support/process.rs"]
mod process;

mod dashboard;
mod example;
mod frontend;
mod guide;
mod site;
mod stage;
