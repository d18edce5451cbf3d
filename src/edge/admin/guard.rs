//! Who may read the state of the proxy, and change it.
//!
//! The port may be reached by others than the operator: a neighbour in the cluster, and any web page in a browser on
//! this machine, which can send requests to loopback and, by rebinding a name of its own, even read the answers. So a
//! guarded request must come from loopback or hold the token, *and* name a host that is ours, *and* not be sent by
//! another site's page.
//!
//! A browser cannot send a token of its own accord, but asks for a password: the token is taken as that too (Basic, with
//! any user name). As a browser then adds it to whatever it sends here, it is good for reading only.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Json;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VIA,
    WWW_AUTHENTICATE,
};
use http::uri::Authority;
use http::{Method, StatusCode, Uri};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::Problem;

/// Who is let in besides loopback.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Lets peers in that are not loopback.
    pub token: Option<SecretString>,
    /// `Host` values accepted besides loopback's; lower case, without a port.
    pub hosts: Vec<String>,
}

/// The other end of the connection a request came by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Host,
    CrossSite,
    NotLoopback,
    Token,
    MediaType,
}

/// Lets a request pass to the guarded routes, or answers it.
pub(super) async fn guard(
    State(access): State<Arc<ArcSwap<Access>>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    match decide(&access.load(), peer, request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let asks = refusal == Refusal::Token && is_navigation(request.headers());
            let mut response = refusal.into_response();
            if asks {
                let basic =
                    HeaderValue::from_static("Basic realm=\"metorial-proxy admin\", charset=\"UTF-8\"");
                response.headers_mut().append(WWW_AUTHENTICATE, basic);
            }
            response
        }
    }
}

fn decide(
    access: &Access,
    peer: Option<Peer>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let host = host(uri, headers).ok_or(Refusal::Host)?;
    if !is_ours(access, &host) {
        return Err(Refusal::Host);
    }
    if is_cross_site(&host, headers) {
        return Err(Refusal::CrossSite);
    }
    if !is_local(peer, headers) {
        let token = access.token.as_ref().filter(|token| !token.expose_secret().is_empty());
        let token = token.ok_or(Refusal::NotLoopback)?;
        if !holds(token, headers, method.is_safe()) {
            return Err(Refusal::Token);
        }
    }
    // A page can't send this type to another site without asking first, and we answer no such question.
    if !method.is_safe() && !is_json(headers) {
        return Err(Refusal::MediaType);
    }
    Ok(())
}

/// The host asked for: the target's own where it names one (RFC 9112 section 3.2.2), else the one `Host` field.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let host = match uri.authority() {
        Some(authority) => authority.clone(),
        None => only(headers, HOST)?.parse().ok()?,
    };
    // `user@host` names a host to us and another one to a careless reader.
    (!host.as_str().contains('@')).then_some(host)
}

fn is_ours(access: &Access, host: &Authority) -> bool {
    let host = host.host();
    let loopback = ["localhost", "127.0.0.1", "[::1]"];
    loopback
        .into_iter()
        .chain(access.hosts.iter().map(String::as_str))
        .any(|ours| ours.eq_ignore_ascii_case(host))
}

/// Browsers say where a request comes from. Programs don't, and are not what this is about.
fn is_cross_site(host: &Authority, headers: &HeaderMap) -> bool {
    let site = headers.get_all("sec-fetch-site").iter();
    let foreign_site = site.into_iter().any(|site| site != "same-origin" && site != "none");
    let foreign_origin = headers.get_all(ORIGIN).iter().any(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        !origin.is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host.as_str()))
    });
    foreign_site || foreign_origin
}

/// On loopback, and not on behalf of somebody else: behind a reverse proxy on this machine everybody is loopback.
fn is_local(peer: Option<Peer>, headers: &HeaderMap) -> bool {
    const BY_A_PROXY: [HeaderName; 4] =
        [FORWARDED, VIA, HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("x-real-ip")];
    let loopback = peer.is_some_and(|Peer(peer)| peer.ip().to_canonical().is_loopback());
    loopback && !BY_A_PROXY.iter().any(|name| headers.contains_key(name))
}

fn holds(token: &SecretString, headers: &HeaderMap, reads: bool) -> bool {
    let sent = only(headers, AUTHORIZATION).and_then(|value| value.split_once(' '));
    let Some((scheme, sent)) = sent.map(|(scheme, sent)| (scheme, sent.trim())) else { return false };
    let is_token = |sent: &[u8]| bool::from(sent.ct_eq(token.expose_secret().as_bytes()));
    if scheme.eq_ignore_ascii_case("bearer") {
        return is_token(sent.as_bytes());
    }
    let password = BASE64.decode(sent).ok().and_then(|pair| {
        let colon = pair.iter().position(|byte| *byte == b':')?;
        Some(pair[colon + 1..].to_vec())
    });
    reads && scheme.eq_ignore_ascii_case("basic") && password.is_some_and(|password| is_token(&password))
}

/// Whether it is a browser that opens a page, and could ask who sits before it.
fn is_navigation(headers: &HeaderMap) -> bool {
    only(headers, ACCEPT).is_some_and(|accept| accept.contains("text/html"))
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = only(headers, CONTENT_TYPE).and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// The value of a field that is there exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.to_str().ok()).flatten()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Host => (
                StatusCode::FORBIDDEN,
                "this Host is not served here: localhost, 127.0.0.1, [::1] and server.hosts are",
            ),
            Self::CrossSite => (StatusCode::FORBIDDEN, "requests by pages of other sites are not answered"),
            Self::NotLoopback => (
                StatusCode::FORBIDDEN,
                "only loopback may ask for this; set server.admin_token to let others in",
            ),
            Self::Token => (StatusCode::UNAUTHORIZED, "Authorization: Bearer with the admin token is needed"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json"),
        };
        let mut response = (status, Json(Problem { error: text.into() })).into_response();
        if self == Self::Token {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests;
