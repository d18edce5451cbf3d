//! One event, one line, one flat JSON object:
//! `{"timestamp","level","target","message",…the event's fields…,…its spans' fields…}`.
//!
//! Fields of the spans stand beside the event's own, so that a search for a request id finds every line of the request.
//! They are written once, when they are recorded, and copied from then on; only where a name occurs twice is the line
//! taken apart, and the innermost value stands.

use std::fmt;

use serde_json::{Map, Value};
use tracing::span::Record;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

mod members;

use members::{Members, Mentions, quoted};

/// Writes events.
#[derive(Debug, Clone)]
pub struct Line<T> {
    timer: T,
}

impl Line<SystemTime> {
    /// With the time of day in UTC.
    pub fn utc() -> Self {
        Self { timer: SystemTime }
    }
}

/// Writes fields as members of an object, each with the comma before it.
#[derive(Debug, Clone, Copy)]
pub struct Fields;

impl<S, T> FormatEvent<S, Fields> for Line<T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    T: FormatTime,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, Fields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !repeats_a_name(context, event) {
            self.head(&mut writer, event)?;
            Fields.format_fields(writer.by_ref(), event)?;
            spans(context, &mut writer)?;
            return writer.write_str("}\n");
        }
        // The last value of a name is the one that stays: from the outermost span to the event.
        let mut line = String::new();
        self.head(&mut Writer::new(&mut line), event)?;
        spans(context, &mut Writer::new(&mut line))?;
        Fields.format_fields(Writer::new(&mut line), event)?;
        line.push('}');
        writeln!(writer, "{}", without_repeats(&line)?)
    }
}

impl<T: FormatTime> Line<T> {
    fn head(&self, writer: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        writer.write_str("{\"timestamp\":\"")?;
        self.timer.format_time(writer)?;
        write!(writer, "\",\"level\":\"{}\",\"target\":", metadata.level())?;
        quoted(writer, metadata.target())
    }
}

/// The members of all spans the event stands in, outermost first.
fn spans<S>(context: &FmtContext<'_, S, Fields>, writer: &mut Writer<'_>) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
        if let Some(fields) = span.extensions().get::<FormattedFields<Fields>>() {
            writer.write_str(&fields.fields)?;
        }
    }
    Ok(())
}

/// Whether two of the event and its spans have a field of the same name. Names are part of the program: no field is
/// read for this.
fn repeats_a_name<S>(context: &FmtContext<'_, S, Fields>, event: &Event<'_>) -> bool
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let Some(scope) = context.event_scope() else { return false };
    scope.into_iter().any(|span| {
        span.metadata().fields().iter().any(|field| {
            let has = |metadata: &Metadata<'_>| metadata.fields().field(field.name()).is_some();
            has(event.metadata()) || span.scope().skip(1).any(|outer| has(outer.metadata()))
        })
    })
}

/// `object` with the last value of each name.
fn without_repeats(object: &str) -> Result<String, fmt::Error> {
    let members: Map<String, Value> = serde_json::from_str(object).map_err(|_| fmt::Error)?;
    Ok(Value::Object(members).to_string())
}

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut members = Members::new(&mut writer);
        fields.record(&mut members);
        members.finish()
    }

    /// Adds what is recorded later; a field that is recorded again is replaced.
    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let again = Mentions::any(&current.fields, fields);
        self.format_fields(Writer::new(&mut current.fields), fields)?;
        if again {
            let object = format!("{{{}}}", current.fields.trim_start_matches(','));
            let object = without_repeats(&object)?;
            let members = object.strip_prefix('{').and_then(|object| object.strip_suffix('}'));
            current.fields = format!(",{}", members.unwrap_or_default());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing::{info, info_span, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::telemetry::logging::testing::{Lines, listen};

    struct Noon;

    impl FormatTime for Noon {
        fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
            writer.write_str("2026-11-23T12:00:00.000000Z")
        }
    }

    /// The lines that `work` logs, each of them valid JSON.
    fn logged(work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(lines.writer())
            .fmt_fields(Fields)
            .event_format(Line { timer: Noon });
        let guard = listen(tracing_subscriber::registry().with(layer));
        work();
        drop(guard);
        let text = lines.text();
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).expect(line);
            assert!(value["level"].is_string(), "{line}");
        }
        text
    }

    #[test]
    fn events_are_flat_and_carry_the_fields_of_their_spans() {
        insta::assert_snapshot!(logged(|| {
            info!(listener = "http", addr = %"127.0.0.1:8080", "listening");
            let request = info_span!("request", request_id = "req_1", route = tracing::field::Empty);
            let _in = request.enter();
            info!("admitted");
            request.record("route", "/providers");
            let error: Box<dyn std::error::Error + 'static> = Box::new(io::Error::other("refused"));
            warn!(status = 502_u16, seconds = 0.25, sure = true, error = &*error, "upstream failed");
        }));
    }

    #[test]
    fn nothing_in_a_value_breaks_the_line_or_the_object() {
        insta::assert_snapshot!(logged(|| {
            info!(a = "one\ntwo\t\"three\" \\ \u{1b}[31mred \u{7f} \u{e9}", b = ?"\r\n", "quo\"ted\n{}", "}{");
            info!(level = "mine", timestamp = 1, target_ = 2, nan = f64::NAN, r#type = "raw");
        }));
    }

    #[test]
    fn the_innermost_value_of_a_repeated_name_stands() {
        let text = logged(|| {
            let outer = info_span!("outer", name = "outer", kept = 1);
            let _outer = outer.enter();
            let inner = info_span!("inner", name = "inner", step = 1);
            let _inner = inner.enter();
            info!("from the span");
            info!(name = "event", "from the event");
            inner.record("step", 2);
            info!(name = "event", "recorded again");
        });
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let names: Vec<_> = lines.iter().map(|line| line["name"].as_str()).collect();
        assert_eq!(names, [Some("inner"), Some("event"), Some("event")]);
        assert!(lines.iter().all(|line| line["kept"] == 1), "{text}");
        assert_eq!([&lines[1]["step"], &lines[2]["step"]], [1, 2]);
        assert!(text.lines().all(|line| line.matches("\"name\":").count() == 1), "{text}");
        assert!(text.lines().all(|line| line.matches("\"step\":").count() == 1), "{text}");
    }
}
