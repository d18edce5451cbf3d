//! Log lines: on stderr, for a person where it is a terminal, else one flat JSON object per event.
//!
//! Writing happens on a thread of its own behind a bounded queue. A reader of stderr that stops reading costs lines,
//! which are counted, and never a request.

use std::io::{BufWriter, IsTerminal, stderr};
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

pub mod json;

/// Lines that may wait for stderr; each is a few hundred bytes.
const QUEUE: usize = 8192;

/// Keeps the log alive; what still waits is written when this is dropped, so it belongs at the end of `main`.
#[derive(Debug)]
#[must_use = "dropping this ends the log"]
pub struct LogGuard {
    _worker: WorkerGuard,
}

/// Of the one log of this process.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// Lines lost so far because stderr was too slow; 0 where there is no log.
pub fn dropped() -> u64 {
    DROPPED.get().map_or(0, |dropped| u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX))
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
        .finish(BufWriter::with_capacity(64 * 1024, stderr()));
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
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| format!("the log filter {filter:?} can't be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
