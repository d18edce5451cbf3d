//! A collector of traces: takes OTLP in protobuf over HTTP, and keeps what it got.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

/// Lasts as long as the test's runtime.
pub(crate) struct Collector {
    pub(crate) url: String,
    received: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let received: Arc<Mutex<Vec<_>>> = Arc::default();
        let (tasks, into) = (TaskTracker::new(), received.clone());
        tasks.clone().spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let into = into.clone();
                let service = service_fn(move |request| take(request, into.clone()));
                // How it ended is seen by whoever sent.
                tasks.spawn(async move {
                    http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await.ok()
                });
            }
        });
        Self { url, received }
    }

    /// All spans, in the order in which they ended.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let scopes =
            received.iter().flat_map(|request| &request.resource_spans).flat_map(|of| &of.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// Everything that was received, as text.
    pub(crate) fn text(&self) -> String {
        format!("{:?}", self.received.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An attribute of who sent.
    pub(crate) fn resource(&self, name: &str) -> Option<String> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let resource = received.first()?.resource_spans.first()?.resource.clone()?;
        text(&resource.attributes, name)
    }
}

async fn take(
    request: Request<Incoming>,
    into: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
) -> hyper::Result<Response<Full<Bytes>>> {
    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let body = request.into_body().collect().await?.to_bytes();
    let batch = ExportTraceServiceRequest::decode(body).expect("protobuf");
    into.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
    Ok(Response::new(Full::from(ExportTraceServiceResponse::default().encode_to_vec())))
}

/// An attribute as text.
pub(crate) fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == name)?;
    match attribute.value.as_ref()? {
        AnyValue { value: Some(Value::StringValue(text)) } => Some(text.clone()),
        AnyValue { value: Some(Value::IntValue(number)) } => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
