//! From a file and the environment to a [`Config`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::excerpt::Source;
use super::fault::{Fault, Wrong};
use super::reader::{Context, Reader};
use super::value::{Field, Value};
use super::{Config, compile, env, secret};

/// Environment variables: `std::env::vars_os().collect()`.
pub type Variables = BTreeMap<OsString, OsString>;

/// No configuration comes near; what is longer is the wrong file.
const LONGEST: u64 = 4 * 1024 * 1024;

/// Where configuration comes from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The file named on the command line; without one, `METORIAL_PROXY_CONFIG` names it, or there is none.
    pub file: Option<&'a Path>,
    /// The environment. Secrets may come from it, a few settings override the file's, and without a file it is all.
    pub env: &'a Variables,
}

/// A configuration, and what is odd about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What an operator should know, and may want just so.
    pub warnings: Vec<Fault>,
    /// Every file it depends on, the configuration file first: what a reload watches.
    pub files: Vec<PathBuf>,
}

/// Reads, completes and checks a configuration.
///
/// # Errors
/// Everything that is wrong with it, at once; a file that is no TOML hides the rest.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, Vec<Fault>> {
    read(sources).0
}

/// The same, and every file that was read or looked for, also where something is wrong: the cure may be in one of them.
pub fn read(sources: &Sources<'_>) -> (Result<Loaded, Vec<Fault>>, Vec<PathBuf>) {
    let named = sources.env.get(OsStr::new("METORIAL_PROXY_CONFIG")).filter(|name| !name.is_empty());
    let file = sources.file.or(named.map(Path::new));
    let mut context = Context {
        variables: sources.env,
        read: BTreeSet::new(),
        files: file.map(Path::to_owned).into_iter().collect(),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let text = match file.map(read_text).transpose() {
        Ok(text) => text,
        Err(faults) => return (Err(faults), context.files),
    };
    let mut table = match &text {
        Some((name, text)) => match text.parse() {
            Ok(table) => table,
            Err(error) => return (Err(vec![syntax_fault(name, text, &error)]), context.files),
        },
        None => toml::Table::new(),
    };
    let overlay = env::overlay(&mut table, sources.env, file.is_some());

    let mut reader = Reader { context: &mut context, path: String::new() };
    let config = match Value::read(toml::Value::Table(table)) {
        Ok(section) => compile::compile(reader, Field::Set(section)),
        Err(wrong) => {
            reader.refuse("", wrong);
            None
        }
    };

    let Context { read, mut files, errors, warnings, .. } = context;
    let (mut errors, mut warnings) = overlay.finish(sources.env, &read, errors, warnings);
    if let Some(source) = text.as_ref().and_then(|(name, text)| Source::parse(name, text)) {
        errors.iter_mut().chain(&mut warnings).for_each(|fault| fault.excerpt = source.excerpt(fault));
    }
    if let Some(config) = &config {
        let tls = config.server.tls.iter().flat_map(|tls| [&tls.certificate, &tls.private_key]);
        files.extend(tls.chain(&config.upstream.ca_certificate).cloned());
    }
    let result = match config {
        Some(config) if errors.is_empty() => Ok(Loaded { config, warnings, files: files.clone() }),
        _ => Err(errors),
    };
    (result, files)
}

/// A file's name and what stands in it.
fn read_text(path: &Path) -> Result<(String, String), Vec<Fault>> {
    let name = path.display().to_string();
    match secret::read_file(path, LONGEST) {
        Ok(text) => Ok((name, text)),
        Err(wrong) => Err(vec![Fault::new(name, wrong)]),
    }
}

/// Place and message of a syntax error, without the line it is in: a secret may stand there.
fn syntax_fault(file: &str, text: &str, error: &toml::de::Error) -> Fault {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let message = format!("is no TOML: {}", error.message().replace('\n', ", "));
    Fault::new(format!("{file}:{line}:{column}"), Wrong::new(message, "correct the syntax (https://toml.io)"))
}
