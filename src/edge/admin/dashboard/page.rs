//! The page, whole. Its text is escaped by maud; nothing in it is marked up by hand.
//!
//! Hooks for programs, which stay: `#live` (what the stream replaces), `#attention`, `#environment-0` … and `#egress` (a
//! budget each, with `data-environment`), `#link` (`data-state="live|lost|paused"`, once the script runs), `#pause`,
//! `#explain` (the form: `method`, `target`, `caller`, `client`, `origin`) and `#explanation` (its answer). A figure is an
//! element with `data-figure` and, bare of units, `data-value` (empty where there is none):
//!
//! | `data-figure` | and |
//! |---|---|
//! | `notices`, `at`, `up`, `version`, `ready` | |
//! | `budget-left`, `budget-limit`, `budget-state`, `next-slot`, `gate` | `data-environment` (`egress` too) |
//! | `waiting`, `oldest-wait` | `data-environment` |
//! | `request-rate`, `latency-p50`, `latency-p90`, `latency-p99`, `in-flight` | |
//! | `refusals` | `data-reason`, `data-code` |
//! | `answers`, `upstream-answers` | `data-end` |
//! | `upstream-healthy`, `upstream-rate`, `upstream-p50`, `upstream-p90`, `upstream-p99` | |
//! | `hit-ratio`, `hit-ratio-since-start`, `cache-entries`, `cache-bytes` | |
//! | `credentials-ok`; `credential` (its value: the fingerprint) | `data-environment` |
//! | `store-ok`, `store-kind`, `replicas`, `pages-ok` | |
//! | `reload-ok`, `reload-at`, `reload-errors`, `needs-restart` | |
//! | `explain-decision`, `explain-status`, `explain-code`, `explain-rule`, `explain-reason`, `explain-error` | |
//! | `explain-layer` (its value: `passed`, `answered`, `refused`, `not reached`) | `data-layer` |

use std::net::IpAddr;

use maud::{DOCTYPE, Markup, html};
use serde::Deserialize;

use super::figures::Figures;
use super::sections;
use crate::edge::admin::explanation::{Caller, Explanation, Question};

/// The icon: part of the page, because browsers ask for one.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
    %3Crect width='16' height='16' rx='3' fill='%231f5fbf'/%3E\
    %3Cpath d='M3 11V5l3 4 2-3 2 3 3-4v6' fill='none' stroke='white' stroke-width='1.6'/%3E%3C/svg%3E";

/// Stands for a key that is no environment's.
const UNKNOWN_KEY: &str = "metorial_pk_unknown";
/// Stands for a secret key in the hands of a caller.
const SECRET_KEY: &str = "metorial_sk_unknown";
/// Before an environment's name among the callers.
const OF_ENVIRONMENT: &str = "environment:";
/// Methods that are offered.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// What the form asks. Nothing in it is a key, so it may stand in the address.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    method: String,
    target: String,
    caller: String,
    client: String,
    origin: String,
}

impl Asked {
    /// The question, or what is wrong with it; `None` where nothing was asked.
    pub(super) fn question(&self, figures: &Figures) -> Option<Result<Question, String>> {
        let target = self.target.trim();
        if target.is_empty() {
            return None;
        }
        let client = match self.client.trim() {
            "" => None,
            text => match text.parse::<IpAddr>() {
                Ok(client) => Some(client),
                Err(_) => {
                    return Some(
                        Err("The client is no IP address, such as 192.0.2.7 or 2001:db8::1.".into()),
                    );
                }
            },
        };
        let caller = self.caller(figures);
        let caller = match (caller.as_str(), caller.strip_prefix(OF_ENVIRONMENT)) {
            (_, Some(name)) => Caller::Environment(name.to_owned()),
            ("unknown", _) => Caller::Key(UNKNOWN_KEY.to_owned()),
            ("secret", _) => Caller::Key(SECRET_KEY.to_owned()),
            _ => Caller::Keyless,
        };
        let method = if self.method.is_empty() { "GET" } else { &self.method };
        let origin = Some(self.origin.trim()).filter(|origin| !origin.is_empty());
        Some(Ok(Question {
            method: method.to_owned(),
            target: target.to_owned(),
            caller,
            client,
            origin: origin.map(str::to_owned),
            fields: Vec::new(),
        }))
    }

    /// What was chosen, or what is chosen where nothing was.
    fn caller(&self, figures: &Figures) -> String {
        match (self.caller.as_str(), figures.environments.first()) {
            ("", Some(environment)) => format!("{OF_ENVIRONMENT}{}", environment.name),
            (caller, _) => caller.to_owned(),
        }
    }
}

/// The page with these figures, and what was asked and answered.
pub(super) fn page(figures: &Figures, asked: &Asked, answer: Option<&Result<Explanation, String>>) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (figures.verdict()) " · metorial-proxy" }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                link rel="icon" href=(ICON);
                link rel="stylesheet" href="/dashboard.css";
                script src="/dashboard.js" defer {}
            }
            body {
                a.skip href="#live" { "Skip to the figures" }
                header.top {
                    h1 { "metorial-proxy" }
                    p #link role="status" { noscript { "Without JavaScript this page stands still: load it again for other figures." } }
                    button #pause type="button" aria-pressed="false" hidden { "Pause" }
                }
                main {
                    div #live tabindex="-1" { (sections::all(figures)) }
                    (explain(figures, asked, answer))
                }
                footer {
                    p { "The same as JSON: " a href="/live.json" { "/live.json" } ", " a href="/status" { "/status" } ". For Prometheus: " a href="/metrics" { "/metrics" } ". In a terminal: " code { "metorial-proxy top" } "." }
                }
            }
        }
    }
}

