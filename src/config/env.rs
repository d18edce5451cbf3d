//! Environment variables as configuration: each stands for a key of the file, and is read as if it stood there.
//!
//! Without a file they describe one environment. With one, those that say where this proxy stands override its keys, and
//! the others are read only where the file says `{ env = … }`. An empty variable counts as not set.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use super::Variables;
use super::fault::{Fault, Wrong, nearest};

/// How a variable's text becomes a value.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// Separated by commas.
    List,
    /// `true` or `false`.
    Flag,
    /// The secret itself: the key says `{ env = … }`.
    Secret,
    /// The path of a secret's file: the key says `{ file = … }`.
    SecretFile,
}

struct Variable {
    name: &'static str,
    key: &'static str,
    form: Form,
    /// Overrides the key of a file too.
    overrides: bool,
}

const fn overriding(name: &'static str, key: &'static str, form: Form) -> Variable {
    Variable { name, key, form, overrides: true }
}

const fn alone(name: &'static str, key: &'static str, form: Form) -> Variable {
    Variable { name, key, form, overrides: false }
}

/// The one place where a store's URL may hold a password.
pub(super) const STORE: &str = "METORIAL_PROXY_STORE";
const SECRET_KEY: &str = "METORIAL_SECRET_KEY";
const SECRET_KEY_FILE: &str = "METORIAL_SECRET_KEY_FILE";
const PUBLISHABLE_KEYS: &str = "METORIAL_PUBLISHABLE_KEYS";
const KEYLESS: &str = "METORIAL_KEYLESS";
const ENVIRONMENT: &str = "METORIAL_ENVIRONMENT";

const VARIABLES: &[Variable] = &[
    // Names the file instead of standing for a key of it.
    overriding("METORIAL_PROXY_CONFIG", "", Form::Text),
    overriding("METORIAL_PROXY_LISTEN", "server.listen", Form::List),
    overriding("METORIAL_PROXY_ADMIN", "server.admin", Form::Text),
    overriding("METORIAL_PROXY_BASE_PATH", "server.base_path", Form::Text),
    overriding("METORIAL_UPSTREAM", "upstream.url", Form::Text),
    overriding("METORIAL_PROXY_EGRESS_GROUP", "upstream.egress_group", Form::Text),
    overriding(STORE, "store.url", Form::Text),
    overriding("METORIAL_PROXY_STORE_PASSWORD_FILE", "store.password", Form::SecretFile),
    overriding("METORIAL_PROXY_LOG", "telemetry.log", Form::Text),
    alone(SECRET_KEY, "environments[0].secret_key", Form::Secret),
    alone(SECRET_KEY_FILE, "environments[0].secret_key", Form::SecretFile),
    alone(PUBLISHABLE_KEYS, "environments[0].publishable_keys", Form::List),
    alone(KEYLESS, "environments[0].keyless", Form::Flag),
    alone(ENVIRONMENT, "environments[0].kind", Form::Text),
    alone("METORIAL_ALLOW", "environments[0].allow", Form::List),
    alone("METORIAL_ORIGINS", "environments[0].origins", Form::List),
];

/// What the variables added, so that faults can be told at the variable instead of the key.
pub(super) struct Overlay {
    with_file: bool,
    faults: Vec<Fault>,
    /// Variables that stand for a key.
    set: Vec<&'static Variable>,
}

/// Writes the variables into `table` as if they stood in it.
pub(super) fn overlay(table: &mut toml::Table, variables: &Variables, with_file: bool) -> Overlay {
    let mut overlay = Overlay { with_file, faults: Vec::new(), set: Vec::new() };
    let mut environment = toml::Table::new();
    for variable in VARIABLES.iter().filter(|variable| variable.overrides || !with_file) {
        let Some(text) = variables.get(OsStr::new(variable.name)).filter(|text| !text.is_empty()) else {
            continue;
        };
        let Some((section, key)) = variable.key.split_once('.') else { continue };
        overlay.set.push(variable);
        let value = match text.to_str().ok_or_else(not_utf8).and_then(|text| value(variable, text)) {
            Ok(value) => value,
            Err(wrong) => {
                overlay.faults.push(Fault::new(variable.name, wrong));
                continue;
            }
        };
        if section == "environments[0]" {
            environment.insert(key.to_owned(), value);
        } else if let Some(section) =
            table.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut()
        {
            section.insert(key.to_owned(), value);
        }
    }
    if !with_file {
        overlay.check_alone(&environment);
        let named = environment.get("kind").and_then(toml::Value::as_str);
        let name = named.filter(|name| ["production", "development"].contains(name)).unwrap_or("development");
        environment.insert("name".into(), name.into());
        table.insert("environments".into(), vec![toml::Value::Table(environment)].into());
    }
    overlay
}

fn not_utf8() -> Wrong {
    Wrong::new("is not UTF-8", "set it anew")
}

