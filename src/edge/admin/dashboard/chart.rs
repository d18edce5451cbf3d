//! Ten minutes as a picture: a line over an area, drawn here, so that it is there without a script too.
//!
//! It is stretched to whatever room there is, so no text is in it; what it says stands beside it and in its label.

use std::fmt::Write as _;

use maud::{Markup, html};

/// Height of the drawing; its width is one for each step.
const HEIGHT: f64 = 100.0;
/// So that a line at either end is seen whole.
const MARGIN: f64 = 3.0;

/// A chart of `values`, oldest first, from zero to `top`. `marked` are those that stand out.
pub(super) fn chart(label: &str, values: &[Option<f64>], top: f64, marked: fn(f64) -> bool) -> Markup {
    let height = |value: f64| {
        let share = if top > 0.0 { (value / top).clamp(0.0, 1.0) } else { 0.0 };
        HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN)
    };
    let (mut line, mut area, mut marks) = (String::new(), String::new(), String::new());
    let mut at = 0;
    // Where nothing is known the line is broken.
    for run in values.chunk_by(|one, next| one.is_some() == next.is_some()) {
        let points = run.iter().enumerate().filter_map(|(step, value)| Some((at + step, (*value)?)));
        for (step, value) in points.clone() {
            let (command, y) = (if step == at { 'M' } else { 'L' }, height(value));
            // A value holds for its whole step. Writing to a string does not fail.
            write!(line, "{command}{step} {y:.1}H{} ", step + 1).ok();
            if marked(value) {
                write!(marks, "M{step} {HEIGHT}h1v-6h-1z").ok();
            }
        }
        if run[0].is_some() {
            let path = points.fold(format!("M{at} {HEIGHT}"), |mut path, (step, value)| {
                write!(path, "L{step} {:.1}H{}", height(value), step + 1).ok();
                path
            });
            write!(area, "{path}V{HEIGHT}Z").ok();
        }
        at += run.len();
    }
    let view = format!("0 0 {} {HEIGHT}", values.len().max(1));
    html! {
        svg class="chart" role="img" aria-label=(label) viewBox=(view) preserveAspectRatio="none" {
            path class="grid" d={ "M0 " (height(top)) "H" (at) "M0 " (HEIGHT / 2.0) "H" (at) "M0 " (height(0.0)) "H" (at) } {}
            path class="area" d=(area) {}
            path class="line" d=(line.trim_end()) {}
            @if !marks.is_empty() { path class="spent" d=(marks) {} }
        }
    }
}

/// A bar of which `share` (0 to 1) is filled. What it says stands beside it.
pub(super) fn bar(share: f64) -> Markup {
    let filled = (share.clamp(0.0, 1.0) * 100.0).round();
    html! {
        svg class="bar" aria-hidden="true" viewBox="0 0 100 1" preserveAspectRatio="none" {
            rect class="whole" width="100" height="1" {}
            rect class="filled" width=(filled) height="1" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_drawn() {
        let values = [None, Some(0.0), Some(50.0), None, Some(100.0)];
        let drawn = chart("a \"b\" <c>", &values, 100.0, |value| value == 0.0).into_string();
        assert!(drawn.contains("aria-label=\"a &quot;b&quot; &lt;c&gt;\""), "{drawn}");
        assert!(drawn.contains("class=\"line\" d=\"M1 97.0H2 L2 50.0H3 M4 3.0H5\""), "{drawn}");
        assert!(
            drawn.contains("class=\"area\" d=\"M1 100L1 97.0H2L2 50.0H3V100ZM4 100L4 3.0H5V100Z\""),
            "{drawn}"
        );
        assert!(drawn.contains("class=\"spent\" d=\"M1 100h1v-6h-1z\""), "{drawn}");
        let empty = chart("", &[], 0.0, |_| false).into_string();
        assert!(empty.contains("viewBox=\"0 0 1 100\"") && !empty.contains("NaN"), "{empty}");
    }
}
