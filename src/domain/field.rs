//! Values of fields that are made for every answer.

use std::io::Write as _;

use http::header::HeaderValue;

/// More than any value is long that is made here.
const LONGEST: usize = 128;

/// The value that these parts make up; `None` where they can be none, or are longer than 128 bytes.
///
/// Put together on the stack and copied once, without the machinery of `format!`.
pub fn of(parts: &[&str]) -> Option<HeaderValue> {
    let mut bytes = [0; LONGEST];
    let mut rest = &mut bytes[..];
    for part in parts {
        rest.write_all(part.as_bytes()).ok()?;
    }
    let length = LONGEST - rest.len();
    HeaderValue::from_bytes(&bytes[..length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_its_parts_and_none_is_cut_off() {
        let value = |parts: &[&str]| of(parts).map(|value| value.to_str().map(str::to_owned).ok());
        assert_eq!(value(&["a=", "1", ";b"]), Some(Some("a=1;b".into())));
        assert_eq!(value(&[]), Some(Some(String::new())));
        let long = "x".repeat(LONGEST);
        assert_eq!(value(&[&long]), Some(Some(long.clone())));
        assert_eq!(value(&[&long, "x"]), None);
        assert_eq!(value(&["a\n"]), None);
    }
}
