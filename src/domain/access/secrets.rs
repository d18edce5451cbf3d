//! Which routes answer with a secret: what the route table says, and beyond it whole families of routes.

use http::Method;

use super::{find, known_operations};
use crate::domain::operation::{self, Operation};

/// Whatever lies in these and is not in the route table answers with a secret: the API has routes that no description
/// of it names. `{id}` stands for one segment.
const FAMILIES: [&str; 22] = [
    "/api-keys",
    "/callback-destinations",
    "/custom-provider-versions/{id}/env",
    "/custom-providers/{id}/env",
    "/documents/{id}/edit-token",
    "/event-destinations",
    "/file-links",
    "/integration-setup-sessions",
    "/magic-mcp-tokens",
    "/organization/api-keys",
    "/organization/outposts/{id}/credentials",
    "/outposts/{id}/access",
    "/outposts/{id}/credentials",
    "/portal-oauth",
    "/provider-auth-config-exports",
    "/provider-auth-config-imports",
    "/provider-oauth/takeouts",
    "/provider-setup-sessions",
    "/sandbox/machines/{id}/access",
    "/secrets",
    "/setup-sessions",
    "/test-helpers",
];

/// A route that answers with a secret.
#[derive(Debug, Clone, Copy)]
pub(super) enum SecretRoute {
    /// One of the route table.
    Known(&'static Operation),
    /// Any other one of a family.
    Family(&'static str),
}

/// The route that `method` on `path`, a path or a template, reaches upstream, where it answers with a secret.
pub(super) fn secret_route(method: &Method, path: &str) -> Option<SecretRoute> {
    let path = operation::strip_instance(path);
    match find(known_operations(), method, path) {
        Some(known) => Some(*known.value).filter(|known| known.returns_secret).map(SecretRoute::Known),
        None => FAMILIES.into_iter().find(|family| lies_in(path, family)).map(SecretRoute::Family),
    }
}

/// Whether the API answers `method` on `path`, a path or a template, with a secret.
pub fn answers_with_secret(method: &Method, path: &str) -> bool {
    secret_route(method, path).is_some()
}

fn lies_in(path: &str, family: &str) -> bool {
    let mut segments = path.split('/');
    family.split('/').all(|expected| segments.next().is_some_and(|is| expected == "{id}" || is == expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_table_names_is_known_by_its_family() {
        for (method, path, expected) in [
            (Method::GET, "/event-destinations", true),
            (Method::GET, "/event-destinations/evd_1", true),
            (Method::GET, "/api-keys", true),
            (Method::POST, "/api-keys/{id}/reveal", true),
            (Method::GET, "/instances/ins_1/api-keys", true),
            (Method::GET, "/organization/api-keys", true),
            (Method::GET, "/outposts/out_1/credentials", true),
            (Method::PUT, "/sandbox/machines/mac_1/access/shell", true),
            (Method::GET, "/outposts/out_1", false),
            (Method::GET, "/organization", false),
            (Method::GET, "/api-keys-of-mine", false),
            (Method::GET, "/mine/api-keys", false),
            // The table knows better.
            (Method::DELETE, "/provider-setup-sessions/pss_1", false),
            (Method::GET, "/providers", false),
            (Method::GET, "/sessions", true),
        ] {
            assert_eq!(answers_with_secret(&method, path), expected, "{method} {path}");
        }
    }
}
