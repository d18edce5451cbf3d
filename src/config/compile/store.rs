//! `[store]`

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use secrecy::SecretString;

use super::name;
use crate::config::fault::Wrong;
use crate::config::reader::{MOMENT, Reader};
use crate::config::{RedisUrl, SharedStore, Store, env, raw, secret};

const WRITE_A_URL: &str = "write memory, redis://host:6379 or rediss://host:6379 (TLS)";

pub(super) fn compile(mut at: Reader<'_, '_>, raw: raw::Store) -> Store {
    let by_variable =
        at.context.variables.get(std::ffi::OsStr::new(env::STORE)).is_some_and(|text| !text.is_empty());
    let written = raw.url.is_written();
    let url = at.checked("url", raw.url, |url| place(&url, by_variable));
    let in_memory = matches!(url, Some(None));
    let mut url = url.flatten();
    let mut pages_url = at.checked("pages_url", raw.pages_url, |url| place(&url, false)).flatten();
    let username = at.checked("username", raw.username, user);
    let password = secret::read(&mut at, "password", raw.password);
    let password = password.map(|text| SecretString::from(text.trim_end_matches(['\r', '\n']).to_owned()));
    if pages_url.is_some() && (in_memory || !written) {
        let alone = Wrong::new(
            "is of no use without a url to share budgets by: pages stay in this process",
            "write url = \"redis://…\" too, or remove it",
        );
        // To say memory may be what is meant for a while, as by a variable on somebody's own machine.
        if in_memory { at.warn("pages_url", alone) } else { at.refuse("pages_url", alone) }
    }
    for url in [&mut url, &mut pages_url].into_iter().flatten() {
        if url.password.is_some() && password.is_some() {
            let cure = "keep one of the two";
            at.refuse("password", Wrong::new("is set, and the store's URL holds a password too", cure));
        }
        url.username = username.clone().or(url.username.take());
        url.password = password.clone().or(url.password.take());
    }
    let ca_certificate = at.checked("ca_certificate", raw.ca_certificate, secret::existing_file);
    let prefix = at.checked("prefix", raw.prefix, |prefix| name(&prefix));
    let prefix = prefix.unwrap_or_else(|| "metorial-proxy".into());
    let timeout =
        at.duration("timeout", raw.timeout, Duration::from_millis(50), MOMENT..=Duration::from_secs(10));
    let min_replicas = at.count("min_replicas", raw.min_replicas, 1, 1..=10_000);
    let state_file = at.checked("state_file", raw.state_file, state_file);
    let shared = url.map(|url| SharedStore { url, pages_url, ca_certificate, prefix, timeout, min_replicas });
    if shared.is_some() && state_file.is_some() {
        let cure = "remove it";
        at.warn("state_file", Wrong::new("is of no use: the shared store knows what was spent", cure));
    }
    Store { state_file: state_file.filter(|_| shared.is_none()), shared }
}

/// A store's URL, `None` for `memory`. It is not repeated in a fault: it could hold a password.
fn place(url: &str, may_hold_a_password: bool) -> Result<Option<RedisUrl>, Wrong> {
    if url == "memory" {
        return Ok(None);
    }
    let wrong = |message: &str| Wrong::new(message, WRITE_A_URL);
    let uri: Uri = url.parse().map_err(|_| wrong("is no URL"))?;
    let tls = match uri.scheme_str() {
        Some("redis") => false,
        Some("rediss") => true,
        _ => return Err(wrong("has a scheme other than redis and rediss")),
    };
    let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
    if uri.query().is_some() || url.contains('#') {
        return Err(wrong("has a query or a fragment"));
    }
    let (userinfo, place) = match authority.as_str().rsplit_once('@') {
        Some((userinfo, place)) => (Some(userinfo), place),
        None => (None, authority.as_str()),
    };
    let (username, password) = userinfo.map(credentials).transpose()?.unwrap_or_default();
    if password.is_some() && !may_hold_a_password {
        let cure = format!("write password = {{ file = \"/run/secrets/…\" }}, or set {}", env::STORE);
        return Err(Wrong::new("holds a password, and a secret never stands in the configuration", cure));
    }
    let place: Authority = place.parse().map_err(|_| wrong("has no valid host and port"))?;
    let port = place.as_str().strip_prefix(place.host()).unwrap_or_default();
    let port = match (port.is_empty(), place.port_u16()) {
        (true, _) => 6379,
        (false, Some(port)) if port > 0 => port,
        _ => return Err(wrong("has no valid host and port")),
    };
    let host = place.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err(wrong("has no host"));
    }
    let database = match uri.path().trim_matches('/') {
        "" => 0,
        number => {
            let cure = "write a number after the slash, such as redis://host:6379/1";
            number.parse().map_err(|_| Wrong::new(format!("{number:?} is no database"), cure))?
        }
    };
    Ok(Some(RedisUrl { tls, host, port, database, username, password }))
}

