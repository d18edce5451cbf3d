//! What callers of an environment may do: profiles and rules over the route table, compiled once.
//!
//! Deny by default. A rule that matches method and path stands instead of the profile's answer. Whatever a rule says, a
//! route whose answer carries a secret stays shut unless that rule says `returns_secret = true`: what counts is the
//! route the *upstream* would choose for the path, so a rule with a parameter cannot open a static sibling by accident.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::domain::operation::{self, OPERATIONS, Operation};

/// Methods that callers may use at all.
pub const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// A named set of routes of the built-in table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// What the API itself opens to publishable keys, without `/instance` and `/token`.
    Catalog,
    /// Every GET that returns no secret.
    Read,
    /// Everything that returns no secret.
    All,
}

impl Profile {
    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Read => "read",
            Self::All => "all",
        }
    }

    fn opens(self, operation: &Operation) -> bool {
        let reads = operation.method == Method::GET;
        !operation.returns_secret
            && match self {
                // With our key, /instance and /token would describe our key, not the caller's.
                Self::Catalog => {
                    reads
                        && operation.publishable
                        && !matches!(operation.template.as_str(), "/instance" | "/token")
                }
                Self::Read => reads,
                Self::All => true,
            }
    }
}

/// One rule of the operator: a method and a path template, and what is special about the route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands: `allow[1]` or `rules[0]`.
    pub label: String,
    /// Methods it opens; GET includes HEAD.
    pub methods: Vec<Method>,
    /// `/provider-deployments/{id}`: `{name}` stands for one segment.
    pub path: String,
    /// Treat as a list page although the built-in table does not know it as one.
    pub list: bool,
    /// Freshness of this route's pages.
    pub ttl: Option<Duration>,
    /// Collections that a successful write here also drops.
    pub invalidates: Vec<String>,
    /// Opens a route whose answer carries a secret.
    pub returns_secret: bool,
}

/// What is known of a route that was opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// The template, for metrics, logs and spans; never a raw path.
    pub template: String,
    /// What opened it: a profile's name, `allow[1]` or `rules[0]`.
    pub rule: String,
    /// Its GET answers are pages of a list.
    pub list: bool,
    /// Its answers may carry a secret: never stored.
    pub returns_secret: bool,
    /// Freshness of this route's pages, where a rule sets it.
    pub ttl: Option<Duration>,
    /// Collections that a successful write here also drops.
    pub invalidates: Vec<String>,
}

/// Why a request is refused, and what would open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// What the caller is told.
    pub message: String,
    /// The rule that would open the route, where one would.
    pub hint: Option<String>,
    /// The route of the built-in table, where it is one.
    pub template: Option<&'static str>,
}

/// The compiled answer to "may this method be used on this path".
pub struct AccessTable {
    /// One router per method, so that a static path of one method never hides a parameter of another.
    rules: PerMethod,
    profiles: PerMethod,
    known: Arc<PerMethodOperations>,
}

type PerMethod = Vec<(Method, matchit::Router<Arc<Route>>)>;
type PerMethodOperations = Vec<(Method, matchit::Router<&'static Operation>)>;

impl AccessTable {
    /// Compiles profiles and rules.
    ///
    /// # Errors
    /// Every rule that cannot stand, each as (its label, what is wrong and the cure).
    pub fn compile(profiles: &[Profile], rules: &[Rule]) -> Result<Self, Vec<(String, String)>> {
        let mut errors = Vec::new();
        let mut table = Self { rules: per_method(), profiles: per_method(), known: known_operations() };
        for rule in rules {
            if let Err(fault) = table.add_rule(rule) {
                errors.push((rule.label.clone(), fault));
            }
        }
        for profile in profiles {
            for operation in OPERATIONS.iter().filter(|operation| profile.opens(operation)) {
                let route = Arc::new(Route {
                    template: operation.template.clone(),
                    rule: profile.name().to_owned(),
                    list: operation.list,
                    returns_secret: operation.returns_secret,
                    ttl: None,
                    invalidates: Vec::new(),
                });
                // A second profile may name the same route: the first answer stands.
                if let Some(router) = router(&mut table.profiles, &operation.method) {
                    router.insert(anonymous(&operation.template), route).ok();
                }
            }
        }
        if errors.is_empty() { Ok(table) } else { Err(errors) }
    }

    fn add_rule(&mut self, rule: &Rule) -> Result<(), String> {
        check_template(&rule.path)?;
        if refused_prefix(&rule.path).is_some() || operation::strip_instance(&rule.path) != rule.path {
            return Err(format!(
                "{} can never match: /dashboard/ and /consumer/ are always refused, and /instances/{{id}}/x is judged as /x",
                rule.path
            ));
        }
        let path = anonymous(&rule.path);
        for method in &rule.methods {
            let known = find(&self.known, method, &rule.path).map(|found| *found.value);
            let known = known.filter(|operation| anonymous(&operation.template) == path);
            if known.is_some_and(|operation| operation.returns_secret) && !rule.returns_secret {
                return Err(format!(
                    "{method} {} answers with a secret: to open it all the same, write it as [[environments.rules]] with \
                     returns_secret = true",
                    rule.path
                ));
            }
            let route = Arc::new(Route {
                template: rule.path.clone(),
                rule: rule.label.clone(),
                list: method == Method::GET && (rule.list || known.is_some_and(|operation| operation.list)),
                returns_secret: rule.returns_secret
                    || known.is_some_and(|operation| operation.returns_secret),
                ttl: rule.ttl,
                invalidates: rule.invalidates.clone(),
            });
            let Some(router) = router(&mut self.rules, method) else {
                return Err(format!(
                    "the method {method} cannot be opened: GET, POST, PUT, PATCH, DELETE can"
                ));
            };
            router.insert(path.clone(), route).map_err(|error| match error {
                matchit::InsertError::Conflict { .. } => {
                    format!("another rule already opens {method} {}: keep one of them", rule.path)
                }
                other => format!("{} is no path template: {other}", rule.path),
            })?;
        }
        Ok(())
    }

    /// Decides on a method and a canonical path.
    ///
    /// # Errors
    /// Why not, and which rule would open it.
    pub fn decide(&self, method: &Method, path: &str) -> Result<Arc<Route>, Denied> {
        if let Some(prefix) = refused_prefix(path) {
            let message = format!("{prefix} is never served by this proxy");
            return Err(Denied { message, hint: None, template: None });
        }
        // HEAD is GET without the body, here as upstream.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let path = operation::strip_instance(path);
        let known = || find(&self.known, method, path).map(|found| *found.value);
        if let Some(found) = find(&self.rules, method, path) {
            let route = found.value;
            return match known() {
                Some(operation) if operation.returns_secret && !route.returns_secret => {
                    Err(secret_route(method, operation))
                }
                _ => Ok(route.clone()),
            };
        }
        if let Some(found) = find(&self.profiles, method, path) {
            return Ok(found.value.clone());
        }
        Err(match known() {
            Some(operation) if operation.returns_secret => secret_route(method, operation),
            Some(operation) => Denied {
                message: format!("No rule of this proxy allows {method} {}.", operation.template),
                hint: Some(format!(
                    "The operator can open it with the rule \"{method} {}\" in this environment's allow.",
                    operation.template
                )),
                template: Some(&operation.template),
            },
            None => Denied {
                message: format!("No rule of this proxy allows {method} on this path."),
                hint: Some(format!(
                    "The path is not in the built-in route table. The operator can open it with a rule such as \
                     \"{method} /name/{{id}}\" in this environment's allow."
                )),
                template: None,
            },
        })
    }

    /// Every opened route as `METHOD /template`, for `check` and tests.
    pub fn opened(&self) -> Vec<String> {
        let mut all: Vec<String> = OPERATIONS
            .iter()
            .filter(|operation| self.decide(&operation.method, &operation.template).is_ok())
            .map(|operation| format!("{} {}", operation.method, operation.template))
            .collect();
        all.sort();
        all
    }
}

impl fmt::Debug for AccessTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessTable").finish_non_exhaustive()
    }
}

