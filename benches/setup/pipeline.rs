//! A pipeline as a worker has it, and the requests that are measured on it. The upstream answers from memory.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use metorial_proxy::body::{Arriving, RequestBody, ResponseBody};
use metorial_proxy::config::{self, Config, Sources, Variables};
use metorial_proxy::exchange::{Arrival, Journal};
use metorial_proxy::pipeline::Pipeline;
use metorial_proxy::policy::forward::{Answer, Outgoing, Transport, TransportError};
use metorial_proxy::server;
use tokio::runtime::LocalRuntime;

/// Limits that no benchmark meets, and pages that stay fresh.
const AMPLE: &str = "\
    [clients]\n\
    limit = { requests = 10000000, window = \"1s\" }\n\
    [upstream]\n\
    url = \"http://upstream.invalid\"\n\
    egress_limit = { requests = 10000000, window = \"1s\" }\n\
    [[environments]]\n\
    name = \"production\"\n\
    limit = { requests = 10000000, window = \"1s\" }\n\
    secret_key = { env = \"SECRET\" }\n\
    publishable_keys = [\"metorial_pk_bench\"]\n\
    origins = [\"https://app.example.com\"]\n\
    [cache]\n\
    ttl = \"1h\"\n\
    [telemetry]\n\
    access_log = false\n";
const SECRET: &str = "metorial_sk_4mXq9Zt2LhVb8RsK1wNcYp6DgJfE3aTu";

/// Every kind of request that is measured.
pub(crate) fn cases() -> [Case; 6] {
    let list = "/providers?limit=20&order=desc";
    [
        Case { name: "hit, 2 KB", body: 2_000, target: list, status: StatusCode::OK, cached: true, ..CASE },
        Case { name: "hit, 20 KB", body: 20_000, target: list, status: StatusCode::OK, cached: true, ..CASE },
        Case { name: "pass through, 2 KB", body: 2_000, status: StatusCode::OK, ..CASE },
        Case { name: "401", key: "metorial_pk_unknown", status: StatusCode::UNAUTHORIZED, ..CASE },
        Case { name: "403", target: "/sessions", status: StatusCode::FORBIDDEN, ..CASE },
        Case { name: "429 by client IP", status: StatusCode::TOO_MANY_REQUESTS, ..CASE },
    ]
}

/// A request, and what answers it.
pub(crate) struct Case {
    /// What it is called.
    pub(crate) name: &'static str,
    body: usize,
    key: &'static str,
    target: &'static str,
    status: StatusCode,
    cached: bool,
}

const CASE: Case = Case {
    name: "",
    body: 0,
    key: "metorial_pk_bench",
    target: "/providers/pro_0123456789",
    status: StatusCode::OK,
    cached: false,
};

impl Case {
    /// The pipeline for it, which has answered twice: the first request fills the cache, or spends the limit; the second
    /// is answered as all that follow.
    pub(crate) fn pipeline(&self, runtime: &LocalRuntime) -> Pipeline {
        let mut text = AMPLE.to_owned();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            text = text.replacen("requests = 10000000, window = \"1s\"", "requests = 1, window = \"24h\"", 1);
        }
        let pipeline = server::pipeline_over(&config(&text), Memory::new(self.body)).expect("a pipeline");
        runtime.block_on(async {
            serve(&pipeline, self.arrival()).await;
            self.check(&pipeline).await;
        });
        pipeline
    }

    /// What a browser sends with the official SDK.
    pub(crate) fn arrival(&self) -> Arrival {
        let request = Request::get(self.target)
            .header("host", "proxy.example.com")
            .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0")
            .header("accept", "*/*")
            .header("authorization", format!("Bearer {}", self.key))
            .header("metorial-version", "2026-01-01-magnetar")
            .header("origin", "https://app.example.com")
            .body(RequestBody::Empty)
            .expect("a request");
        Arrival { request: Box::new(request), peer: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)) }
    }

    async fn check(&self, pipeline: &Pipeline) {
        let response = serve_head(pipeline, self.arrival()).await;
        let field = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        assert_eq!(response.status(), self.status, "{}", self.name);
        let cache_status = field("cache-status");
        assert_eq!(
            cache_status.starts_with("metorial-proxy; hit; "),
            self.cached,
            "{}: {cache_status}",
            self.name
        );
        assert!(field("ratelimit-policy").starts_with("\"client\";q="), "{}", self.name);
        assert_eq!(field("access-control-allow-origin"), "https://app.example.com", "{}", self.name);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(
            self.status != StatusCode::OK || body.len() == self.body,
            "{}: {} bytes",
            self.name,
            body.len()
        );
    }
}

async fn serve_head(pipeline: &Pipeline, arrival: Arrival) -> Response<ResponseBody> {
    match pipeline.serve(arrival).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// As a connection does: the answer is over when its body was read.
pub(crate) async fn serve(pipeline: &Pipeline, arrival: Arrival) {
    let mut body = serve_head(pipeline, arrival).await.into_body();
    while let Some(frame) = body.frame().await {
        std::hint::black_box(frame).expect("a body");
    }
}

fn config(text: &str) -> Config {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}.toml", std::process::id()));
    std::fs::write(&file, text).expect("a file");
    let env = Variables::from([("SECRET".into(), SECRET.into())]);
    let loaded = config::load(&Sources { file: Some(&file), env: &env });
    std::fs::remove_file(&file).expect("a file");
    loaded.expect("a configuration").config
}

/// An upstream in this process, which answers everything with the same page. As cheap to clone as a pool.
#[derive(Clone)]
struct Memory(Arc<Page>);

struct Page {
    headers: HeaderMap,
    body: Bytes,
}

impl Memory {
    fn new(length: usize) -> Self {
        let item = "{\"object\":\"provider\",\"id\":\"pro_0123456789\",\"name\":\"Web search\"},";
        let body: String = item.chars().cycle().take(length).collect();
        let fields = [
            ("content-type", "application/json; charset=utf-8"),
            ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
            ("metorial-version", "2026-01-01-magnetar"),
            ("metorial-req-id", "req_0123456789"),
            ("ratelimit-limit", "5000"),
            ("ratelimit-remaining", "5000"),
            ("ratelimit-reset", "60"),
            ("access-control-allow-origin", "*"),
            ("vary", "Origin"),
        ];
        let headers =
            fields.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Self(Arc::new(Page { headers: headers.into_iter().collect(), body: body.into() }))
    }
}

impl Transport for Memory {
    async fn send(&self, _: &mut Outgoing, _: &Journal) -> Result<Answer, Box<TransportError>> {
        let (mut head, ()) = Response::new(()).into_parts();
        head.headers.clone_from(&self.0.headers);
        Ok(Answer { head, body: Arriving::Held(self.0.body.clone()), lease: None })
    }
}
