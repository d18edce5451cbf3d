//! The built-in route table: every instance route of the Metorial API that is known, generated from its description.
//!
//! The table is data (`operations.json` beside this file). What is not in it needs a rule of the operator's own.

use std::sync::LazyLock;

use http::Method;
use serde::Deserialize;

/// One route of the API.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its method, upper case.
    pub method: Method,
    /// Its path with `{name}` for each one-segment parameter, e.g. `/sessions/{sessionId}`.
    pub template: String,
    /// A GET that answers with a page of a list.
    pub list: bool,
    /// Returns, creates or accepts secret material, or a URL that is itself a capability.
    pub returns_secret: bool,
    /// The API itself opens it to publishable keys, without more.
    pub publishable: bool,
}

/// Every known operation, in the description's order.
pub static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    // Built in, and read by a test. Were it unreadable, nothing would be allowed, which is the safe side.
    parse(include_str!("operations.json")).unwrap_or_default()
});

fn parse(json: &str) -> Result<Vec<Operation>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Row {
        method: String,
        path: String,
        list: bool,
        keys: Vec<String>,
        returns_secret: bool,
    }
    let rows: Vec<Row> = serde_json::from_str(json)?;
    rows.into_iter()
        .map(|row| {
            Ok(Operation {
                method: row.method.parse().map_err(serde::de::Error::custom)?,
                template: row.path.split('/').map(segment).collect::<Vec<_>>().join("/"),
                list: row.list && row.method == "GET",
                returns_secret: row.returns_secret,
                publishable: row.keys.iter().any(|key| key == "publishable"),
            })
        })
        .collect()
}

/// `:name` of the description as `{name}`.
fn segment(segment: &str) -> String {
    match segment.strip_prefix(':') {
        Some(name) => format!("{{{name}}}"),
        None => segment.to_owned(),
    }
}

/// The collection a path or template belongs to: its first segment, after `/instances/{id}` where that prefixes another.
///
/// A write drops every page of its collection. The first segment covers a list's parents and children alike.
pub fn collection(path: &str) -> &str {
    let path = strip_instance(path);
    let end = path.get(1..).and_then(|rest| rest.find('/')).map_or(path.len(), |at| at + 1);
    &path[..end]
}

/// `/instances/{id}/x` is the same route as `/x` (the API ignores the id when it is called with an instance's key).
pub fn strip_instance(path: &str) -> &str {
    let rest = path.strip_prefix("/instances/").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    match rest {
        Some(rest) if rest.len() > 1 => rest,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_is_whole() {
        assert_eq!(OPERATIONS.len(), 663);
        assert_eq!(OPERATIONS.iter().filter(|operation| operation.list).count(), 174);
        let sessions = OPERATIONS.iter().find(|op| op.template == "/sessions" && op.method == Method::GET);
        assert!(sessions.is_some_and(|op| op.list && op.returns_secret && !op.publishable));
        assert!(OPERATIONS.iter().all(|op| !op.template.contains(':')));
    }

    #[test]
    fn a_collection_is_the_first_segment_whatever_instance_prefixes_it() {
        for (path, expected) in [
            ("/provider-deployments", "/provider-deployments"),
            ("/provider-deployments/pde_1", "/provider-deployments"),
            ("/callbacks/1/instances/2", "/callbacks"),
            ("/instances/ins_1/callbacks/1", "/callbacks"),
            ("/instances", "/instances"),
            ("/instances/ins_1", "/instances"),
            ("/instances/ins_1/", "/instances"),
            ("/", "/"),
        ] {
            assert_eq!(collection(path), expected, "{path}");
        }
    }
}
