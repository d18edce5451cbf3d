//! The part of the page that lives: what an operator needs first comes first and is largest.

use maud::{Markup, html};

use super::chart::{bar, chart};
use super::figures::{Budget, Ended, Figures, Latency, Level, Refusals};
use super::words::{NONE, bytes, count, date, latency, percent, plural, rate, span, time};
use crate::store::limits::EGRESS;

/// All of it, as it stands in the page and as the stream brings it.
pub(super) fn all(figures: &Figures) -> Markup {
    html! {
        (attention(figures))
        section.budgets aria-labelledby="budgets-title" {
            h2 #budgets-title { "Budgets" }
            @for (at, budget) in figures.environments.iter().enumerate() {
                (self::budget(budget, &format!("environment-{at}"), &budget.name, figures))
            }
            (self::budget(&figures.egress, "egress", "Our address, all environments together", figures))
        }
        (traffic(figures))
        div.columns {
            (upstream(figures))
            (cache(figures))
            (credentials(figures))
            (store(figures))
            (configuration(figures))
        }
    }
}

/// One figure with its name. `figure` and `value` are for whoever reads the page with a program.
fn tile(name: &str, figure: &str, value: impl std::fmt::Display, text: &str) -> Markup {
    html! {
        div.tile {
            dt { (name) }
            dd data-figure=(figure) data-value=(value) { (text) }
        }
    }
}

/// Good or bad, told by mark and word; the colour comes in addition.
fn verdict(figure: &str, good: bool, word: &str) -> Markup {
    let (class, mark) = if good { ("good", "✓") } else { ("grave", "✗") };
    html! {
        p.verdict.(class) data-figure=(figure) data-value=(good) { span aria-hidden="true" { (mark) " " } (word) }
    }
}

fn attention(figures: &Figures) -> Markup {
    let notices = figures.notices();
    let verdict = figures.verdict();
    let class = match notices.first().map(|notice| notice.level) {
        None => "good",
        Some(Level::Warning) => "warning",
        Some(Level::Grave) => "grave",
    };
    let marked = |level: Option<Level>| match level {
        None => "✓",
        Some(Level::Warning) => "▲",
        Some(Level::Grave) => "■",
    };
    let mark = marked(notices.first().map(|notice| notice.level));
    html! {
        section #attention.attention.(class) aria-labelledby="attention-title" data-title={ (mark) " " (verdict) " · metorial-proxy" } {
            // Told to a screen reader when it changes, which the seconds below it do all the time.
            h2 #attention-title role="status" data-figure="notices" data-value=(notices.len()) {
                span aria-hidden="true" { (mark) " " } (verdict)
            }
            @if !notices.is_empty() {
                ul {
                    @for notice in &notices {
                        li.(if notice.level == Level::Grave { "grave" } else { "warning" }) {
                            span aria-hidden="true" { (marked(Some(notice.level))) " " } (notice.text)
                        }
                    }
                }
            }
            p.stamp {
                "Figures of " time data-figure="at" data-value=(figures.at) datetime=(date(figures.at)) { (time(figures.at)) }
                ", up for " span data-figure="up" data-value=(figures.up_seconds) { (span(figures.up_seconds.floor())) }
                ", version " span data-figure="version" data-value=(figures.version) { (figures.version) }
                ", " span data-figure="ready" data-value=(figures.ready) { (if figures.ready { "ready" } else { "draining" }) }
            }
        }
    }
}

