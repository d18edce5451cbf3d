//! Path templates of rules: `/provider-deployments/{id}`.

/// `/sessions/{sessionId}` as `/sessions/{0}`: two templates are the same whatever they call their parameters.
pub(super) fn anonymous(template: &str) -> String {
    let segments = template.split('/').enumerate();
    let segments =
        segments.map(
            |(at, segment)| if segment.starts_with('{') { format!("{{p{at}}}") } else { segment.to_owned() },
        );
    segments.collect::<Vec<_>>().join("/")
}

/// Whether `path` is a template that a canonical path can match.
///
/// # Errors
/// What is wrong with it, and the cure.
pub(super) fn check(path: &str) -> Result<(), String> {
    let fault = |what: &str| Err(format!("{path:?} is no path template: {what}"));
    if !path.starts_with('/') {
        return fault("it begins with /");
    }
    if path.len() > 1 && path.ends_with('/') {
        return fault("the API knows no trailing slash");
    }
    for segment in path.split('/').skip(1) {
        let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
        match name {
            Some(name) if name.is_empty() || !plain(name) => return fault("a parameter is {name}"),
            Some(_) => {}
            None if segment.starts_with(':') => return fault("a parameter is {name}, not :name"),
            None if segment.contains(['{', '}', '*']) => {
                return fault("a parameter is a whole segment, and there are no wildcards");
            }
            None if segment.is_empty() && path.len() > 1 => return fault("it holds an empty segment"),
            None if matches!(segment, "." | "..") => return fault("dot segments are refused"),
            None if !plain(segment) => return fault("letters, digits, - . _ ~ only, and no query"),
            None => {}
        }
    }
    Ok(())
}