fn value(variable: &Variable, text: &str) -> Result<toml::Value, Wrong> {
    let source = |key: &str, text: &str| toml::Table::from_iter([(key.to_owned(), text.into())]).into();
    Ok(match variable.form {
        Form::Text => text.into(),
        Form::List => {
            let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            entries.map(toml::Value::from).collect::<Vec<_>>().into()
        }
        Form::Flag => match text {
            "true" => true.into(),
            "false" => false.into(),
            _ => {
                return Err(Wrong::new(
                    format!("{text:?} is neither true nor false"),
                    "set it to true or false",
                ));
            }
        },
        Form::Secret => source("env", variable.name),
        Form::SecretFile => source("file", text),
    })
}

impl Overlay {
    /// What only the variables can get wrong, in their own words.
    fn check_alone(&mut self, environment: &toml::Table) {
        let is_set = |name: &str| self.set.iter().any(|variable| variable.name == name);
        let mut faults = Vec::new();
        match (is_set(SECRET_KEY), is_set(SECRET_KEY_FILE)) {
            (false, false) => faults.push(Fault::new(
                SECRET_KEY,
                Wrong::new(
                    format!("is not set, nor is {SECRET_KEY_FILE}"),
                    "set one of them to the secret key (metorial_sk_…) or its file, or name a configuration file \
                     with --config",
                ),
            )),
            (true, true) => faults.push(Fault::new(
                SECRET_KEY,
                Wrong::new(format!("is set, and so is {SECRET_KEY_FILE}"), "unset one of them"),
            )),
            _ => {}
        }
        if !is_set(PUBLISHABLE_KEYS) && environment.get("keyless") != Some(&true.into()) {
            faults.push(Fault::new(
                PUBLISHABLE_KEYS,
                Wrong::new(
                    format!("is not set, and {KEYLESS} is not true: nobody could use this proxy"),
                    format!(
                        "set it to the publishable keys (metorial_pk_…) of the callers, separated by commas, or \
                         set {KEYLESS}=true for a sidecar"
                    ),
                ),
            ));
        }
        self.faults.append(&mut faults);
    }

    /// Every error and warning, at the variable where one was set, with those about variables themselves.
    pub(super) fn finish(
        mut self,
        variables: &Variables,
        read: &BTreeSet<String>,
        errors: Vec<Fault>,
        mut warnings: Vec<Fault>,
    ) -> (Vec<Fault>, Vec<Fault>) {
        let errors: Vec<Fault> = errors.into_iter().map(|fault| self.renamed(fault)).collect();
        warnings = warnings.into_iter().map(|fault| self.renamed(fault)).collect();
        // What was told of a variable in its own words is not told again in the file's.
        let own: Vec<String> = self.faults.iter().map(|fault| fault.path.clone()).collect();
        self.faults.extend(errors.into_iter().filter(|fault| !own.contains(&fault.path)));

        let names =
            variables.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str().unwrap_or(""))));
        for (name, _) in
            names.filter(|(name, value)| name.starts_with("METORIAL_") && !is_service_link(name, value))
        {
            if self.is_known(name) || read.contains(name) {
                continue;
            }
            let near = nearest(name, VARIABLES.iter().filter(|v| self.is_known(v.name)).map(|v| v.name));
            let cure = near.map_or_else(|| "unset it".into(), |near| format!("did you mean {near}?"));
            if name.starts_with("METORIAL_PROXY_") {
                self.faults.push(Fault::new(name, Wrong::new("is no variable of this proxy", cure)));
            } else if self.with_file {
                let cure = format!("unset it, or refer to it in the file as {{ env = \"{name}\" }}");
                warnings.push(Fault::new(
                    name,
                    Wrong::new("is set, but the configuration file is what counts", cure),
                ));
            } else {
                warnings.push(Fault::new(name, Wrong::new("is set, but is no variable of this proxy", cure)));
            }
        }
        (self.faults, warnings)
    }

    fn is_known(&self, name: &str) -> bool {
        VARIABLES.iter().any(|variable| variable.name == name && (variable.overrides || !self.with_file))
    }

    fn renamed(&self, fault: Fault) -> Fault {
        let candidates = VARIABLES.iter().filter(|variable| !self.with_file && !variable.overrides);
        for variable in self.set.iter().copied().chain(candidates) {
            match fault.path.strip_prefix(variable.key) {
                Some(entry) if entry.starts_with('[') => {
                    return Fault { path: format!("{}{entry}", variable.name), ..fault };
                }
                Some(rest) if rest.is_empty() || rest.starts_with('.') => {
                    return Fault { path: variable.name.to_owned(), ..fault };
                }
                _ => {}
            }
        }
        fault
    }
}

/// Kubernetes sets these for every service in the namespace, so for one that is called `metorial-proxy` too:
/// `METORIAL_PROXY_SERVICE_HOST`, `METORIAL_PROXY_PORT=tcp://…`, `METORIAL_PROXY_PORT_8080_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    let protocol = |text: &str| ["TCP", "UDP", "SCTP"].iter().any(|protocol| text.starts_with(protocol));
    let of_port = name.match_indices("_PORT_").any(|(at, matched)| {
        let port = &name[at + matched.len()..];
        let rest = port.trim_start_matches(|c: char| c.is_ascii_digit());
        rest.len() < port.len() && rest.strip_prefix('_').is_some_and(protocol)
    });
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
        || of_port
}

#[cfg(test)]
mod tests;
