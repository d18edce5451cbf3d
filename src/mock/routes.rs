//! Which handler stands behind a method and path: every route of the built-in table.

use std::collections::HashSet;
use std::sync::LazyLock;

use http::Method;

use crate::domain::operation::{self, OPERATIONS, Operation};
use crate::mock::seed::Naming;

/// What a route does with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A page of the collection at the path.
    List,
    /// The item at the path.
    Get,
    /// A new item in the collection at the path.
    Create,
    /// Changes the item at the path.
    Update,
    /// Changes the item at the path, or makes it.
    Upsert,
    /// Deletes the item at the path.
    Delete,
    /// Does something to the item at the front of the path, and answers with it.
    Act,
    /// The one object at the path.
    Single,
    /// Changes the one object at the path.
    UpdateSingle,
}

/// A handler of the API.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) operation: &'static Operation,
    pub(crate) action: Action,
    /// Segments of the path that name the action's item or collection.
    depth: usize,
    pub(crate) naming: Naming,
}

impl Route {
    /// The part of `path` that the action is about.
    pub(crate) fn subject<'p>(&self, path: &'p str) -> &'p str {
        match path.match_indices('/').nth(self.depth) {
            Some((end, _)) => &path[..end],
            None => path,
        }
    }
}

/// The path as instance keys see it, and its route. The two prefixed forms lead to the same handlers.
pub(crate) fn find<'p>(method: &Method, path: &'p str) -> Option<(&'p str, &'static Route)> {
    let stripped = path.strip_prefix("/dashboard").map(|rest| (rest, operation::strip_instance(rest)));
    let path = match stripped {
        Some((rest, stripped)) if stripped != rest => stripped,
        Some(_) => return None,
        None => operation::strip_instance(path),
    };
    // HEAD is served by the handlers of GET.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let (_, router) = ROUTERS.iter().find(|(of, _)| of == method)?;
    router.at(path).ok().map(|found| (path, found.value))
}

type Routers = Vec<(Method, matchit::Router<Route>)>;

static ROUTERS: LazyLock<Routers> = LazyLock::new(|| {
    let known: HashSet<(&Method, String)> =
        OPERATIONS.iter().map(|op| (&op.method, anonymous(&op.template))).collect();
    let mut routers = Routers::new();
    for operation in OPERATIONS.iter() {
        if !routers.iter().any(|(method, _)| *method == operation.method) {
            routers.push((operation.method.clone(), matchit::Router::new()));
        }
        let router = routers.iter_mut().find(|(method, _)| *method == operation.method);
        if let Some((_, router)) = router {
            // The table names no route twice; a test holds it to that.
            router.insert(anonymous(&operation.template), route(operation, &known)).ok();
        }
    }
    routers
});

fn route(operation: &'static Operation, known: &HashSet<(&Method, String)>) -> Route {
    let template = &operation.template;
    let segments: Vec<&str> = template.split('/').skip(1).collect();
    let last_parameter = segments.iter().rposition(|segment| segment.starts_with('{'));
    let ends_in_parameter = last_parameter.is_some_and(|at| at + 1 == segments.len());
    let readable = |template: &str| known.contains(&(&Method::GET, anonymous(template)));
    let collection = readable(template) || readable(&format!("{template}/{{id}}"));
    let item_ahead = last_parameter
        .is_some_and(|at| !ends_in_parameter && readable(&format!("/{}", segments[..=at].join("/"))));
    let action = match operation.method.as_str() {
        "GET" if operation.list => Action::List,
        "GET" if ends_in_parameter => Action::Get,
        "GET" => Action::Single,
        "POST" if ends_in_parameter => Action::Upsert,
        "POST" if collection => Action::Create,
        "PUT" if ends_in_parameter => Action::Upsert,
        "PATCH" if ends_in_parameter => Action::Update,
        "DELETE" if ends_in_parameter => Action::Delete,
        "PATCH" if readable(template) && !is_list(template) => Action::UpdateSingle,
        _ if item_ahead => Action::Act,
        _ => Action::Single,
    };
    let depth = match (action, last_parameter) {
        (Action::Act, Some(at)) => at + 1,
        _ => segments.len(),
    };
    Route { operation, action, depth, naming: Naming::of(&segments_of(&segments, depth)) }
}

fn is_list(template: &str) -> bool {
    OPERATIONS.iter().any(|op| op.list && op.template == template)
}

fn segments_of(segments: &[&str], depth: usize) -> String {
    segments.iter().take(depth).flat_map(|segment| ["/", *segment]).collect()
}

/// Templates are the same whatever they call their parameters.
fn anonymous(template: &str) -> String {
    let name = |(at, segment): (usize, &str)| {
        if segment.starts_with('{') { format!("{{p{at}}}") } else { segment.to_owned() }
    };
    template.split('/').enumerate().map(name).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: &Method, path: &str) -> Option<(Action, String)> {
        find(method, path).map(|(path, route)| (route.action, route.subject(path).to_owned()))
    }

    #[test]
    fn every_route_of_the_table_is_served() {
        for operation in OPERATIONS.iter() {
            let (_, route) = find(&operation.method, &operation.template).expect(&operation.template);
            assert_eq!(route.operation.template, operation.template);
            assert_eq!(route.action == Action::List, operation.list, "{}", operation.template);
        }
    }

    #[test]
    fn a_route_knows_what_it_is_about() {
        for (method, path, action, subject) in [
            (Method::GET, "/sessions", Action::List, "/sessions"),
            (Method::HEAD, "/sessions", Action::List, "/sessions"),
            (Method::GET, "/instances/i/sessions", Action::List, "/sessions"),
            (Method::GET, "/dashboard/instances/i/sessions/s", Action::Get, "/sessions/s"),
            (Method::GET, "/instances/i", Action::Get, "/instances/i"),
            (Method::GET, "/instance", Action::Single, "/instance"),
            (Method::GET, "/callbacks/c/instances", Action::List, "/callbacks/c/instances"),
            (Method::POST, "/sessions", Action::Create, "/sessions"),
            (Method::POST, "/skill-fork-syncs", Action::Create, "/skill-fork-syncs"),
            (Method::POST, "/get-member-consumer", Action::Single, "/get-member-consumer"),
            (Method::POST, "/monitor-alerts/m/resolve", Action::Act, "/monitor-alerts/m"),
            (Method::POST, "/sandbox/machines/m/access/shell", Action::Act, "/sandbox/machines/m"),
            (Method::PATCH, "/sessions/s", Action::Update, "/sessions/s"),
            (Method::PATCH, "/stores/s/items", Action::Act, "/stores/s"),
            (Method::PATCH, "/portals/p/auth/app", Action::UpdateSingle, "/portals/p/auth/app"),
            (
                Method::PUT,
                "/integration-instances/i/providers/p",
                Action::Upsert,
                "/integration-instances/i/providers/p",
            ),
            (Method::DELETE, "/sessions/s", Action::Delete, "/sessions/s"),
        ] {
            assert_eq!(found(&method, path), Some((action, subject.to_owned())), "{method} {path}");
        }
        for (method, path) in [
            (Method::GET, "/"),
            (Method::GET, "/sessions/"),
            (Method::GET, "/unheard-of"),
            (Method::PUT, "/sessions"),
            (Method::GET, "/dashboard/sessions"),
            (Method::GET, "/dashboard/instances/i"),
            (Method::TRACE, "/sessions"),
        ] {
            assert_eq!(found(&method, path), None, "{method} {path}");
        }
    }
}
