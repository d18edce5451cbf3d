//! The configuration file as it is written: which keys there are, and what type each has. Defaults and meaning: `compile`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::value::{Field, Named, Section, Size, Span};

pub(super) type List<T> = Field<Vec<Field<T>>>;

/// The whole file.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct File {
    pub(super) server: Field<Section<Server>>,
    pub(super) clients: Field<Section<Clients>>,
    pub(super) upstream: Field<Section<Upstream>>,
    pub(super) environments: List<Section<Environment>>,
    pub(super) cache: Field<Section<Cache>>,
    pub(super) store: Field<Section<Store>>,
    pub(super) telemetry: Field<Section<Telemetry>>,
}

/// `[server]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) listen: List<String>,
    pub(super) admin: Field<String>,
    pub(super) base_path: Field<String>,
    pub(super) workers: Field<u64>,
    pub(super) tls: Field<Section<Tls>>,
    pub(super) trusted_proxies: List<String>,
    #[schemars(extend("enum" = ["x-forwarded-for", "forwarded"]))]
    pub(super) client_ip_header: Field<String>,
    pub(super) proxy_protocol: Field<bool>,
    pub(super) hosts: List<String>,
    pub(super) max_connections: Field<u64>,
    pub(super) max_connections_per_ip: Field<u64>,
    pub(super) max_uri: Field<Size>,
    pub(super) max_header_bytes: Field<Size>,
    pub(super) max_request_body: Field<Size>,
    pub(super) max_in_flight: Field<u64>,
    pub(super) header_read_timeout: Field<Span>,
    pub(super) idle_timeout: Field<Span>,
    pub(super) request_timeout: Field<Span>,
    pub(super) body_idle_timeout: Field<Span>,
    pub(super) drain: Field<Section<Drain>>,
    pub(super) admin_token: Field<Secret>,
}

/// `tls = { certificate, private_key }`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) certificate: Field<String>,
    pub(super) private_key: Field<String>,
}

/// `drain = { settle, deadline }`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Drain {
    pub(super) settle: Field<Span>,
    pub(super) deadline: Field<Span>,
}

/// `{ requests, window }`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Quota {
    pub(super) requests: Field<u64>,
    pub(super) window: Field<Span>,
}

/// `[clients]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Clients {
    pub(super) limit: Field<Section<Quota>>,
    pub(super) ipv6_prefix: Field<u64>,
    pub(super) max_tracked: Field<u64>,
    pub(super) max_retry_after: Field<Span>,
}

/// `[upstream]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Upstream {
    pub(super) url: Field<String>,
    pub(super) egress_limit: Field<Section<Quota>>,
    pub(super) egress_group: Field<String>,
    pub(super) connect_timeout: Field<Span>,
    pub(super) attempt_timeout: Field<Span>,
    pub(super) idle_connections: Field<u64>,
    pub(super) idle_timeout: Field<Span>,
    #[schemars(extend("enum" = ["auto", "never", "always"]))]
    pub(super) http2: Field<String>,
    pub(super) forward_headers: List<String>,
    pub(super) ca_certificate: Field<String>,
    pub(super) retry: Field<Section<Retry>>,
}

/// `[upstream.retry]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Retry {
    pub(super) max_attempts: Field<u64>,
    pub(super) initial_backoff: Field<Span>,
    pub(super) max_backoff: Field<Span>,
    pub(super) max_queue_wait: Field<Span>,
    pub(super) max_queue: Field<u64>,
    pub(super) max_queue_per_client: Field<u64>,
    pub(super) budget: Field<f64>,
}

/// `[[environments]]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Environment {
    #[schemars(required)]
    pub(super) name: Field<String>,
    #[schemars(extend("enum" = ["production", "development"]))]
    pub(super) kind: Field<String>,
    pub(super) limit: Field<Section<Quota>>,
    #[schemars(extend("enum" = ["window", "token-bucket"]))]
    pub(super) algorithm: Field<String>,
    pub(super) budget: Field<String>,
    pub(super) newcomer_reserve: Field<f64>,
    #[schemars(required)]
    pub(super) secret_key: Field<Secret>,
    pub(super) next_secret_key: Field<Secret>,
    pub(super) publishable_keys: List<String>,
    pub(super) keyless: Field<bool>,
    pub(super) origins: List<String>,
    pub(super) versions: List<String>,
    pub(super) allow: List<String>,
    pub(super) i_trust_these_callers: Field<bool>,
    pub(super) rules: List<Section<Rule>>,
}

/// `[[environments.rules]]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Rule {
    #[schemars(extend("items" = { "type": "string", "enum": ["GET", "POST", "PUT", "PATCH", "DELETE"] }))]
    pub(super) methods: List<String>,
    #[schemars(required)]
    pub(super) path: Field<String>,
    pub(super) query: Field<Named<String>>,
    pub(super) query_strict: Field<bool>,
    pub(super) list: Field<bool>,
    pub(super) ttl: Field<Span>,
    pub(super) invalidates: List<String>,
    pub(super) returns_secret: Field<bool>,
    pub(super) shadow: Field<bool>,
}

/// `[cache]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Cache {
    pub(super) enabled: Field<bool>,
    pub(super) capacity: Field<Size>,
    pub(super) max_page: Field<Size>,
    pub(super) ttl: Field<Span>,
    pub(super) stale_while_revalidate: Field<Span>,
    pub(super) stale_if_error: Field<Span>,
    pub(super) low_budget: Field<Section<LowBudget>>,
    pub(super) honor_client_directives: Field<bool>,
    pub(super) compress: Field<bool>,
    pub(super) prefetch: Field<Section<Prefetch>>,
}

/// `{ below, ttl }`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(super) struct LowBudget {
    pub(super) below: Field<f64>,
    pub(super) ttl: Field<Span>,
}

/// `{ enabled, above }`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub(super) struct Prefetch {
    pub(super) enabled: Field<bool>,
    pub(super) above: Field<f64>,
}

/// `[store]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Store {
    pub(super) url: Field<String>,
    pub(super) username: Field<String>,
    pub(super) password: Field<Secret>,
    pub(super) ca_certificate: Field<String>,
    pub(super) pages_url: Field<String>,
    pub(super) prefix: Field<String>,
    pub(super) timeout: Field<Span>,
    pub(super) min_replicas: Field<u64>,
    pub(super) state_file: Field<String>,
}

/// `[telemetry]`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct Telemetry {
    pub(super) log: Field<String>,
    pub(super) access_log: Field<bool>,
    pub(super) otlp: Field<String>,
    pub(super) otlp_sample: Field<f64>,
}

/// `{ file }` or `{ env }`
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(deny_unknown_fields)]
pub(super) struct SecretSource {
    pub(super) file: Field<String>,
    pub(super) env: Field<String>,
}
