//! Where the figures come from: the admin port, asked each second, for as long as it takes.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use metorial_proxy::edge::admin::client::{Port, reachable};
use metorial_proxy::edge::admin::dashboard::figures::Figures;
use metorial_proxy::time::sleep;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::commands::signals::Signals;

/// How often.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of the longest answer: far more environments than anybody has.
const LONGEST: usize = 4 * 1024 * 1024;
/// Characters of an error that are shown.
const SHOWN: usize = 200;

/// What is new.
pub(super) enum News {
    /// The figures.
    Figures(Box<Figures>),
    /// There are none, and why.
    Failed(String),
    /// A signal wants us to leave.
    Leave,
}

/// What asks, each second.
pub(super) struct Source {
    port: Port,
    runtime: Runtime,
    signals: Signals,
}

impl Source {
    /// From here on signals end nothing by themselves.
    pub(super) fn new(port: Port) -> Result<Self, String> {
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = built.map_err(|error| format!("no runtime: {error}"))?;
        let entered = runtime.enter();
        let signals = Signals::new().map_err(|error| format!("no signals: {error}"))?;
        drop(entered);
        Ok(Self { port, runtime, signals })
    }

    /// The first figures.
    pub(super) fn first(&mut self) -> Result<Figures, String> {
        self.runtime.block_on(async {
            tokio::select! {
                figures = ask(&self.port) => figures,
                signal = self.signals.next(|| {}) => Err(format!("ended by {signal}")),
            }
        })
    }

    /// Asks until nobody listens any more.
    pub(super) fn follow(mut self, news: &SyncSender<News>) {
        self.runtime.block_on(async {
            // The terminal is gone, which is a reason to leave here and not to reload anything.
            let hung_up = Notify::new();
            loop {
                let asked = async {
                    sleep(INTERVAL).await;
                    match ask(&self.port).await {
                        Ok(figures) => News::Figures(Box::new(figures)),
                        Err(error) => News::Failed(error),
                    }
                };
                let told = tokio::select! {
                    told = asked => told,
                    _ = self.signals.next(|| hung_up.notify_one()) => News::Leave,
                    () = hung_up.notified() => News::Leave,
                };
                if news.send(told).is_err() {
                    return;
                }
            }
        });
    }
}

async fn ask(port: &Port) -> Result<Figures, String> {
    let (status, body) = port.get("/live.json", LONGEST).await.map_err(|error| plain(&error))?;
    let addr = reachable(port.addr);
    if !status.is_success() {
        let said = serde_json::from_slice::<Value>(&body).ok();
        let said =
            said.as_ref().and_then(|said| said["error"].as_str()).unwrap_or("no proxy of this version?");
        let said: String = plain(said).chars().take(SHOWN).collect();
        return Err(format!("{addr} answered {}: {said}", status.as_u16()));
    }
    read(&body).map_err(|error| format!("{addr} does not speak as this version does: {}", plain(&error)))
}

/// The figures, with nothing in them that a terminal would obey.
fn read(body: &[u8]) -> Result<Figures, String> {
    let mut value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    disarm(&mut value);
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn disarm(value: &mut Value) {
    match value {
        Value::String(text) => *text = plain(text),
        Value::Array(values) => values.iter_mut().for_each(disarm),
        Value::Object(fields) => fields.values_mut().for_each(disarm),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Without control characters, and without those that turn the direction of what follows.
fn plain(text: &str) -> String {
    let obeyed = |char: char| {
        char.is_control()
            || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|char| if obeyed(char) { '\u{fffd}' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_what_is_told_is_obeyed_by_a_terminal() {
        let mut figures =
            Figures { version: "\u{1b}]0;owned\u{7}\r\n\u{9b}2J\u{202e}1.0".into(), ..Figures::default() };
        figures.reload.errors = vec!["a\u{8}b".into()];
        let read = read(&serde_json::to_vec(&figures).expect("JSON")).expect("figures");
        assert_eq!(read.version, "\u{fffd}]0;owned\u{fffd}\u{fffd}\u{fffd}\u{fffd}2J\u{fffd}1.0");
        assert_eq!(read.reload.errors, ["a\u{fffd}b"]);
    }

    #[test]
    fn what_is_no_answer_of_a_proxy_is_told() {
        assert!(super::read(b"{}").is_err_and(|error| error.contains("missing field")));
        assert!(super::read(b"<html>").is_err());
    }
}
