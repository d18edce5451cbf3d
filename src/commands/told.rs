//! A fault as an operator reads it: key path, message and cure in one line, as a log or a pipe has it too; below it the line of
//! the file, with a mark under what is wrong.

use annotate_snippets::renderer::{AnsiColor, Style};
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use metorial_proxy::config::Fault;

const RED: Style = AnsiColor::BrightRed.on_default().bold();
const YELLOW: Style = AnsiColor::BrightYellow.on_default().bold();
const BLUE: Style = AnsiColor::BrightBlue.on_default().bold();
const CURE: Style = AnsiColor::BrightCyan.on_default();

pub(super) fn error(fault: &Fault) -> String {
    format!("  {}", told(fault, RED, Level::ERROR))
}

pub(super) fn warning(fault: &Fault) -> String {
    format!("{YELLOW}warning{YELLOW:#}: {}", told(fault, YELLOW, Level::WARNING))
}

fn told(fault: &Fault, style: Style, level: Level<'static>) -> String {
    let Fault { path, message, cure, excerpt } = fault;
    let line = format!("{style}{path}{style:#}: {message}; {CURE}{cure}{CURE:#}");
    let Some(excerpt) = excerpt else { return line };
    let mark = AnnotationKind::Primary.span(excerpt.mark.clone());
    let snippet = Snippet::source(excerpt.text.as_str()).line_start(excerpt.line).annotation(mark);
    let report = [Group::with_level(level).element(snippet)];
    // The place is the file's: what is hidden in the excerpt moves its columns.
    let arrow = format!("{:1$}-->", "", excerpt.line.to_string().len());
    let place = format!("{BLUE}{arrow}{BLUE:#} {}:{}:{}", excerpt.file, excerpt.line, excerpt.column);
    // What writes it takes the colours out where they do not belong.
    format!("{line}\n{place}\n{}", Renderer::styled().render(&report))
}
