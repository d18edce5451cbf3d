//! What is drawn: lines, the most important first, so that a small terminal shows those.

use metorial_proxy::edge::admin::dashboard::figures::{Budget, Ended, Figures, Latency, Level, State};
use metorial_proxy::edge::admin::dashboard::words::{
    bytes, count, date, latency, percent, plural, rate, span, time,
};
use metorial_proxy::time::Instant;
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};

/// Eighths of a cell, from none to all.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// After so long without news the figures are told to be old.
const OLD_SECONDS: u64 = 3;

/// The figures, and how new they are.
pub(super) struct Shown {
    figures: Figures,
    heard: Instant,
    error: Option<String>,
    colour: bool,
    live: bool,
}

impl Shown {
    pub(super) fn new(figures: Figures, colour: bool) -> Self {
        Self { figures, heard: Instant::now(), error: None, colour, live: true }
    }

    /// Shows them once, to whom nothing can be typed.
    pub(super) fn plain(&mut self) {
        (self.colour, self.live) = (false, false);
    }

    pub(super) fn refresh(&mut self, figures: Figures) {
        (self.figures, self.heard, self.error) = (figures, Instant::now(), None);
    }

    pub(super) fn lost(&mut self, error: String) {
        self.error = Some(error);
    }

    /// All of it, for a terminal so wide.
    pub(super) fn lines(&self, width: usize) -> Vec<Line<'static>> {
        let figures = &self.figures;
        let mut lines = vec![self.title()];
        lines.extend(self.notices());
        let names = figures.environments.iter().map(|budget| budget.name.chars().count());
        let name = names.max().unwrap_or(0).clamp(6, 24);
        for budget in figures.environments.iter().chain([&figures.egress]) {
            lines.push(Line::default());
            lines.extend(self.budget(budget, name, width));
        }
        let traffic = &figures.traffic;
        lines.push(Line::default());
        lines.push(self.named(
            "requests",
            &format!(
                "{}  {}  in flight {}",
                rate(traffic.per_second),
                latencies(&traffic.latency),
                count(traffic.in_flight)
            ),
        ));
        lines.push(self.named("answers", &ended(&traffic.answers)));
        let refused = traffic.refusals.iter().filter(|told| told.last_ten_minutes > 0);
        let refused: Vec<String> = refused
            .map(|told| format!("{} {} ×{}", told.policy, told.status, count(told.last_ten_minutes)))
            .collect();
        let refused = if refused.is_empty() { "none".to_owned() } else { refused.join("  ") };
        lines.push(self.named("refused", &format!("{refused}  (10 min)")));
        let upstream = &figures.upstream;
        lines.push(self.named(
            "the API",
            &format!(
                "{}  {}  {}",
                if upstream.healthy { "✓ answers" } else { "✗ does not answer" },
                rate(upstream.per_second),
                latencies(&upstream.latency)
            ),
        ));
        lines.push(self.named("", &ended(&upstream.answers)));
        let cache = &figures.cache;
        lines.push(self.named(
            "cache",
            &format!(
                "{} hits in 10 min, {} since start  {} {}, {} of {}",
                percent(cache.hit_ratio),
                percent(cache.hit_ratio_since_start),
                count(cache.entries),
                plural(cache.entries, "page", "pages"),
                bytes(cache.bytes),
                bytes(cache.capacity_bytes)
            ),
        ));
        for key in &figures.credentials {
            let use_ = if key.in_use { "✓ in use" } else { "– held ready" };
            let age = span(key.age_seconds.floor());
            lines.push(
                self.named(
                    "key",
                    &format!("{} {}  {use_}  read {age} ago", key.environment, key.fingerprint),
                ),
            );
        }
        let store = &figures.store;
        lines.push(self.named(
            "store",
            &format!(
                "{} {}  {} {}",
                store.kind,
                if store.partitioned { "✗ out of reach" } else { "✓" },
                store.replicas,
                plural(store.replicas.into(), "replica", "replicas")
            ),
        ));
        let reload = &figures.reload;
        let word = if reload.ok { "✓ in force" } else { "✗ not in force" };
        lines.push(self.named("config", &format!("{word}, read {}", date(reload.at))));
        lines.extend(
            reload.errors.iter().map(|error| self.named("", error).style(self.style(Some(Level::Grave)))),
        );
        for key in &reload.needs_restart {
            lines.push(self.named("", &format!("{key} needs a restart")));
        }
        lines
    }

    fn title(&self) -> Line<'static> {
        let figures = &self.figures;
        let mut spans = vec![
            "metorial-proxy".bold(),
            Span::raw(format!(
                " {}  up {}  {}",
                figures.version,
                span(figures.up_seconds.floor()),
                time(figures.at)
            )),
        ];
        let silence = self.heard.elapsed().as_secs();
        if let Some(error) = self.error.as_ref().filter(|_| silence >= 1) {
            let told = format!("  ✗ {silence} s old, trying again: {error}");
            spans.push(Span::styled(told, self.style(Some(Level::Grave))));
        } else if silence > OLD_SECONDS {
            spans.push(Span::styled(format!("  ✗ {silence} s old"), self.style(Some(Level::Grave))));
        } else if self.live {
            spans.push(Span::styled("  ● live", self.style(None)));
            spans.push(Span::raw("  q quits"));
        }
        Line::from(spans)
    }

    fn notices(&self) -> Vec<Line<'static>> {
        let notices = self.figures.notices();
        if notices.is_empty() {
            return vec![Line::styled(format!("✓ {}", self.figures.verdict()), self.style(None))];
        }
        let line = |notice: metorial_proxy::edge::admin::dashboard::figures::Notice| {
            let mark = if notice.level == Level::Grave { "■" } else { "▲" };
            Line::styled(format!("{mark} {}", notice.text), self.style(Some(notice.level)))
        };
        notices.into_iter().map(line).collect()
    }

    /// Two lines: how it stands, and how it stood.
    fn budget(&self, budget: &Budget, name: usize, width: usize) -> [Line<'static>; 2] {
        let state = budget.state();
        let style = self.style(state.level());
        let slot = match state {
            State::Open | State::Low => String::new(),
            State::Spent => format!("  next slot in {}", span(budget.next_slot_seconds)),
            State::Shut => format!("  opens in {}", span(budget.gate_seconds)),
        };
        let waiting = match (budget.waiting, budget.oldest_wait_seconds) {
            (0, _) => String::new(),
            (waiting, oldest) => {
                format!("  {} waiting, {}", count(waiting), oldest.map_or_else(String::new, span))
            }
        };
        let shown: String = budget.name.chars().take(name).collect();
        let left = format!(
            "{} left of {} per {}",
            count(budget.remaining.into()),
            count(budget.limit.into()),
            span(budget.window_seconds)
        );
        let first = Line::from(vec![
            Span::styled(format!("{shown:<name$}  "), Style::new().add_modifier(Modifier::BOLD)),
            Span::styled(
                format!("{left}  {} {}", state.mark(), state.word()),
                style.add_modifier(Modifier::BOLD),
            ),
            Span::raw(format!("{slot}{waiting}")),
        ]);
        let room = width.saturating_sub(name + 2 + 8).min(budget.history.len());
        let second = Line::from(vec![
            Span::raw(" ".repeat(name + 2)),
            Span::styled(spark(&budget.history, budget.limit, room), style),
            Span::raw(" 10 min"),
        ]);
        [first, second]
    }

    fn named(&self, name: &str, text: &str) -> Line<'static> {
        Line::from(vec![format!("{name:<10}").bold(), Span::raw(text.to_owned())])
    }

    /// The colour of `level`, or of what is good; none where none is wanted.
    fn style(&self, level: Option<Level>) -> Style {
        let colour = match level {
            _ if !self.colour => return Style::new(),
            None => Color::Green,
            Some(Level::Warning) => Color::Yellow,
            Some(Level::Grave) => Color::Red,
        };
        Style::new().fg(colour)
    }
}

