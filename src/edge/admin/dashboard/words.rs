//! Figures as people read them, with their units.

use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;

/// What stands where there is no figure.
pub const NONE: &str = "–";

/// `4,211`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A wait or an age: `0.4 s`, `41 s`, `2 min 5 s`, `3 h 4 min`, `5 d 2 h`. Rounded up: a wait is never told too short.
pub fn span(seconds: f64) -> String {
    if !seconds.is_finite() || seconds >= 1e15 {
        return "for ever".to_owned();
    }
    if seconds > 0.0 && seconds <= 9.9 {
        let tenths = (seconds * 10.0).ceil() / 10.0;
        return if tenths.fract() == 0.0 { format!("{tenths:.0} s") } else { format!("{tenths:.1} s") };
    }
    let whole = Duration::from_secs_f64(seconds.max(0.0).ceil()).as_secs();
    let two = |large: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {smaller}"),
    };
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => two(whole / 60, "min", whole % 60, "s"),
        3600..86_400 => two(whole / 3600, "h", whole % 3600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3600, "h"),
    }
}

/// How long a request took: `0.42 ms`, `12 ms`, `1.25 s`, `over 10 s`.
pub fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => NONE.to_owned(),
        Some(seconds) if seconds >= 10.0 => "over 10 s".to_owned(),
        Some(seconds) if seconds >= 1.0 => format!("{seconds:.2} s"),
        Some(seconds) if seconds >= 0.01 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) => format!("{:.2} ms", seconds * 1e3),
    }
}

/// `0.3/s`, `12.5/s`, `4,211/s`
pub fn rate(per_second: f64) -> String {
    if per_second == 0.0 {
        "0/s".to_owned()
    } else if per_second >= 100.0 {
        // What is counted in a second fits.
        format!("{}/s", count(per_second.round() as u64))
    } else if per_second < 0.1 {
        "under 0.1/s".to_owned()
    } else {
        format!("{per_second:.1}/s")
    }
}

/// `76 %`
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| NONE.to_owned(), |share| format!("{:.0} %", (share * 100.0).floor()))
}

/// `33.8 KiB`
pub fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// The time of day: `12:05:47 UTC`.
pub fn time(at: u64) -> String {
    let day = at % 86_400;
    format!("{:02}:{:02}:{:02} UTC", day / 3600, day % 3600 / 60, day % 60)
}

/// Day and time, as RFC 3339 has them.
pub fn date(at: u64) -> String {
    /// The last second of the year 9999, which no date of RFC 3339 lies beyond.
    const LAST: u64 = 253_402_300_799;
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at.min(LAST))).to_string()
}

/// `one` or `more`.
pub fn plural<'a>(number: u64, one: &'a str, more: &'a str) -> &'a str {
    if number == 1 { one } else { more }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_and_no_more_digits_than_are_read() {
        assert_eq!([0, 999, 4211, 1_234_567].map(count), ["0", "999", "4,211", "1,234,567"]);
        let spans =
            [0.0, 0.01, 2.14, 9.9, 9.95, 59.2, 60.0, 125.0, 3600.0, 11_040.0, 439_200.0, f64::INFINITY];
        assert_eq!(
            spans.map(span),
            [
                "0 s",
                "0.1 s",
                "2.2 s",
                "9.9 s",
                "10 s",
                "1 min",
                "1 min",
                "2 min 5 s",
                "1 h",
                "3 h 4 min",
                "5 d 2 h",
                "for ever"
            ]
        );
        assert_eq!(
            [None, Some(0.000_42), Some(0.0123), Some(1.25), Some(10.0)].map(latency),
            ["–", "0.42 ms", "12 ms", "1.25 s", "over 10 s"]
        );
        assert_eq!([0.0, 0.01, 12.54, 4211.4].map(rate), ["0/s", "under 0.1/s", "12.5/s", "4,211/s"]);
        assert_eq!([None, Some(0.999), Some(1.0)].map(percent), ["–", "99 %", "100 %"]);
        assert_eq!(bytes(34_567), "33.8 KiB");
        assert_eq!(
            (time(1_795_447_527), date(u64::MAX)),
            ("15:25:27 UTC".into(), "9999-12-31T23:59:59Z".into())
        );
    }
}