fn secret_route(method: &Method, operation: &'static Operation) -> Denied {
    let template = &operation.template;
    Denied {
        message: format!("{method} {template} answers with a secret; this proxy does not open it."),
        hint: Some(format!(
            "The operator can open it with [[environments.rules]] methods = [\"{method}\"], path = \"{template}\", \
             returns_secret = true."
        )),
        template: Some(template),
    }
}

fn refused_prefix(path: &str) -> Option<&'static str> {
    let path = operation::strip_instance(path);
    ["/dashboard", "/consumer"]
        .into_iter()
        .find(|prefix| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn per_method() -> PerMethod {
    let opened = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    opened.into_iter().map(|method| (method, matchit::Router::new())).collect()
}

fn known_operations() -> Arc<PerMethodOperations> {
    static KNOWN: std::sync::LazyLock<Arc<PerMethodOperations>> = std::sync::LazyLock::new(|| {
        let mut known: PerMethodOperations = Vec::new();
        for operation in OPERATIONS.iter() {
            if !known.iter().any(|(method, _)| *method == operation.method) {
                known.push((operation.method.clone(), matchit::Router::new()));
            }
            if let Some(router) = router(&mut known, &operation.method) {
                // The table names no route twice; a test holds it to that.
                router.insert(anonymous(&operation.template), operation).ok();
            }
        }
        Arc::new(known)
    });
    KNOWN.clone()
}

fn router<'a, T>(
    routers: &'a mut [(Method, matchit::Router<T>)],
    method: &Method,
) -> Option<&'a mut matchit::Router<T>> {
    routers.iter_mut().find(|(of, _)| of == method).map(|(_, router)| router)
}

fn find<'t, 'p, T>(
    routers: &'t [(Method, matchit::Router<T>)],
    method: &Method,
    path: &'p str,
) -> Option<matchit::Match<'t, 'p, &'t T>> {
    routers.iter().find(|(of, _)| of == method).and_then(|(_, router)| router.at(path).ok())
}

/// `/sessions/{sessionId}` as `/sessions/{0}`: two templates are the same whatever they call their parameters.
fn anonymous(template: &str) -> String {
    let segments = template.split('/').enumerate();
    let segments =
        segments.map(
            |(at, segment)| if segment.starts_with('{') { format!("{{p{at}}}") } else { segment.to_owned() },
        );
    segments.collect::<Vec<_>>().join("/")
}

fn check_template(path: &str) -> Result<(), String> {
    let fault = |what: &str| Err(format!("{path:?} is no path template: {what}"));
    if !path.starts_with('/') {
        return fault("it begins with /");
    }
    if path.len() > 1 && path.ends_with('/') {
        return fault("the API knows no trailing slash");
    }
    for segment in path.split('/').skip(1) {
        let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
        match name {
            Some(name) if name.is_empty() || !plain(name) => return fault("a parameter is {name}"),
            Some(_) => {}
            None if segment.starts_with(':') => return fault("a parameter is {name}, not :name"),
            None if segment.contains(['{', '}', '*']) => {
                return fault("a parameter is a whole segment, and there are no wildcards");
            }
            None if segment.is_empty() && path.len() > 1 => return fault("it holds an empty segment"),
            None if matches!(segment, "." | "..") => return fault("dot segments are refused"),
            None if !plain(segment) => return fault("letters, digits, - . _ ~ only, and no query"),
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
