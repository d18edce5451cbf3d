use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use http::HeaderValue;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::SpanData;

use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Takes spans when it is let, or refuses them.
#[derive(Debug)]
struct Collector {
    gate: Option<Mutex<Receiver<()>>>,
    taken: Option<Arc<Mutex<Vec<SpanData>>>>,
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        if let Some(gate) = &self.gate {
            // Until the other side is gone.
            gate.lock().expect("one thread").recv().unwrap_or_default();
        }
        match &self.taken {
            Some(taken) => taken.lock().expect("no panic").extend(batch),
            None => return Err(OTelSdkError::InternalFailure("closed".into())),
        }
        Ok(())
    }
}

fn traces(collector: Collector) -> Arc<Traces> {
    Arc::new(Traces::new(collector, 1.0))
}

fn end<'a>() -> End<'a> {
    End {
        route: Some("/x/{id}"),
        status: Some(200),
        error: None,
        request_id: "r",
        environment: None,
        cache: None,
    }
}

fn request(fields: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request = Request::new(());
    for (name, value) in fields {
        request.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    request
}

#[test]
fn spans_that_do_not_fit_are_lost_and_counted_and_hold_nobody_up() {
    let (open, gate) = channel();
    let taken = Arc::default();
    let traces = traces(Collector { gate: Some(Mutex::new(gate)), taken: Some(Arc::clone(&taken)) });
    let served = Served::new(traces.clone(), false);
    let all = queue::ROOM * 2;
    for _ in 0..all {
        served.begin(&request(&[])).end(end());
    }
    assert!(traces.lost() > 0);
    drop(open);
    traces.shutdown(Duration::from_secs(60));
    let delivered = taken.lock().expect("no panic").len();
    assert_eq!(delivered + usize::try_from(traces.lost()).expect("small"), all);
}

#[test]
fn spans_that_the_collector_does_not_take_are_counted() {
    let traces = traces(Collector { gate: None, taken: None });
    Served::new(traces.clone(), false).begin(&request(&[])).end(end());
    traces.shutdown(Duration::from_secs(60));
    assert_eq!(traces.lost(), 1);
}

#[test]
fn a_context_is_believed_where_it_reads_one_way() {
    let traces = traces(Collector { gate: None, taken: Some(Arc::default()) });
    let served = Served::new(traces.clone(), false);
    let context = |fields: &[_]| served.begin(&request(fields)).context().clone();
    let ours = context(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
    assert_eq!(ours.trace_id().to_string(), PARENT[3..35]);
    assert_ne!(ours.span_id().to_string(), PARENT[36..52]);
    assert_eq!(ours.trace_state().header(), "a=1,b=2");
    for bad in [
        &[("traceparent", PARENT), ("traceparent", PARENT)][..],
        &[("traceparent", "00-x")],
        &[("traceparent", "metorial_pk_a"), ("tracestate", "a=1")],
    ] {
        let ours = context(bad);
        assert!(ours.is_valid() && ours.trace_id().to_string() != PARENT[3..35], "{bad:?}");
        assert_eq!(ours.trace_state().header(), "", "{bad:?}");
    }
}

#[test]
fn upstream_hears_of_the_attempt_and_of_nothing_that_is_not_its_parent() {
    let traces = traces(Collector { gate: None, taken: Some(Arc::default()) });
    let sent = Sent::new(traces.clone(), "https", "api.example", 443);
    let mut fields = [("traceparent", PARENT), ("tracestate", "a=1"), ("accept", "x"), ("tracestate", "b=2")]
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .to_vec();
    let parent = Served::new(traces, false).begin(&request(&[("traceparent", PARENT)])).context().clone();
    let span = sent.begin(&parent, &Method::GET, "/x/{id}", 0, &mut fields);
    let context = span.0.as_ref().expect("under way").span_context().clone();
    let expected = format!("00-{}-{}-01", &PARENT[3..35], context.span_id());
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    // The parent has no state.
    assert_eq!(fields, [("accept", &b"x"[..]), ("traceparent", expected.as_bytes())]);
}
