//! Traces: a span for each request of a caller and one for each attempt towards upstream, in the words of OpenTelemetry's
//! conventions for HTTP.
//!
//! W3C trace context goes through in any case, as request fields do that upstream may see. Only where a collector is
//! configured do spans of our own stand between: a caller's context is the parent of ours, ours is upstream's. A span
//! holds route templates and never what a caller sent: no path, query value, address or key.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanExporter};

use crate::telemetry::labels::{Label, Verb};

mod queue;

use queue::Queue;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// W3C §3.3.1.5: whoever cuts keeps at least so much.
const LONGEST_STATE: usize = 512 * 4;

/// Makes spans and has them delivered. One per process.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    context: TraceContextPropagator,
    queue: Arc<Queue>,
}

impl Traces {
    /// Delivers through `exporter`, on a thread of its own. Of the requests whose caller does not say whether they are to be
    /// recorded, a share of `sample` is (0 to 1).
    pub fn new(exporter: impl SpanExporter + 'static, sample: f64) -> Self {
        let queue = Arc::new(Queue::default());
        // Of the environment OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES count.
        let named = std::env::var_os("OTEL_SERVICE_NAME").is_some_and(|name| !name.is_empty());
        let resource = Resource::builder().with_attribute(KeyValue::new("service.version", VERSION));
        let resource = match named {
            true => resource,
            false => resource.with_service_name("metorial-proxy"),
        };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue::processor(exporter, queue.clone()))
            .with_sampler(Sampler::parent_based(Sampler::TraceIdRatioBased(sample)))
            .with_resource(resource.build())
            .build();
        let scope = InstrumentationScope::builder("metorial-proxy").with_version(VERSION).build();
        let tracer = provider.tracer_with_scope(scope);
        Self { provider, tracer, context: TraceContextPropagator::new(), queue }
    }

    /// Spans lost so far: the collector was slower than the proxy, or did not take them.
    pub fn lost(&self) -> u64 {
        self.queue.lost()
    }

    /// Delivers what is waiting, for at most `within`. Blocks.
    pub fn shutdown(&self, within: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(within) {
            tracing::warn!(%error, "the last traces could not be delivered in time");
        }
    }

    /// The caller's context, where it sent one.
    fn parent(&self, headers: &HeaderMap) -> Context {
        let states = headers.get_all(TRACESTATE).iter().filter_map(|state| state.to_str().ok());
        let state = states.collect::<Vec<_>>().join(",");
        let mut parents = headers.get_all(TRACEPARENT).iter();
        // Of two nobody knows which.
        let parent =
            parents.next().filter(|_| parents.next().is_none()).and_then(|parent| parent.to_str().ok());
        let received = Received { parent, state: Some(state).filter(|state| state.len() <= LONGEST_STATE) };
        self.context.extract_with_context(&Context::new(), &received)
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

struct Received<'a> {
    parent: Option<&'a str>,
    state: Option<String>,
}

impl Extractor for Received<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.parent,
            TRACESTATE => self.state.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

/// Makes the spans of requests.
#[derive(Clone)]
pub struct Served {
    traces: Arc<Traces>,
    scheme: &'static str,
}

/// How a request ended.
pub struct End<'a> {
    /// The route's template, where there is one.
    pub route: Option<&'a str>,
    /// What the caller was answered; `None`: it left first.
    pub status: Option<u16>,
    /// What went wrong on our side or upstream's.
    pub error: Option<&'a str>,
    /// The request id.
    pub request_id: &'a str,
    /// The environment.
    pub environment: Option<&'a str>,
    /// `Cache-Status`.
    pub cache: Option<String>,
}

impl Served {
    /// `tls`: callers come by https.
    pub fn new(traces: Arc<Traces>, tls: bool) -> Self {
        Self { traces, scheme: if tls { "https" } else { "http" } }
    }

    /// Begins the span of a request.
    pub fn begin<B>(&self, request: &Request<B>) -> RequestSpan {
        let method = Verb::of(request.method()).as_str();
        let attributes = vec![
            KeyValue::new("http.request.method", method),
            KeyValue::new("url.scheme", self.scheme),
            KeyValue::new("network.protocol.version", version(request.version())),
        ];
        let parent = self.traces.parent(request.headers());
        let builder = SpanBuilder::from_name(method).with_kind(SpanKind::Server).with_attributes(attributes);
        RequestSpan { method, span: self.traces.tracer.build_with_context(builder, &parent) }
    }
}

