//! Who calls, as the API decides it: the `Authorization` field to the letter, else `?token=`, else `?key=`.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::domain::key::{PUBLISHABLE_PREFIX, SECRET_PREFIX, SecretKey};
use crate::mock::error::ApiError;
use crate::mock::query::Query;

/// An identified caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// It holds a publishable key.
    pub(crate) publishable: bool,
    /// Who is limited together with it.
    pub(crate) organization: String,
}

/// Identifies a caller. `only` is the one secret key that is accepted; without it any `metorial_sk_…` is.
///
/// Any publishable key is accepted. With `only` there is one organisation, whose keys are limited together; otherwise
/// each key stands for an organisation of its own.
pub(crate) fn identify(
    headers: &HeaderMap,
    query: &Query,
    only: Option<&SecretKey>,
) -> Result<Caller, ApiError> {
    let key = match bearer(headers)? {
        Some(key) => key,
        None => match query.get("token").or_else(|| query.get("key")) {
            Some(key) if !key.is_empty() => key.to_owned(),
            _ => return Err(ApiError::unauthorized("Missing Authorization header", None)),
        },
    };
    let publishable = key.starts_with(PUBLISHABLE_PREFIX) && key.len() > PUBLISHABLE_PREFIX.len();
    let known = match only {
        Some(secret) => secret.expose() == key,
        None => key.starts_with(SECRET_PREFIX) && key.len() > SECRET_PREFIX.len(),
    };
    if !publishable && !known {
        return Err(ApiError::unauthorized("Invalid API key", None));
    }
    let organization = if only.is_some() { String::new() } else { key };
    Ok(Caller { publishable, organization })
}

/// The key of the `Authorization` field, if there is one. Several fields are joined, as the API's runtime does.
///
/// A malformed value is echoed in the error, key and all: a trap that the API sets for whoever passes errors on.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = authorization(headers).filter(|value| !value.is_empty()) else { return Ok(None) };
    let mut parts = value.trim().split(' ');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("Bearer"), Some(key), None) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::unauthorized(
            "Malformed Authorization header",
            Some(format!("Expected \"Bearer <token>\", got \"{value}\"")),
        )),
    }
}

/// The `Authorization` fields, joined.
pub(crate) fn authorization(headers: &HeaderMap) -> Option<String> {
    let values: Vec<_> =
        headers.get_all(AUTHORIZATION).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
    if values.is_empty() { None } else { Some(values.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identified(authorization: &[&'static str], query: &str) -> Result<(bool, String), u16> {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(AUTHORIZATION, http::HeaderValue::from_static(value));
        }
        identify(&headers, &Query::parse(query), None)
            .map(|caller| (caller.publishable, caller.organization))
            .map_err(|error| error.status())
    }

    #[test]
    fn keys_are_looked_for_where_the_api_looks_and_in_its_order() {
        let sk = |key: &str| Ok((false, key.to_owned()));
        for (authorization, query, expected) in [
            (&["Bearer metorial_sk_a"][..], "", sk("metorial_sk_a")),
            (&["Bearer metorial_sk_a"], "token=metorial_sk_b", sk("metorial_sk_a")),
            (&[], "key=metorial_sk_a&token=metorial_sk_b", sk("metorial_sk_b")),
            (&[], "key=metorial%5Fsk%5Fa", sk("metorial_sk_a")),
            (&[""], "key=metorial_sk_a", sk("metorial_sk_a")),
            (&["Bearer metorial_pk_a"], "", Ok((true, "metorial_pk_a".into()))),
            (&[], "token=&key=metorial_sk_a", Err(401)),
            (&[], "", Err(401)),
            (&["bearer metorial_sk_a"], "", Err(401)),
            (&["Bearer  metorial_sk_a"], "", Err(401)),
            (&["Bearer"], "key=metorial_sk_a", Err(401)),
            (&["Basic bWV0"], "key=metorial_sk_a", Err(401)),
            (&["Bearer metorial_sk_a", "Bearer metorial_sk_b"], "", Err(401)),
            (&["Bearer metorial_sk_"], "", Err(401)),
            (&["Bearer metorial_ak_a"], "", Err(401)),
        ] {
            assert_eq!(identified(authorization, query), expected, "{authorization:?} {query}");
        }
    }

    #[test]
    fn with_one_key_the_rest_is_unknown_and_its_organisation_is_one() {
        let only = SecretKey::parse("metorial_sk_right").expect("a key");
        let with = |query| identify(&HeaderMap::new(), &Query::parse(query), Some(&only));
        let one = |publishable| Some(Caller { publishable, organization: String::new() });
        assert_eq!(with("key=metorial_sk_right").ok(), one(false));
        assert_eq!(with("key=metorial_pk_any").ok(), one(true));
        assert_eq!(with("key=metorial_sk_wrong").ok(), None);
    }
}
