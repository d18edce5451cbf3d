//! Signals to a process of the test's own, and how it ends.

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::process::{Process, binary};

impl Process {
    /// `TERM`, `INT`, …
    pub(crate) fn signal(&self, name: &str) {
        // The shell's own: no program need be installed for it.
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success(), "{kill}");
    }

    /// Its exit code, and all that it wrote. To be called where it is about to end.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        for _ in 0..3000 {
            if let Some(status) = self.child.try_wait().expect("a child") {
                while self.listening.recv().is_ok() {}
                return (status.code(), self.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end:\n{}", self.log());
    }
}

/// Runs a command that ends by itself: its exit code, and all that it wrote.
pub(crate) fn command(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let process = Process::start(arguments, variables);
    process.unwrap_or_else(|error| panic!("{}: {error}", binary().display())).end()
}