/// The span of a request on its way; it ends when it is told how, or when it is dropped.
pub struct RequestSpan {
    method: &'static str,
    span: Span,
}

impl RequestSpan {
    /// What the spans of its attempts, and upstream's, belong to.
    pub fn context(&self) -> &SpanContext {
        self.span.span_context()
    }

    /// Ends the span.
    pub fn end(mut self, end: End<'_>) {
        if !self.span.is_recording() {
            return;
        }
        let text = |name: &'static str, value: Option<&str>| Some(KeyValue::new(name, value?.to_owned()));
        let known = [
            text("http.route", end.route),
            text("url.path", end.route),
            end.status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))),
            text("metorial_proxy.request_id", Some(end.request_id)),
            text("metorial_proxy.environment", end.environment),
            end.cache.map(|cache| KeyValue::new("metorial_proxy.cache_status", cache)),
        ];
        self.span.set_attributes(known.into_iter().flatten());
        if let Some(route) = end.route {
            self.span.update_name(format!("{} {route}", self.method));
        }
        let failed = end.status.filter(|status| *status >= 500).map(|status| status.to_string());
        if let Some(error) = end.error.map(str::to_owned).or(failed) {
            fail(&mut self.span, error);
        }
        self.span.end();
    }
}

/// Makes the spans of attempts towards one upstream.
#[derive(Clone)]
pub struct Sent {
    traces: Arc<Traces>,
    peer: [KeyValue; 3],
}

impl Sent {
    /// Towards `host` and `port`, by `scheme`.
    pub fn new(traces: Arc<Traces>, scheme: &str, host: &str, port: u16) -> Self {
        let peer = [
            KeyValue::new("server.address", host.to_owned()),
            KeyValue::new("server.port", i64::from(port)),
            KeyValue::new("url.scheme", scheme.to_owned()),
        ];
        Self { traces, peer }
    }

    /// Begins the span of an attempt below `parent`, the so manieth again, and tells upstream of it in `fields`.
    pub fn begin(
        &self,
        parent: &SpanContext,
        method: &Method,
        route: &str,
        resent: u32,
        fields: &mut Vec<(HeaderName, HeaderValue)>,
    ) -> AttemptSpan {
        let parent = Context::new().with_remote_span_context(parent.clone());
        let method = Verb::of(method).as_str();
        let builder = SpanBuilder::from_name(Cow::Borrowed(method)).with_kind(SpanKind::Client);
        let mut span = self.traces.tracer.build_with_context(builder, &parent);
        if span.is_recording() {
            span.update_name(format!("{method} {route}"));
            span.set_attribute(KeyValue::new("http.request.method", method));
            span.set_attribute(KeyValue::new("url.template", route.to_owned()));
            span.set_attributes(self.peer.iter().cloned());
            if resent > 0 {
                span.set_attribute(KeyValue::new("http.request.resend_count", i64::from(resent)));
            }
        }
        fields.retain(|(name, _)| name != TRACESTATE);
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        self.traces.context.inject_context(&context, &mut Fields(fields));
        AttemptSpan(Some(Box::new(span)))
    }
}

/// What a context is written into; without a state where that is empty.
struct Fields<'a>(&'a mut Vec<(HeaderName, HeaderValue)>);

impl Injector for Fields<'_> {
    fn set(&mut self, key: &str, value: String) {
        let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else { return };
        self.0.retain(|(known, _)| *known != name);
        let value = HeaderValue::try_from(value).ok().filter(|value| !value.is_empty());
        self.0.extend(value.map(|value| (name, value)));
    }
}

/// The span of an attempt under way. Dropped before its end, the caller left, or its time was up. Boxed, since most attempts
/// have none.
pub struct AttemptSpan(Option<Box<Span>>);

impl AttemptSpan {
    /// Upstream answered, as far as the head.
    pub fn answered(mut self, status: u16) {
        let Some(mut span) = self.0.take() else { return };
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 400 {
            fail(&mut span, status.to_string());
        }
        span.end();
    }

    /// It did not, because of `error`.
    pub fn failed(mut self, error: &'static str) {
        if let Some(mut span) = self.0.take() {
            fail(&mut span, error.to_owned());
            span.end();
        }
    }
}

impl Drop for AttemptSpan {
    fn drop(&mut self) {
        if let Some(mut span) = self.0.take() {
            fail(&mut span, "cancelled".to_owned());
            span.end();
        }
    }
}

fn fail(span: &mut Span, error: String) {
    span.set_status(Status::error(""));
    span.set_attribute(KeyValue::new("error.type", error));
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests;
