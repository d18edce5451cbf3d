//! What callers of an environment may do: profiles and rules over the route table, compiled once.
//!
//! Deny by default. A rule that matches method and path stands instead of the profile's answer. Whatever a rule says, a
//! route whose answer carries a secret stays shut unless that rule says `returns_secret = true`: what counts is the
//! route the *upstream* would choose for the path, so a rule with a parameter cannot open a static sibling by accident.

use std::fmt;
use std::time::Duration;

use http::Method;

use crate::domain::operation::{self, OPERATIONS, Operation};

mod query;
mod secrets;
mod template;

pub use query::{Broken, Query};
pub use secrets::answers_with_secret;
use secrets::{SecretRoute, secret_route};
use template::anonymous;

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// What it asks of the query.
    pub query: Query,
    /// A stricter candidate: it is asked beside what is enforced, and opens nothing.
    pub shadow: bool,
}

/// Names a route within its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteId(usize);

/// What is known of a route that was opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// Names it within its table.
    pub id: RouteId,
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
    /// What its rule asks of the query.
    pub query: Query,
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
    /// The rule that matched and whose constraint is broken, where that is why.
    pub rule: Option<String>,
    /// It could be read in two ways, which is another fault than asking for too much.
    pub ambiguous: bool,
}

impl Denied {
    fn new(message: String, hint: Option<String>, template: Option<&'static str>) -> Self {
        Self { message, hint, template, rule: None, ambiguous: false }
    }
}

/// What a shadow rule would have refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowRefusal {
    /// Where the rule stands: `rules[2]`.
    pub rule: String,
    /// The parameter whose constraint is broken, `query_strict` or `returns_secret`: safe to log.
    pub constraint: String,
    /// What the caller would have been told.
    pub message: String,
}

/// The compiled answer to "may this method be used on this path".
pub struct AccessTable {
    routes: Vec<Route>,
    /// One router per method, so that a static path of one method never hides a parameter of another.
    rules: PerMethod,
    /// Candidates that are asked beside the others, and where they stand.
    shadows: PerMethod,
    shadow_rules: Vec<String>,
    profiles: PerMethod,
    known: &'static PerMethodOperations,
}