fn budget(budget: &Budget, id: &str, title: &str, figures: &Figures) -> Markup {
    let Budget { limit, remaining, .. } = *budget;
    let state = budget.state();
    let class = match state.level() {
        None => "good",
        Some(Level::Warning) => "warning",
        Some(Level::Grave) => "grave",
    };
    let least = budget.history.iter().flatten().min().copied();
    let values: Vec<Option<f64>> = budget.history.iter().map(|left| left.map(f64::from)).collect();
    let minutes = span((budget.history.len() as u64 * figures.history_step_seconds) as f64);
    let label = format!(
        "{title}: requests left over the last {minutes}; at least {} of {}",
        least.map_or_else(|| NONE.to_owned(), |least| count(least.into())),
        count(limit.into())
    );
    let figure = |figure: &str, value: &str, text: &str| {
        html! { dd data-figure=(figure) data-environment=(budget.name) data-value=(value) { (text) } }
    };
    let (slot, gate) = (budget.next_slot_seconds, budget.gate_seconds);
    let oldest = budget.oldest_wait_seconds;
    html! {
        article.budget.(class) id=(id) aria-labelledby={ (id) "-title" } data-environment=(budget.name) {
            header {
                h3 id={ (id) "-title" } { (title) }
                p.state data-figure="budget-state" data-environment=(budget.name) data-value=(state.word()) {
                    span aria-hidden="true" { (state.mark()) " " } (state.word())
                }
            }
            p.left {
                strong data-figure="budget-left" data-environment=(budget.name) data-value=(remaining) { (count(remaining.into())) }
                " left of "
                span data-figure="budget-limit" data-environment=(budget.name) data-value=(limit) { (count(limit.into())) }
                " requests per " (span(budget.window_seconds))
            }
            (bar(budget.share()))
            dl.tiles {
                div.tile { dt { "Next free slot" } (figure("next-slot", &slot.to_string(), &(if remaining > 0 && gate == 0.0 { "now".to_owned() } else { format!("in {}", span(slot.max(gate))) }))) }
                // Who waits does so for an environment's budget, whichever is spent.
                @if budget.name != EGRESS {
                div.tile { dt { "Waiting" } (figure("waiting", &budget.waiting.to_string(), &format!("{} {}", count(budget.waiting), plural(budget.waiting, "request", "requests")))) }
                div.tile { dt { "Longest wait" } (figure("oldest-wait", &oldest.map_or_else(String::new, |wait| wait.to_string()), &oldest.map_or_else(|| NONE.to_owned(), span))) }
                }
                div.tile { dt { "Gate" } (figure("gate", &gate.to_string(), &(if gate > 0.0 { format!("✗ shut for {}", span(gate)) } else { "✓ open".to_owned() }))) }
            }
            figure {
                figcaption { "Requests left, lowest in each " (figures.history_step_seconds) " s" }
                div.plot {
                    span.top aria-hidden="true" { (count(limit.into())) }
                    (chart(&label, &values, limit.into(), |left| left == 0.0))
                    span.bottom aria-hidden="true" { "0" }
                }
                p.axis aria-hidden="true" { span { (minutes) " ago" } span { "now" } }
            }
        }
    }
}

fn latencies(of: &str, latencies: &Latency) -> Markup {
    html! {
        @for (name, figure, seconds) in [
            ("p50", "p50", latencies.p50_seconds),
            ("p90", "p90", latencies.p90_seconds),
            ("p99", "p99", latencies.p99_seconds),
        ] {
            (tile(&format!("Latency {name}"), &format!("{of}-{figure}"), seconds.map_or_else(String::new, |seconds| seconds.to_string()), &latency(seconds)))
        }
    }
}

fn traffic(figures: &Figures) -> Markup {
    let traffic = &figures.traffic;
    let most = traffic.history.iter().flatten().copied().fold(0.0, f64::max);
    let minutes = span((traffic.history.len() as u64 * figures.history_step_seconds) as f64);
    let label = format!("Requests per second over the last {minutes}; at most {}", rate(most));
    html! {
        section.traffic aria-labelledby="traffic-title" {
            h2 #traffic-title { "Traffic" }
            dl.tiles.large {
                (tile("Requests", "request-rate", traffic.per_second, &rate(traffic.per_second)))
                (latencies("latency", &traffic.latency))
                (tile("In flight", "in-flight", traffic.in_flight, &count(traffic.in_flight)))
            }
            figure {
                figcaption { "Requests per second" }
                div.plot {
                    span.top aria-hidden="true" { (rate(most)) }
                    (chart(&label, &traffic.history, most, |_| false))
                    span.bottom aria-hidden="true" { "0" }
                }
                p.axis aria-hidden="true" { span { (minutes) " ago" } span { "now" } }
            }
            p.note { "Rates over 10 s, latencies over the last minute, from a request's head until its answer has been sent." }
            div.columns {
                (refusals(&traffic.refusals))
                (answers("answers", "Answers", "Status", &traffic.answers))
            }
        }
    }
}

fn refusals(refusals: &[Refusals]) -> Markup {
    html! {
        section aria-labelledby="refusals-title" {
            h3 #refusals-title { "Refusals" }
            table.counts {
                thead { tr { th scope="col" { "Reason" } th scope="col" { "Code" } th scope="col" { "1 min" } th scope="col" { "10 min" } } }
                tbody {
                    @for told in refusals {
                        tr.some[told.last_ten_minutes > 0] data-figure="refusals" data-reason=(told.policy) data-code=(told.code) data-value=(told.last_ten_minutes) {
                            th scope="row" { (told.policy) }
                            td { (told.status) " " (told.code) }
                            td.number { (count(told.last_minute)) }
                            td.number { (count(told.last_ten_minutes)) }
                        }
                    }
                }
            }
        }
    }
}

