//! `top`: the dashboard's figures in a terminal.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use clap::Args;
use metorial_proxy::edge::admin::client::Port;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::Paragraph;

use super::{answer, health, refuse_one, say};
use screen::Shown;
use source::{News, Source};

mod screen;
mod source;

/// How often keys are looked for, and with them news.
const TICK: Duration = Duration::from_millis(100);
/// How wide a snapshot is.
const SNAPSHOT_WIDTH: usize = 100;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The proxy's admin address [default: METORIAL_PROXY_ADMIN, else 127.0.0.1:9090]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// The file that holds its admin token, where it is on another machine
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

pub(super) fn run(options: &Options) -> ExitCode {
    let port = match port(options) {
        Ok(port) => port,
        Err(error) => return refuse_one(&error),
    };
    // Before the screen is taken: what is wrong from the start is told as any other command would.
    let first = Source::new(port).and_then(|mut source| Ok((source.first()?, source)));
    let (first, source) = match first {
        Ok(first) => first,
        Err(error) => return failed(&error),
    };
    let mut shown = Shown::new(first, std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty()));
    if !io::stdout().is_terminal() {
        // A snapshot for a pipe or a file: /live.json has the same for a program.
        shown.plain();
        let lines = shown.lines(SNAPSHOT_WIDTH);
        return answer(
            &lines.iter().map(|line| format!("{}\n", line.to_string().trim_end())).collect::<String>(),
        );
    }
    // One piece of news at a time: whoever is slow to draw is not told of the past.
    let (sender, news) = sync_channel(1);
    let followed = std::thread::Builder::new().name("top".into()).spawn(move || source.follow(&sender));
    if let Err(error) = followed {
        return failed(&format!("no thread: {error}"));
    }
    let drawn = ratatui::try_init().and_then(|terminal| draw(terminal, &mut shown, &news));
    let restored = ratatui::try_restore();
    match drawn.and(restored) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("the terminal: {error}")),
    }
}

fn failed(error: &str) -> ExitCode {
    say(&format!("metorial-proxy: {error}"));
    ExitCode::FAILURE
}

fn port(options: &Options) -> Result<Port, String> {
    let addr = options.admin.map_or_else(health::from_environment, Ok)?;
    let token = match &options.token_file {
        None => None,
        Some(file) => {
            let token = std::fs::read_to_string(file)
                .map_err(|error| format!("--token-file: {} cannot be read: {error}", file.display()))?;
            Some(token.trim_end().to_owned().into())
        }
    };
    Ok(Port { addr, token })
}

/// Draws until somebody wants to leave.
fn draw(mut terminal: DefaultTerminal, shown: &mut Shown, news: &Receiver<News>) -> io::Result<()> {
    loop {
        while let Ok(news) = news.try_recv() {
            match news {
                News::Figures(figures) => shown.refresh(*figures),
                News::Failed(error) => shown.lost(error),
                News::Leave => return Ok(()),
            }
        }
        terminal.draw(|frame| {
            let lines = shown.lines(frame.area().width.into());
            // What does not fit is what matters least.
            frame.render_widget(Paragraph::new(lines), frame.area());
        })?;
        if event::poll(TICK)?
            && let Event::Key(key) = event::read()?
            && leaves(key)
        {
            return Ok(());
        }
    }
}

fn leaves(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Esc | KeyCode::Char('q' | 'Q') => true,
            KeyCode::Char('c' | 'd') => control,
            _ => false,
        }
}