type PerMethod = Vec<(Method, matchit::Router<RouteId>)>;
type PerMethodOperations = Vec<(Method, matchit::Router<&'static Operation>)>;

impl AccessTable {
    /// Compiles profiles and rules.
    ///
    /// # Errors
    /// Every rule that cannot stand, each as (its label, what is wrong and the cure).
    pub fn compile(profiles: &[Profile], rules: &[Rule]) -> Result<Self, Vec<(String, String)>> {
        let mut errors = Vec::new();
        let mut table = Self {
            routes: Vec::new(),
            rules: per_method(),
            shadows: per_method(),
            shadow_rules: rules.iter().filter(|rule| rule.shadow).map(|rule| rule.label.clone()).collect(),
            profiles: per_method(),
            known: known_operations(),
        };
        for rule in rules {
            if let Err(fault) = table.add_rule(rule) {
                errors.push((rule.label.clone(), fault));
            }
        }
        for profile in profiles {
            for operation in OPERATIONS.iter().filter(|operation| profile.opens(operation)) {
                let id = RouteId(table.routes.len());
                table.routes.push(Route {
                    id,
                    template: operation.template.clone(),
                    rule: profile.name().to_owned(),
                    list: operation.list,
                    returns_secret: operation.returns_secret,
                    ttl: None,
                    invalidates: Vec::new(),
                    query: Query::default(),
                });
                // A second profile may name the same route: the first answer stands.
                if let Some(router) = router(&mut table.profiles, &operation.method) {
                    router.insert(anonymous(&operation.template), id).ok();
                }
            }
        }
        if errors.is_empty() { Ok(table) } else { Err(errors) }
    }

    fn add_rule(&mut self, rule: &Rule) -> Result<(), String> {
        template::check(&rule.path)?;
        if refused_prefix(&rule.path).is_some() || operation::strip_instance(&rule.path) != rule.path {
            return Err(format!(
                "{} can never match: /dashboard/ and /consumer/ are always refused, and /instances/{{id}}/x is judged as /x",
                rule.path
            ));
        }
        let path = anonymous(&rule.path);
        for method in &rule.methods {
            if !rule.returns_secret && !rule.shadow && answers_with_secret(method, &rule.path) {
                return Err(format!(
                    "{method} {} answers with a secret: to open it all the same, write it as [[environments.rules]] with \
                     returns_secret = true",
                    rule.path
                ));
            }
            let id = RouteId(self.routes.len());
            self.routes.push(Route {
                id,
                template: rule.path.clone(),
                rule: rule.label.clone(),
                list: method == Method::GET && (rule.list || is_list(&rule.path)),
                returns_secret: rule.returns_secret,
                ttl: rule.ttl,
                invalidates: rule.invalidates.clone(),
                query: rule.query.clone(),
            });
            let routers = if rule.shadow { &mut self.shadows } else { &mut self.rules };
            let Some(router) = router(routers, method) else {
                return Err(format!(
                    "the method {method} cannot be opened: GET, POST, PUT, PATCH, DELETE can"
                ));
            };
            router.insert(path.clone(), id).map_err(|error| match error {
                matchit::InsertError::Conflict { .. } => {
                    let verb = if rule.shadow { "shadows" } else { "opens" };
                    format!("another rule already {verb} {method} {}: keep one of them", rule.path)
                }
                other => format!("{} is no path template: {other}", rule.path),
            })?;
        }
        Ok(())
    }

    /// Decides on a method, a canonical path and its query.
    ///
    /// # Errors
    /// Why not, and which rule would open it.
    pub fn decide(&self, method: &Method, path: &str, query: &str) -> Result<&Route, Denied> {
        if let Some(prefix) = refused_prefix(path) {
            return Err(Denied::new(format!("{prefix} is never served by this proxy"), None, None));
        }
        let (method, path) = canonical(method, path);
        let known = || find(self.known, method, path).map(|found| *found.value);
        if let Some(found) = find(&self.rules, method, path) {
            let route = self.route(*found.value);
            if !route.returns_secret
                && let Some(secret) = secret_route(method, path)
            {
                return Err(answers_secret(method, secret));
            }
            return match route.query.check(query) {
                Ok(()) => Ok(route),
                Err(broken) => Err(constraint(route, broken, known())),
            };
        }
        if let Some(found) = find(&self.profiles, method, path) {
            return Ok(self.route(*found.value));
        }
        if let Some(secret) = secret_route(method, path) {
            return Err(answers_secret(method, secret));
        }
        Err(match known() {
            Some(operation) => Denied::new(
                format!("No rule of this proxy allows {method} {}.", operation.template),
                Some(format!(
                    "The operator can open it with the rule \"{method} {}\" in this environment's allow.",
                    operation.template
                )),
                Some(&operation.template),
            ),
            None => Denied::new(
                format!("No rule of this proxy allows {method} on this path."),
                Some(format!(
                    "The path is not in the built-in route table. The operator can open it with a rule such as \
                     \"{method} /name/{{id}}\" in this environment's allow."
                )),
                None,
            ),
        })
    }

    /// A route of this table.
    pub fn route(&self, id: RouteId) -> &Route {
        &self.routes[id.0]
    }

    /// What the shadow rule for a request that was allowed would have said, where there is one and it would have refused.
    pub fn shadow(&self, method: &Method, path: &str, query: &str) -> Option<ShadowRefusal> {
        if self.shadow_rules.is_empty() {
            return None;
        }
        let (method, path) = canonical(method, path);
        let route = self.route(*find(&self.shadows, method, path)?.value);
        let (constraint, message) = match secret_route(method, path) {
            Some(secret) if !route.returns_secret => {
                ("returns_secret".to_owned(), answers_secret(method, secret).message)
            }
            _ => route.query.check(query).err().map(|broken| (broken.constraint, broken.message))?,
        };
        Some(ShadowRefusal { rule: route.rule.clone(), constraint, message })
    }

    /// Where the shadow rules stand.
    pub fn shadow_rules(&self) -> impl Iterator<Item = &str> {
        self.shadow_rules.iter().map(String::as_str)
    }

    /// Whether `method` on `template` is open to some query.
    pub fn opens(&self, method: &Method, template: &str) -> bool {
        self.decide(method, template, "").map_or_else(|denied| denied.rule.is_some(), |_| true)
    }

    /// Every opened route as `METHOD /template`, for `check` and tests.
    pub fn opened(&self) -> Vec<String> {
        let mut all: Vec<String> = OPERATIONS
            .iter()
            .filter(|operation| self.opens(&operation.method, &operation.template))
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

/// Whether GET on this template is a list of the built-in table.
pub fn is_list(path: &str) -> bool {
    // What the API would choose for it may be another: `/sessions/ses_1` is a session too.
    find(known_operations(), &Method::GET, path)
        .is_some_and(|found| found.value.list && anonymous(&found.value.template) == anonymous(path))
}

/// HEAD is GET without the body, here as upstream, and `/instances/{id}/x` is `/x`.
fn canonical<'a>(method: &'a Method, path: &'a str) -> (&'a Method, &'a str) {
    (if method == Method::HEAD { &Method::GET } else { method }, operation::strip_instance(path))
}

fn constraint(route: &Route, broken: Broken, known: Option<&'static Operation>) -> Denied {
    let Broken { message, ambiguous, .. } = broken;
    Denied {
        message,
        hint: Some(format!("The rule that opens this route ({}) asks for it.", route.rule)),
        template: known.map(|operation| operation.template.as_str()),
        rule: Some(route.rule.clone()),
        ambiguous,
    }
}

fn answers_secret(method: &Method, secret: SecretRoute) -> Denied {
    let (template, known) = match secret {
        SecretRoute::Known(operation) => (operation.template.as_str(), Some(operation.template.as_str())),
        SecretRoute::Family(family) => (family, None),
    };
    let (below, path) = match known {
        Some(_) => ("", format!("path = \"{template}\"")),
        None => (" and what lies below", "its path".to_owned()),
    };
    Denied::new(
        format!("{method} {template}{below} answers with a secret; this proxy does not open it."),
        Some(format!(
            "The operator can open it with [[environments.rules]] methods = [\"{method}\"], {path}, \
             returns_secret = true."
        )),
        known,
    )
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

fn known_operations() -> &'static PerMethodOperations {
    static KNOWN: std::sync::LazyLock<PerMethodOperations> = std::sync::LazyLock::new(|| {
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
        known
    });
    &KNOWN
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

#[cfg(test)]
mod tests;