fn explain(figures: &Figures, asked: &Asked, answer: Option<&Result<Explanation, String>>) -> Markup {
    let environments = figures.environments.iter().map(|environment| {
        (
            format!("{OF_ENVIRONMENT}{}", environment.name),
            format!("a publishable key of {}", environment.name),
        )
    });
    let others = [("none", "no key"), ("unknown", "a key nobody knows"), ("secret", "a secret key")];
    let others = others.map(|(value, text)| (value.to_owned(), text.to_owned()));
    let callers: Vec<(String, String)> = environments.chain(others).collect();
    let caller = asked.caller(figures);
    let method = if asked.method.is_empty() { "GET" } else { &asked.method };
    html! {
        section.card.explain aria-labelledby="explain-title" {
            h2 #explain-title { "Explain a request" }
            p { "What would happen to a request, and why. The layers that decide on real ones are asked; nothing is sent or counted." }
            form #explain method="get" action="/#explain" {
                p.field {
                    label for="explain-method" { "Method" }
                    select #explain-method name="method" { @for name in METHODS { option value=(name) selected[name == method] { (name) } } }
                }
                p.field.wide {
                    label for="explain-target" { "Path and query" }
                    input #explain-target name="target" type="text" required value=(asked.target) placeholder="/provider-deployments?limit=20" autocomplete="off" spellcheck="false";
                }
                p.field {
                    label for="explain-caller" { "Caller shows" }
                    select #explain-caller name="caller" { @for (value, text) in &callers { option value=(value) selected[*value == caller] { (text) } } }
                }
                p.field {
                    label for="explain-client" { "Client address " span.optional { "(optional)" } }
                    input #explain-client name="client" type="text" value=(asked.client) placeholder="192.0.2.7" autocomplete="off" spellcheck="false";
                }
                p.field {
                    label for="explain-origin" { "Browser origin " span.optional { "(optional)" } }
                    input #explain-origin name="origin" type="text" value=(asked.origin) placeholder="https://app.example.com" autocomplete="off" spellcheck="false";
                }
                p.field.submit { button type="submit" { "Explain" } }
            }
            @match answer {
                None => {},
                Some(Err(error)) => div #explanation.answer.grave role="status" { p data-figure="explain-error" data-value=(error) { span aria-hidden="true" { "✗ " } (error) } },
                Some(Ok(told)) => (explanation(told)),
            }
        }
    }
}

fn explanation(told: &Explanation) -> Markup {
    let allowed = told.decision == "allow";
    let (class, mark, word) = if allowed { ("good", "✓", "Allowed") } else { ("grave", "✗", "Refused") };
    let code = told.code.as_deref().unwrap_or_default();
    let shadow =
        told.shadow.as_ref().map(|shadow| format!("{} would refuse: {}", shadow.rule, shadow.reason));
    let limits = told.limits.join(", ");
    let limits = Some(limits).filter(|limits| !limits.is_empty());
    let cache = told.cache_in_words();
    html! {
        div #explanation.answer.(class) {
            h3 {
                span data-figure="explain-decision" data-value=(told.decision) { span aria-hidden="true" { (mark) " " } (word) }
                ": "
                span data-figure="explain-status" data-value=(told.status) { @if allowed && told.status == 200 { "the API answers" } @else { (told.status) } }
                @if !code.is_empty() { " " code data-figure="explain-code" data-value=(code) { (code) } }
            }
            p data-figure="explain-reason" data-value=(told.reason) { (told.reason) }
            @if let Some(hint) = &told.hint { p.hint { (hint) } }
            dl.facts {
                @for (name, figure, value) in [
                    ("Environment", "explain-environment", told.environment.as_deref()),
                    ("Route", "explain-route", told.route.as_deref()),
                    ("Rule", "explain-rule", told.rule.as_deref()),
                    ("Cache", "explain-cache", Some(cache.as_str())),
                    ("Draws on", "explain-limits", limits.as_deref()),
                    ("Shadow", "explain-shadow", shadow.as_deref()),
                ] {
                    @if let Some(value) = value { div { dt { (name) } dd data-figure=(figure) data-value=(value) { (value) } } }
                }
            }
            @if !told.layers.is_empty() {
                h4 { "Layer by layer, from the outside in" }
                ol.layers {
                    @for layer in &told.layers {
                        li.(layer.said.word().replace(' ', "-")) data-figure="explain-layer" data-layer=(layer.layer) data-value=(layer.said.word()) {
                            code { (layer.layer) } " " span { span aria-hidden="true" { (layer.said.mark()) " " } (layer.said.word()) }
                        }
                    }
                }
                p.note { "What lies further in (cache, budget, the API itself) depends on the moment and is not asked." }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::admin::dashboard::figures::Budget;

    #[test]
    fn names_are_text_and_nothing_else() {
        let name = "<script>alert(1)</script>\"' onload=x &amp;";
        let evil = || name.to_owned();
        let mut figures = Figures { version: evil(), ..Figures::default() };
        figures.environments = vec![Budget { name: evil(), limit: 1, ..Budget::default() }];
        figures.reload.errors = vec![evil()];
        figures.reload.needs_restart = vec![evil()];
        figures.store.kind = evil();
        let page = page(&figures, &Asked::default(), None).into_string();
        assert_eq!(page.matches("<script").count(), 1, "its own");
        assert!(
            page.contains(
                "data-environment=\"&lt;script&gt;alert(1)&lt;/script&gt;&quot;' onload=x &amp;amp;\""
            ),
            "{page}"
        );
        assert!(!page.contains("\"' onload"), "{page}");
    }
}
