//! What an operator decided, checked and complete.
//!
//! `raw` (serde, unknown keys refused) → `compile` (every error at once, each with its key path and cure) → [`Config`].
//! Nothing below this module reads a file, a variable or a default.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::header::HeaderName;
use http::uri::{Authority, Scheme};
use ipnet::IpNet;
use secrecy::SecretString;

use crate::domain::environment::Environment;
use crate::domain::quota::Quota;

mod compile;
mod env;
mod excerpt;
mod fault;
mod load;
mod raw;
mod reader;
mod schema;
mod secret;
mod value;

pub use excerpt::Excerpt;
pub use fault::Fault;
pub use load::{Loaded, Sources, Variables, load, read};
pub use schema::schema;

/// A whole, valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[server]`: where and how callers are served.
    pub server: Server,
    /// `[clients]`: limits per client IP.
    pub clients: Clients,
    /// `[upstream]`: the API.
    pub upstream: Upstream,
    /// `[[environments]]`, at least one, each with its secret, callers and rights.
    pub environments: Vec<Arc<Environment>>,
    /// `[cache]`.
    pub cache: Cache,
    /// `[store]`.
    pub store: Store,
    /// `[telemetry]`.
    pub telemetry: Telemetry,
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// Addresses callers connect to.
    pub listen: Vec<SocketAddr>,
    /// Address of the admin port.
    pub admin: SocketAddr,
    /// Path prefix removed before anything is decided: empty, or `/a/b` without a trailing slash.
    pub base_path: String,
    /// Worker threads, at least one.
    pub workers: usize,
    /// Certificate and key, where callers come by TLS.
    pub tls: Option<TlsFiles>,
    /// Proxies in front of us, whose `client_ip_header` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The one header believed from them.
    pub client_ip_header: ClientIpHeader,
    /// Each connection begins with a PROXY header, from `trusted_proxies` only.
    pub proxy_protocol: bool,
    /// `Host` values accepted, lower case, without a port; empty: any.
    pub hosts: Vec<String>,
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once from one IP (trusted proxies are exempt).
    pub max_connections_per_ip: usize,
    /// Bytes of a request target.
    pub max_uri: usize,
    /// Bytes of a request's fields.
    pub max_header_bytes: usize,
    /// Bytes of a request's body.
    pub max_request_body: u64,
    /// Requests in flight at once.
    pub max_in_flight: usize,
    /// From the first byte of a request (or the TLS handshake) to the end of its head.
    pub header_read_timeout: Duration,
    /// Silence between two requests of a connection.
    pub idle_timeout: Duration,
    /// Until the head of the response, waits and retries included.
    pub request_timeout: Duration,
    /// Longest silence while a body streams, either way.
    pub body_idle_timeout: Duration,
    /// How the proxy stops.
    pub drain: Drain,
    /// Lets peers that are not loopback read `/status`.
    pub admin_token: Option<SecretString>,
}

/// `tls = { certificate, private_key }`: PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Its private key.
    pub private_key: PathBuf,
}

/// The header that trusted proxies write the client's address into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientIpHeader {
    /// `X-Forwarded-For`
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

/// `drain = { settle, deadline }`
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// How long new connections are still accepted after readiness failed.
    pub settle: Duration,
    /// When what is still open is cut, counted from the signal.
    pub deadline: Duration,
}

/// `[clients]`
#[derive(Debug, Clone, Copy)]
pub struct Clients {
    /// Token bucket per client IP: burst `requests`, refilled evenly over `window`.
    pub limit: Quota,
    /// IPv6 clients are counted by this prefix; 16 to 64.
    pub ipv6_prefix: u8,
    /// Client IPs tracked at once.
    pub max_tracked: usize,
    /// A longer wait is not told as `Retry-After`.
    pub max_retry_after: Duration,
}

/// `[upstream]`
#[derive(Debug, Clone)]
pub struct Upstream {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host, and port where one is given. The secret goes to this authority and nowhere else.
    pub authority: Authority,
    /// Path prefix of the API: empty, or `/a/b` without a trailing slash.
    pub base_path: String,
    /// What our own IP may send, all environments together.
    pub egress_limit: Quota,
    /// The address that this replica leaves by: those with the same share one `egress_limit`.
    pub egress_group: String,
    /// To an open connection, TLS included.
    pub connect_timeout: Duration,
    /// From a request's first byte to the head of its response.
    pub attempt_timeout: Duration,
    /// Idle connections kept, over all workers.
    pub idle_connections: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Which protocol is spoken.
    pub http2: Http2,
    /// Request fields passed on beside the built-in list.
    pub forward_headers: Vec<HeaderName>,
    /// PEM roots in addition to the built-in ones.
    pub ca_certificate: Option<PathBuf>,
    /// `[upstream.retry]`
    pub retry: Retry,
}

