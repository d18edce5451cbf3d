use proptest::prelude::*;

use super::*;

const SECRET: &str = "metorial_sk_Zq81LmXw3v5TtRk0";

fn guard() -> SecretGuard {
    SecretGuard::new([SECRET]).expect("a guard")
}

/// Feeds `text` in pieces of `size`; what passed, and whether the secret was found.
fn read(text: &[u8], size: usize) -> (Vec<u8>, bool) {
    let mut scan = guard().scan();
    let mut passed = Vec::new();
    for piece in text.chunks(size) {
        match scan.push(Bytes::copy_from_slice(piece)) {
            Ok(bytes) => passed.extend_from_slice(&bytes),
            Err(SecretFound) => return (passed, true),
        }
    }
    passed.extend_from_slice(&scan.finish());
    (passed, false)
}

fn percent(text: &str, every: usize) -> String {
    text.bytes()
        .enumerate()
        .map(|(at, b)| if at % every == 0 { format!("%{b:02x}") } else { char::from(b).to_string() })
        .collect()
}

fn encoded(prefix: &str, alphabet: &[u8; 64]) -> String {
    String::from_utf8(base64(format!("{prefix}{SECRET} and more").as_bytes(), alphabet)).expect("ASCII")
}

fn disguises() -> Vec<String> {
    let mut all = vec![
        SECRET.to_owned(),
        percent(SECRET, 1),
        percent(SECRET, 2),
        percent(SECRET, 5),
        SECRET.replace('_', "%5F"),
        format!("%{}", percent(SECRET, 1)),
        format!("%6{}", percent(SECRET, 3)),
    ];
    for prefix in ["", "a", "ab", "Bearer ", "Bearer x", "Bearer xy"] {
        all.push(encoded(prefix, STANDARD));
        all.push(encoded(prefix, URL_SAFE));
    }
    all
}

#[test]
fn every_form_is_found_however_it_is_cut_and_no_byte_of_it_has_left() {
    for form in disguises() {
        for size in [1, 2, 3, 7, 64, 4096] {
            let text = format!("{{\"echo\":\"%metorial_sk_ {form}\"}}");
            let (passed, found) = read(text.as_bytes(), size);
            assert!(found, "{form} in pieces of {size}");
            let passed = String::from_utf8(passed).expect("UTF-8");
            let clean = text.find(&form).expect("it is there");
            // A base64 form begins with characters that also hold what stands before the secret.
            assert!(passed.len() <= clean + 14, "{passed:?} left before {form} was found");
        }
    }
}

#[test]
fn one_escape_anywhere_does_not_hide_it() {
    for at in 0..SECRET.len() {
        let escape = format!("%{:02x}", SECRET.as_bytes()[at]);
        let form = format!("{}{escape}{}", &SECRET[..at], &SECRET[at + 1..]);
        for size in [1, 2, 3, 7, 4096] {
            assert!(
                read(format!("a long text before {form} and after").as_bytes(), size).1,
                "{form} by {size}"
            );
        }
    }
}

#[test]
fn what_only_looks_like_it_passes_whole_and_at_once() {
    let text = b"metorial_sk_Zq81LmXw3v5TtRk1 %6d%65torial_sk_ metorial_sk_Zq81 100% %zz %6";
    for size in [1, 2, 5, 1000] {
        assert_eq!(read(text, size), (text.to_vec(), false), "{size}");
    }
    let mut scan = guard().scan();
    assert_eq!(scan.push(Bytes::from_static(b"{\"items\":[]}")), Ok(Bytes::from_static(b"{\"items\":[]}")));
    assert_eq!(
        scan.push(Bytes::from_static(b"key: meto")),
        Ok(Bytes::from_static(b"key: ")),
        "a live prefix is held back"
    );
    assert_eq!(
        scan.push(Bytes::from_static(b"day")),
        Ok(Bytes::from_static(b"metoday")),
        "and comes when it is none"
    );
}

#[test]
fn it_is_found_across_the_pieces_of_the_search() {
    for form in disguises() {
        for before in (PIECE - form.len() - 4..PIECE + 4).chain(2 * PIECE - 5..2 * PIECE + 1) {
            let text = format!("{}{form}{}", " ".repeat(before), " ".repeat(PIECE));
            assert!(read(text.as_bytes(), text.len()).1, "{form} at {before}");
        }
    }
}

proptest! {
    #[test]
    fn any_other_text_passes_unchanged(text in "[a-zA-Z0-9_%+/= \\n-]{0,300}", size in 1usize..40) {
        prop_assert_eq!(read(text.as_bytes(), size), (text.clone().into_bytes(), false));
    }

    #[test]
    fn any_mixture_of_escapes_is_found(
        before in "([a-zA-Z0-9_ ]|%[0-9a-fA-F]{2}|%){0,60}",
        escaped in prop::collection::vec(any::<bool>(), SECRET.len()),
        base64 in any::<bool>(),
        size in 1usize..50,
    ) {
        let form = if base64 { encoded("ab", STANDARD) } else { SECRET.to_owned() };
        let each = form.bytes().zip(escaped.into_iter().cycle());
        let form: String = each
            .map(|(byte, escaped)| if escaped { format!("%{byte:02X}") } else { char::from(byte).to_string() })
            .collect();
        // A `%` before it could take its first byte for a digit.
        let text = format!("{before}.{form} after");
        prop_assert!(read(text.as_bytes(), size).1 && read(text.as_bytes(), text.len()).1, "{}", text);
    }

    #[test]
    fn the_secret_is_found_wherever_it_stands(before in "[a-zA-Z0-9_%]{0,60}", after in ".{0,20}", size in 1usize..40) {
        let text = format!("{before}\"{SECRET}{after}");
        prop_assert!(read(text.as_bytes(), size).1);
    }
}
