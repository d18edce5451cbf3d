//! Log lines: on stderr, for a person where it is a terminal, else one flat JSON object per event.
//!
//! Writing happens on a thread of its own behind a bounded queue. A reader of stderr that stops reading, or a disk that is full,
//! costs lines, which are counted, and never a request.

use std::io::{self, BufWriter, IsTerminal, Write, stderr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

pub mod json;
#[cfg(test)]
pub mod testing;

/// Lines that may wait for stderr; each is a few hundred bytes.
const QUEUE: usize = 8192;

/// Bytes that are kept while writing fails; what comes beyond is lost.
const BUFFER: usize = 64 * 1024;

/// Keeps the log alive; what still waits is written when this is dropped, so it belongs at the end of `main`.
#[derive(Debug)]
#[must_use = "dropping this ends the log"]
pub struct LogGuard {
    _worker: WorkerGuard,
}

/// Of the one log of this process.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// Lines that could not be written.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

/// Lines lost so far because stderr was too slow or failed; 0 where there is no log.
pub fn dropped() -> u64 {
    let waiting =
        DROPPED.get().map_or(0, |dropped| u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX));
    waiting.saturating_add(UNWRITTEN.load(Ordering::Relaxed))
}

/// Where lines may be lost: a failed write is counted and forgotten, so that the log goes on when writing does.
struct Lossy<W>(W, &'static AtomicU64);

impl<W: Write> Write for Lossy<W> {
    /// A line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line).or_else(|_| {
            self.1.fetch_add(1, Ordering::Relaxed);
            Ok(line.len())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        // What was not written is still there, and the next flush tries again.
        self.0.flush().or(Ok(()))
    }
}

/// Starts logging for the whole process.
///
/// # Errors
/// What is wrong with `filter`, in words for an operator; or that logging was already started.
pub fn init(filter: &str) -> Result<LogGuard, String> {
    let filter = parse(filter)?;
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE)
        .thread_name("log")
        // The thread flushes whenever its queue is empty: a burst becomes one write.
        .finish(Lossy(BufWriter::with_capacity(BUFFER, stderr()), &UNWRITTEN));
    let dropped = writer.error_counter();

    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(writer).log_internal_errors(false);
    let started = if stderr().is_terminal() {
        registry.with(layer).try_init()
    } else {
        registry.with(layer.fmt_fields(json::Fields).event_format(json::Line::utc())).try_init()
    };
    started.map_err(|error| format!("the log can't be started: {error}"))?;
    DROPPED.set(dropped).ok();
    FILTER.set(handle).ok();
    Ok(LogGuard { _worker: worker })
}

/// Puts another filter in the place of that of the running log, if there is one.
///
/// # Errors
/// What is wrong with `filter`, in words for an operator.
pub fn refilter(filter: &str) -> Result<(), String> {
    let filter = parse(filter)?;
    match FILTER.get() {
        Some(handle) => {
            handle.reload(filter).map_err(|error| format!("the log filter can't be changed: {error}"))
        }
        None => Ok(()),
    }
}

/// Reads a filter: a level, or `target=level` parts separated by commas.
///
/// # Errors
/// What is wrong with it, in words for an operator.
pub fn parse(filter: &str) -> Result<EnvFilter, String> {
    let filter = filter.trim();
    // tracing-subscriber cuts its input at bytes and panics inside a longer character.
    if !filter.is_ascii() {
        return Err(format!("the log filter {filter:?} holds a character that is not ASCII"));
    }
    // To tracing a lone word that is no level is a target: a mistyped level would silence the log.
    if !filter.contains(['=', ',', '[', ':']) && filter.parse::<LevelFilter>().is_err() {
        return Err(format!(
            "the log filter {filter:?} is no level: off, error, warn, info, debug and trace are; \
             a target takes one too, as in hyper=debug"
        ));
    }
    let parsed = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| format!("the log filter {filter:?} can't be read: {error}"))?;
    // It speaks of each change in a folder that is watched: a log in there would tell of itself for ever.
    match "notify=off".parse() {
        Ok(quiet) if !filter.contains("notify") => Ok(parsed.add_directive(quiet)),
        _ => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that has room for so many bytes.
    struct Device {
        written: Vec<u8>,
        room: usize,
    }

    impl Write for &mut Device {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes.len().min(self.room) {
                0 => Err(io::ErrorKind::StorageFull.into()),
                taken => {
                    self.written.extend_from_slice(&bytes[..taken]);
                    self.room -= taken;
                    Ok(taken)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_later_ones_are_written_whole() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        let mut device = Device { written: Vec::new(), room: 0 };
        let mut log = Lossy(BufWriter::with_capacity(30, &mut device), &LOST);
        for line in [b"first line\n", b"2nd line..\n", b"3rd line..\n", b"4th line..\n"] {
            log.write_all(line).expect("it never fails");
            log.flush().expect("nor does this");
        }
        assert_eq!(LOST.load(Ordering::Relaxed), 2, "what the buffer holds is not lost yet");
        log.0.get_mut().room = 1000;
        log.write_all(b"last line.\n").expect("written");
        log.flush().expect("flushed");
        drop(log);
        assert_eq!(String::from_utf8_lossy(&device.written), "first line\n2nd line..\nlast line.\n");
        assert_eq!(LOST.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_filter_that_can_not_be_read_is_an_error_in_words() {
        for good in [
            "info",
            " WARN ",
            "off",
            "info,hyper=debug",
            "metorial_proxy::edge=trace",
            "debug,[request]=trace",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let errors: Vec<_> = ["verbose", "inof", "info=loud", "a=b=c", "info,hyper=chatty"]
            .into_iter()
            .map(|bad| parse(bad).expect_err(bad))
            .collect();
        insta::assert_snapshot!(errors.join("\n"));
        assert!(init("verbose").is_err(), "before anything is installed");
    }
}
