//! `explain`: the decision on a request that is not sent.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use http::{HeaderName, HeaderValue};
use metorial_proxy::server::explain::{Caller, Explanation, Question, explain};

use super::{ConfigFile, answer, load, refuse_one};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The caller's publishable key; without one, as a caller without a key
    #[arg(long, value_name = "metorial_pk_…")]
    key: Option<String>,
    /// The browser origin it comes from
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// The address it comes from [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// A further field of the request; may be repeated
    #[arg(long, value_name = "NAME: VALUE", value_parser = field)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// GET, POST …
    #[arg(value_name = "METHOD")]
    method: String,
    /// The target as the caller writes it
    #[arg(value_name = "PATH?QUERY")]
    target: String,
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as \"name: value\"")?;
    let name = name.trim().parse::<HeaderName>().map_err(|error| error.to_string())?;
    // A value may be a credential: what is wrong with it is told without it.
    let value = value.trim().parse::<HeaderValue>().map_err(|error| error.to_string())?;
    Ok((name, value))
}

pub(super) fn run(options: &Options) -> ExitCode {
    match explained(options) {
        Ok(text) => answer(&text),
        Err(code) => code,
    }
}

fn explained(options: &Options) -> Result<String, ExitCode> {
    let config = load(options.file.config.as_deref())?.config;
    let question = Question {
        method: options.method.clone(),
        target: options.target.clone(),
        caller: options.key.clone().map_or(Caller::Keyless, Caller::Key),
        client: options.client,
        origin: options.origin.clone(),
        fields: options.header.clone(),
    };
    let explanation = explain(&config, &question).map_err(|error| refuse_one(&error))?;
    if options.json {
        let json = serde_json::to_string(&explanation).map_err(|error| refuse_one(&error))?;
        return Ok(json + "\n");
    }
    Ok(text(&explanation))
}

fn text(told: &Explanation) -> String {
    let mut text = match &told.code {
        Some(code) => format!("{}: {} {code}\n", told.decision, told.status),
        None => format!("{}: {}\n", told.decision, told.status),
    };
    let cache = told.cache_in_words();
    let layers: Vec<_> =
        told.layers.iter().map(|layer| format!("{} {}", layer.said.mark(), layer.layer)).collect();
    let layers = layers.join("  ");
    let shadow =
        told.shadow.as_ref().map(|shadow| format!("{} would refuse: {}", shadow.rule, shadow.reason));
    let limits = told.limits.join(", ");
    for (name, value) in [
        ("reason", Some(told.reason.as_str())),
        ("hint", told.hint.as_deref()),
        ("environment", told.environment.as_deref()),
        ("route", told.route.as_deref()),
        ("rule", told.rule.as_deref()),
        ("cache", Some(cache.as_str())),
        ("limits", Some(limits.as_str()).filter(|limits| !limits.is_empty())),
        ("shadow", shadow.as_deref()),
        ("layers", Some(layers.as_str()).filter(|layers| !layers.is_empty())),
    ] {
        // Writing to a string does not fail.
        value.and_then(|value| writeln!(text, "  {name:<12} {value}").err());
    }
    text
}