/// The least of each stretch of `history` as a row of `room` cells.
fn spark(history: &[Option<u32>], limit: u32, room: usize) -> String {
    if room == 0 {
        return String::new();
    }
    let cells = history.chunks(history.len().div_ceil(room).max(1));
    let cell = |stretch: &[Option<u32>]| match stretch.iter().flatten().min() {
        None => ' ',
        Some(0) => '_',
        Some(least) => {
            let height = u64::from(*least) * 8 / u64::from(limit.max(1));
            HEIGHTS[usize::try_from(height.saturating_sub(u64::from(height > 0))).unwrap_or(7).min(7)]
        }
    };
    cells.map(cell).collect()
}

fn latencies(latencies: &Latency) -> String {
    let [p50, p90, p99] = [latencies.p50_seconds, latencies.p90_seconds, latencies.p99_seconds].map(latency);
    format!("p50 {p50}  p90 {p90}  p99 {p99}")
}

fn ended(answers: &[Ended]) -> String {
    let told: Vec<String> =
        answers.iter().map(|told| format!("{} ×{}", told.end, count(told.last_ten_minutes))).collect();
    if told.is_empty() { "none in 10 min".to_owned() } else { format!("{}  (10 min)", told.join("  ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_cells_shows_the_least_of_each_stretch() {
        let history = [None, None, Some(100), Some(0), Some(50), Some(100), Some(1), Some(12)];
        assert_eq!(spark(&history, 100, 8), "  █_▄█▁▁");
        assert_eq!(spark(&history, 100, 4), " _▄▁");
        assert_eq!((spark(&history, 0, 2), spark(&history, 100, 0)), ("_█".into(), String::new()));
    }
}
