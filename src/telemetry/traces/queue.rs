//! Spans that wait for the collector: so many and no more, and those that are lost are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};

/// Spans that may wait; each takes up about a kilobyte.
pub(super) const ROOM: usize = 4096;
const BATCH: usize = 512;

/// How delivery goes.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: AtomicUsize,
    lost: AtomicU64,
    failing: AtomicBool,
}

impl Queue {
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Told once, and again when it is over: a collector that is down must not fill the log.
    fn lose(&self, spans: usize, why: &str) {
        self.lost.fetch_add(spans as u64, Ordering::Relaxed);
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason = why, "traces cannot be delivered: spans are dropped until they can be");
        }
    }

    fn delivered(&self) {
        if self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!(lost = self.lost(), "traces are delivered again");
        }
    }
}

/// What spans are handed to when they end.
pub(super) fn processor(exporter: impl SpanExporter + 'static, queue: Arc<Queue>) -> impl SpanProcessor {
    let config =
        BatchConfigBuilder::default().with_max_queue_size(ROOM).with_max_export_batch_size(BATCH).build();
    let exporter = Counting { exporter, queue: queue.clone() };
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    Bounded { batches, queue }
}

/// Counts what does not fit, which the batches do not tell.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    queue: Arc<Queue>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.queue.waiting.fetch_add(1, Ordering::Relaxed) >= ROOM {
            self.queue.waiting.fetch_sub(1, Ordering::Relaxed);
            return self.queue.lose(1, "the collector is slower than the proxy");
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what the collector does not take.
#[derive(Debug)]
struct Counting<E> {
    exporter: E,
    queue: Arc<Queue>,
}

impl<E: SpanExporter> SpanExporter for Counting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.queue.waiting.fetch_sub(spans, Ordering::Relaxed);
        let outcome = self.exporter.export(batch).await;
        match &outcome {
            Ok(()) => self.queue.delivered(),
            Err(error) => self.queue.lose(spans, &error.to_string()),
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