fn answers(id: &str, title: &str, first: &str, answers: &[Ended]) -> Markup {
    html! {
        section aria-labelledby={ (id) "-title" } {
            h3 id={ (id) "-title" } { (title) }
            @if answers.is_empty() {
                p.empty { "None in the last ten minutes." }
            } @else {
                table.counts {
                    thead { tr { th scope="col" { (first) } th scope="col" { "1 min" } th scope="col" { "10 min" } } }
                    tbody {
                        @for told in answers {
                            tr.some data-figure=(id) data-end=(told.end) data-value=(told.last_ten_minutes) {
                                th scope="row" { (told.end) }
                                td.number { (count(told.last_minute)) }
                                td.number { (count(told.last_ten_minutes)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn upstream(figures: &Figures) -> Markup {
    let upstream = &figures.upstream;
    html! {
        section.card aria-labelledby="upstream-title" {
            h2 #upstream-title { "The API" }
            (verdict("upstream-healthy", upstream.healthy, if upstream.healthy { "answered when it was last asked" } else { "did not answer when it was last asked" }))
            dl.tiles {
                (tile("Attempts", "upstream-rate", upstream.per_second, &rate(upstream.per_second)))
                (latencies("upstream", &upstream.latency))
            }
            (answers("upstream-answers", "Its answers", "Status or fault", &upstream.answers))
        }
    }
}

fn cache(figures: &Figures) -> Markup {
    let cache = &figures.cache;
    let share = |share: Option<f64>| share.map_or_else(String::new, |share| share.to_string());
    let full = cache.bytes as f64 / cache.capacity_bytes.max(1) as f64;
    html! {
        section.card aria-labelledby="cache-title" {
            h2 #cache-title { "Cache" }
            dl.tiles {
                (tile("Hits, 10 min", "hit-ratio", share(cache.hit_ratio), &percent(cache.hit_ratio)))
                (tile("Hits since start", "hit-ratio-since-start", share(cache.hit_ratio_since_start), &percent(cache.hit_ratio_since_start)))
                (tile("Pages", "cache-entries", cache.entries, &count(cache.entries)))
                (tile("Size", "cache-bytes", cache.bytes, &format!("{} of {}", bytes(cache.bytes), bytes(cache.capacity_bytes))))
            }
            (bar(full))
        }
    }
}

fn credentials(figures: &Figures) -> Markup {
    let ok = figures.upstream.credentials_ok;
    html! {
        section.card aria-labelledby="credentials-title" {
            h2 #credentials-title { "Secret keys" }
            (verdict("credentials-ok", ok, if ok { "taken by the API" } else { "refused by the API (401)" }))
            table.keys {
                thead { tr { th scope="col" { "Environment" } th scope="col" { "Fingerprint" } th scope="col" { "Read" } th scope="col" { "Use" } } }
                tbody {
                    @for key in &figures.credentials {
                        tr.some data-figure="credential" data-environment=(key.environment) data-value=(key.fingerprint) {
                            th scope="row" { (key.environment) }
                            td { code { (key.fingerprint) } }
                            td { (span(key.age_seconds.floor())) " ago" }
                            td { (if key.in_use { "✓ in use" } else { "– held ready" }) }
                        }
                    }
                }
            }
        }
    }
}

fn store(figures: &Figures) -> Markup {
    let store = &figures.store;
    let word = match (store.kind.as_str(), store.partitioned) {
        ("memory", _) => "in this process",
        (_, false) => "in reach",
        (_, true) => "out of reach: on this replica's share",
    };
    html! {
        section.card aria-labelledby="store-title" {
            h2 #store-title { "Store" }
            (verdict("store-ok", !store.partitioned, word))
            dl.tiles {
                (tile("Kind", "store-kind", &store.kind, &store.kind))
                (tile("Replicas", "replicas", store.replicas, &count(store.replicas.into())))
                (tile("Pages", "pages-ok", !store.pages_partitioned, if store.pages_partitioned { "✗ cut off" } else { "✓ in reach" }))
            }
        }
    }
}

fn configuration(figures: &Figures) -> Markup {
    let reload = &figures.reload;
    html! {
        section.card aria-labelledby="configuration-title" {
            h2 #configuration-title { "Configuration" }
            (verdict("reload-ok", reload.ok, if reload.ok { "in force" } else { "not in force: the one before it is" }))
            p { "Last read " time data-figure="reload-at" data-value=(reload.at) datetime=(date(reload.at)) { (date(reload.at)) } }
            @if !reload.errors.is_empty() {
                h3 { "Errors" }
                ul.errors data-figure="reload-errors" data-value=(reload.errors.len()) { @for error in &reload.errors { li { (error) } } }
            }
            @if !reload.needs_restart.is_empty() {
                h3 { "Needs a restart" }
                ul data-figure="needs-restart" data-value=(reload.needs_restart.len()) { @for key in &reload.needs_restart { li { code { (key) } } } }
            }
        }
    }
}
