//! The two text formats that scrapers ask for.

/// How figures are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own text, for scrapers and people that ask for nothing else.
    Prometheus,
}

impl Format {
    /// What a request with this `Accept` field gets.
    pub fn of(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Turns OpenMetrics text into this format.
    pub(super) fn convert(self, openmetrics: String) -> String {
        match self {
            Self::OpenMetrics => openmetrics,
            Self::Prometheus => prometheus(&openmetrics),
        }
    }
}

/// The older format names a counter's family as its samples are named (`…_total`), and knows neither units nor an end.
fn prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Held back until the type that follows says what the family is called.
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                push(&mut text, &["# HELP ", name, suffix, " ", help]);
            }
            push(&mut text, &["# TYPE ", name, suffix, " ", kind]);
        } else if !line.starts_with('#') {
            push(&mut text, &[line]);
        }
    }
    text
}

fn push(text: &mut String, parts: &[&str]) {
    text.extend(parts.iter().copied());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_openmetrics_only_if_it_asks() {
        let prometheus_server =
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        assert_eq!(Format::of(Some(prometheus_server)), Format::OpenMetrics);
        assert_eq!(Format::of(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::of(None), Format::Prometheus);
    }

    #[test]
    fn the_older_format_names_counters_in_full_and_has_no_end() {
        let openmetrics = "# HELP a_seconds How long.\n# TYPE a_seconds gauge\n# UNIT a_seconds seconds\n\
                           a_seconds 1\n# HELP b How often.\n# TYPE b counter\nb_total{c=\"d\"} 2\n# EOF\n";
        let expected = "# HELP a_seconds How long.\n# TYPE a_seconds gauge\na_seconds 1\n\
                        # HELP b_total How often.\n# TYPE b_total counter\nb_total{c=\"d\"} 2\n";
        assert_eq!(Format::Prometheus.convert(openmetrics.to_owned()), expected);
    }
}