type Credentials = (Option<String>, Option<SecretString>);

fn credentials(userinfo: &str) -> Result<Credentials, Wrong> {
    let (username, password) = userinfo.split_once(':').map_or((userinfo, None), |(u, p)| (u, Some(p)));
    let decoded = |text: &str| {
        let wrong = || Wrong::new("has a user name or password that is not percent-encoded", WRITE_A_URL);
        percent_decoded(text).ok_or_else(wrong)
    };
    let username = Some(decoded(username)?).filter(|name| !name.is_empty());
    Ok((username, password.map(decoded).transpose()?.map(SecretString::from)))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let byte = match first {
            b'%' => {
                let digits = rest.get(..2)?;
                rest = &rest[2..];
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            byte => *byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

fn user(text: String) -> Result<String, Wrong> {
    match text.is_empty() || text.contains(char::is_whitespace) {
        true => Err(Wrong::new(format!("{text:?} is no user name"), "write the name of an ACL user")),
        false => Ok(text),
    }
}

fn state_file(path: String) -> Result<PathBuf, Wrong> {
    match PathBuf::from(&path).file_name() {
        Some(_) => Ok(PathBuf::from(&path)),
        None => Err(Wrong::new(
            format!("{path:?} names no file"),
            "write a file in a folder that this proxy may write to, such as \"/var/lib/metorial-proxy/state.json\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::config::tests::{errors, fault_at, minimal, ok};

    #[test]
    fn a_store_is_memory_or_a_server_with_its_defaults() {
        assert!(ok(&minimal("[store]\nurl = \"memory\"")).config.store.shared.is_none());
        let url = |url: &str| place(url, true).expect("a place").expect("a server");
        let plain = url("redis://cache.internal");
        assert_eq!(
            (plain.tls, plain.host.as_str(), plain.port, plain.database),
            (false, "cache.internal", 6379, 0)
        );
        let full = url("rediss://metorial:p%40ss@[::1]:7000/3");
        assert_eq!((full.tls, full.host.as_str(), full.port, full.database), (true, "::1", 7000, 3));
        let password = full.password.as_ref().map(|password| password.expose_secret());
        assert_eq!((full.username.as_deref(), password), (Some("metorial"), Some("p@ss")));
    }

    #[test]
    fn what_is_no_store_is_refused_without_being_repeated() {
        for url in [
            "http://h",
            "redis://",
            "redis://h:0",
            "redis://h:x",
            "redis://h/one",
            "redis://h?a=b",
            "h:6379",
            "redis://u:hunter2@h",
        ] {
            let fault = fault_at(&errors(&minimal(&format!("[store]\nurl = {url:?}"))), "store.url");
            assert!(!fault.contains("hunter2"), "{fault}");
        }
        let fault =
            fault_at(&errors(&minimal("[store]\npages_url = \"redis://:hunter2@h\"")), "store.pages_url");
        assert!(fault.contains("password") && !fault.contains("hunter2"), "{fault}");
    }
}
