//! Browser origins (RFC 6454 §6.2) and which of them may read answers.

use http::HeaderValue;

/// The origins an operator listed.
///
/// An `Origin` authenticates browsers only: anything else may write what it likes there. The comparison is exact, because
/// browsers serialise an origin in one way only: lower case, no default port, no path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(Vec<HeaderValue>);

impl Origins {
    /// From serialised origins; [`parse`] checks each.
    pub fn new(origins: Vec<String>) -> Self {
        // What was checked is a value.
        Self(origins.into_iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect())
    }

    /// Whether `origin`, as a browser sent it, is listed.
    pub fn allows(&self, origin: &[u8]) -> bool {
        self.listed(origin).is_some()
    }

    /// `origin` as it is listed.
    pub fn listed(&self, origin: &[u8]) -> Option<&HeaderValue> {
        self.0.iter().find(|listed| listed.as_bytes() == origin)
    }

    /// The listed origins.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|origin| origin.to_str().ok())
    }
}

/// Checks an origin as an operator wrote it: `scheme://host[:port]`, just as a browser would send it.
///
/// # Errors
/// A sentence that says what to write instead.
pub fn parse(text: &str) -> Result<String, String> {
    if text == "*" {
        return Err("a wildcard cannot be used with credentials: list each origin".into());
    }
    if text.eq_ignore_ascii_case("null") {
        return Err("the origin null is sent by any sandboxed page: it is never allowed".into());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!(
            "{text:?} is no origin: write scheme://host[:port], e.g. https://app.example.com"
        ));
    };
    let well_formed = |uri: &http::Uri| {
        uri.path() == "/" && uri.query().is_none() && uri.host().is_some_and(|h| !h.is_empty())
    };
    if rest.contains(['/', '?', '#', '@']) || !text.parse::<http::Uri>().is_ok_and(|uri| well_formed(&uri)) {
        return Err(format!(
            "{text:?} is no origin: scheme, host and port only, without a path or a trailing slash"
        ));
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("browsers send origins in lower case: write {:?}", text.to_ascii_lowercase()));
    }
    let default_port = match scheme {
        "http" => Some(":80"),
        "https" => Some(":443"),
        _ => None,
    };
    match default_port.and_then(|port| text.strip_suffix(port)) {
        Some(short) => Err(format!("browsers leave the default port out: write {short:?}")),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_browsers_send_it() {
        for good in
            ["https://app.example.com", "http://localhost:5173", "capacitor://localhost", "http://[::1]:3000"]
        {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
        for bad in [
            "*",
            "null",
            "app.example.com",
            "https://app.example.com/",
            "https://App.example.com",
            "https://a.example:443",
            "http://a.example:80",
            "https://",
            "https://user@a.example",
            "https://a.example?x",
            "",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_listed_origins_are_allowed_to_the_letter() {
        let origins = Origins::new(vec!["https://a.example".into()]);
        assert!(origins.allows(b"https://a.example"));
        for other in ["https://a.example.evil", "http://a.example", "https://a.example:8443", "null", ""] {
            assert!(!origins.allows(other.as_bytes()), "{other:?}");
        }
    }
}
