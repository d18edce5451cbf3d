//! A terminal that a command of the binary runs in, and what a person would see on it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::process::binary;

/// A command in a terminal of its own. Killed when dropped.
pub(crate) struct Terminal {
    child: Child,
    ours: File,
    screen: Arc<Mutex<vt100::Parser>>,
    /// All that was written to it.
    written: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts `metorial-proxy ARGUMENTS…` in so many rows and columns.
    pub(crate) fn start(arguments: &[&str], variables: &[(&str, &str)], size: (u16, u16)) -> Self {
        let ours =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&ours).expect("a terminal");
        unlockpt(&ours).expect("a terminal");
        let theirs =
            ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("its other end");
        resize(&ours, size);
        // util-linux: makes it the terminal of the process, as a shell would.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(binary()).args(arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("METORIAL_") {
                command.env_remove(name);
            }
        }
        command.env_remove("NO_COLOR").env("TERM", "xterm-256color").envs(variables.iter().copied());
        command
            .stdin(theirs.try_clone().expect("a descriptor"))
            .stdout(theirs.try_clone().expect("a descriptor"))
            .stderr(theirs);
        let child = command.spawn().expect("setsid (Debian: util-linux)");
        drop(command);
        let ours = File::from(ours);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(size.0, size.1, 0)));
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (mut from, shown, kept) =
            (ours.try_clone().expect("a descriptor"), screen.clone(), written.clone());
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with an error when the last one who holds the other end has gone.
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                shown.lock().expect("not poisoned").process(&buffer[..read]);
                kept.lock().expect("not poisoned").extend_from_slice(&buffer[..read]);
            }
        });
        Self { child, ours, screen, written, reader: Some(reader) }
    }

    /// What a person reads on it.
    pub(crate) fn text(&self) -> String {
        self.screen.lock().expect("not poisoned").screen().contents()
    }

    /// All that was written to it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.written.lock().expect("not poisoned").clone()
    }

    pub(crate) fn resize(&self, size: (u16, u16)) {
        self.screen.lock().expect("not poisoned").screen_mut().set_size(size.0, size.1);
        resize(&self.ours, size);
    }

    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.ours.write_all(keys).expect("typed");
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success(), "{kill}");
    }

    /// Whether it is as a shell needs it: lines are edited, keys are shown, so is the cursor, and what was there before.
    pub(crate) fn is_restored(&self) -> bool {
        let modes = tcgetattr(&self.ours).expect("its modes").local_modes;
        let parser = self.screen.lock().expect("not poisoned");
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
            && !parser.screen().alternate_screen()
            && !parser.screen().hide_cursor()
    }

    /// Its exit code. To be called where it is about to end.
    pub(crate) fn end(&mut self) -> Option<i32> {
        for _ in 0..3000 {
            if let Some(status) = self.child.try_wait().expect("a child") {
                // What it wrote last is on the screen too.
                self.reader.take().map_or(Ok(()), JoinHandle::join).expect("read to the end");
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end:\n{}", self.text());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn resize(terminal: impl std::os::fd::AsFd, (rows, columns): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("another size");
}