impl Upstream {
    /// The host (an IPv6 address without its brackets) and the port, also where none is given.
    pub fn host_and_port(&self) -> (&str, u16) {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        let usual = if self.scheme == Scheme::HTTPS { 443 } else { 80 };
        (host, self.authority.port_u16().unwrap_or(usual))
    }
}

/// `http2 = "auto"`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Http2 {
    /// HTTP/2 where TLS negotiates it, else HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1.
    Never,
    /// HTTP/2, with prior knowledge where there is no TLS.
    Always,
}

/// `[upstream.retry]`
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts in all, the first included; at least 1.
    pub max_attempts: u32,
    /// Upper bound of the first backoff; doubles each time.
    pub initial_backoff: Duration,
    /// Upper bound of any backoff.
    pub max_backoff: Duration,
    /// Longest wait for budget before a 429.
    pub max_queue_wait: Duration,
    /// Requests that may wait for one budget at once.
    pub max_queue: usize,
    /// … and from one client.
    pub max_queue_per_client: usize,
    /// Retries as a share of requests, 0 to 1.
    pub budget: f32,
}

/// `[cache]`
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// Whether list pages are kept at all.
    pub enabled: bool,
    /// Bytes kept in all.
    pub capacity: u64,
    /// Bytes of the largest page that is kept.
    pub max_page: usize,
    /// Freshness where neither upstream nor a rule says otherwise.
    pub ttl: Duration,
    /// How long past its freshness a page may be served while it is fetched anew.
    pub stale_while_revalidate: Duration,
    /// How long past its freshness a page may stand in for an upstream that failed or a budget that is spent.
    pub stale_if_error: Duration,
    /// How freshness stretches as the budget falls.
    pub low_budget: LowBudget,
    /// Whether callers' `Cache-Control` is heeded.
    pub honor_client_directives: bool,
    /// Whether pages are compressed for callers that ask.
    pub compress: bool,
    /// Whether the next page is fetched before it is asked for.
    pub prefetch: Prefetch,
}

/// `low_budget = { below, ttl }`
#[derive(Debug, Clone, Copy)]
pub struct LowBudget {
    /// The share of the budget below which freshness stretches.
    pub below: f32,
    /// Freshness when nothing is left.
    pub ttl: Duration,
}

/// `prefetch = { enabled, above }`
#[derive(Debug, Clone, Copy)]
pub struct Prefetch {
    /// Whether it is done at all.
    pub enabled: bool,
    /// Only while more than this share of the budget is left.
    pub above: f32,
}

/// `[store]`
#[derive(Debug, Clone)]
pub struct Store {
    /// What replicas share budgets and pages through; without it each is on its own.
    pub shared: Option<SharedStore>,
    /// Where what was spent is kept while the process is not there.
    pub state_file: Option<PathBuf>,
}

/// A Redis or Valkey server that replicas share.
#[derive(Debug, Clone)]
pub struct SharedStore {
    /// Where budgets are, and pages where there is no other place for them.
    pub url: RedisUrl,
    /// Where pages are.
    pub pages_url: Option<RedisUrl>,
    /// PEM roots in addition to the built-in ones.
    pub ca_certificate: Option<PathBuf>,
    /// Every key begins with it.
    pub prefix: String,
    /// Longest wait for an answer before a replica goes on without.
    pub timeout: Duration,
    /// So many replicas are taken to be there, also where fewer are seen.
    pub min_replicas: u32,
}

/// `redis://host:port/database`, or `rediss://` by TLS.
#[derive(Debug, Clone)]
pub struct RedisUrl {
    /// Spoken to by TLS.
    pub tls: bool,
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Number of the logical database.
    pub database: u16,
    /// ACL user; the server's default one where there is none.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<SecretString>,
}

/// `[telemetry]`
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// A `tracing` filter.
    pub log: String,
    /// One line per request.
    pub access_log: bool,
    /// Where traces go.
    pub otlp: Option<Otlp>,
}

/// `otlp` and `otlp_sample`
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// The collector's address for traces.
    pub endpoint: Uri,
    /// The share of traces that begin here which is recorded, 0 to 1.
    pub sample: f64,
}

#[cfg(test)]
mod tests;
