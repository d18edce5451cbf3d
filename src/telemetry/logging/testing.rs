//! What a test logs, in memory.

use std::io;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use tracing::Dispatch;
use tracing::dispatcher::DefaultGuard;
use tracing_subscriber::registry;

/// Lines that were logged; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

/// Two more that are told of everything, and do nothing.
///
/// While there is one subscriber alone, whoever comes by an event or span for the first time asks that of its own thread whether
/// it is wanted, and keeps the answer for all: tests beside ours have none, so what they come by first would be lost to ours.
static OTHERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(registry())));

/// Has `subscriber` told what this thread logs, until the guard is dropped.
pub fn listen(subscriber: impl Into<Dispatch>) -> DefaultGuard {
    LazyLock::force(&OTHERS);
    tracing::dispatcher::set_default(&subscriber.into())
}

impl Lines {
    /// All of them.
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).expect("UTF-8")
    }

    /// A copy that writes into these.
    pub fn writer(&self) -> impl Fn() -> Self + use<> {
        let lines = self.clone();
        move || lines.clone()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_event_is_logged_though_a_thread_that_logs_nothing_came_by_it_first() {
    fn event() {
        tracing::info!("here");
    }
    let lines = Lines::default();
    let guard = listen(tracing_subscriber::fmt().with_writer(lines.writer()).finish());
    std::thread::spawn(event).join().expect("ends");
    event();
    drop(guard);
    assert_eq!(lines.text().lines().count(), 1, "{}", lines.text());
}
