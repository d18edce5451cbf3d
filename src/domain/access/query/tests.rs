use proptest::prelude::*;

use super::*;

fn query(constraints: &[(&str, &str)], strict: bool) -> Query {
    Query::parse(constraints.iter().copied(), strict).expect("constraints")
}

/// The constraint that is broken and whether that is an ambiguity; `None`: it passes.
fn broken(query: &Query, text: &str) -> Option<(String, bool)> {
    query.check(text).err().map(|broken| (broken.constraint, broken.ambiguous))
}

#[test]
fn numbers_words_and_required_parameters_are_held_to_their_constraint() {
    let query =
        query(&[("limit", "<=50"), ("status", "active|archived"), ("kind", "!mcp"), ("after", "*")], false);
    let limit = || Some(("limit".to_owned(), false));
    for (text, expected) in [
        ("kind=mcp", None),
        ("kind=mcp&limit=50&status=archived&after=x%20y&other=1", None),
        ("kind=mcp&limit=0050", None),
        ("kind=mcp&limit=5%30", None),
        ("kind=mcp&limit=51", limit()),
        ("kind=mcp&limit=", limit()),
        ("kind=mcp&limit", limit()),
        ("kind=mcp&limit=-1", limit()),
        ("kind=mcp&limit=+5", limit()),
        ("kind=mcp&limit=5e1", limit()),
        ("kind=mcp&limit=5.0", limit()),
        ("kind=mcp&limit=0x10", limit()),
        ("kind=mcp&limit=50abc", limit()),
        ("kind=mcp&limit=Infinity", limit()),
        ("kind=mcp&limit=99999999999999999999999", limit()),
        ("kind=mcp&status=deleted", Some(("status".to_owned(), false))),
        ("kind=mcp&status=Active", Some(("status".to_owned(), false))),
        ("kind=mcp&status=active|archived", Some(("status".to_owned(), false))),
        ("", Some(("kind".to_owned(), false))),
        ("kind=other", Some(("kind".to_owned(), false))),
        ("limit=1", Some(("kind".to_owned(), false))),
    ] {
        assert_eq!(broken(&query, text), expected, "{text}");
    }
}

#[test]
fn a_name_is_compared_decoded_and_an_array_of_it_counts_as_it() {
    let query = query(&[("limit", "<=50")], false);
    for name in ["limit", "li%6Dit", "limit[]", "limit[0]", "limit%5B%5D", "limit%5b0%5D", "limit[a][b]"] {
        assert_eq!(broken(&query, &format!("{name}=50")), None, "{name}");
        assert_eq!(broken(&query, &format!("{name}=51")), Some(("limit".to_owned(), false)), "{name}");
        let twice = format!("limit=1&{name}=2");
        assert_eq!(broken(&query, &twice), Some(("limit".to_owned(), true)), "{twice}");
    }
    for name in ["Limit", "limits", "limi", "%256cimit", "limit.x", "+limit"] {
        assert_eq!(broken(&query, &format!("{name}=51")), None, "{name} is another parameter");
    }
}

#[test]
fn strict_allows_no_parameter_beside_those_of_the_rule() {
    let query = query(&[("limit", "<=50")], true);
    for text in ["", "limit=5", "&&limit=5&"] {
        assert_eq!(broken(&query, text), None, "{text}");
    }
    for text in ["limit=5&order=asc", "order", "=x", "%6Frder=asc"] {
        assert_eq!(broken(&query, text), Some(("query_strict".to_owned(), false)), "{text}");
    }
    let nothing = Query::parse([], true).expect("constraints");
    assert_eq!(broken(&nothing, ""), None);
    assert!(broken(&nothing, "a").is_some());
}

#[test]
fn a_refusal_says_which_constraint_broke_and_repeats_no_value() {
    let query = query(&[("limit", "<=50"), ("status", "active|archived"), ("kind", "mcp")], true);
    for (text, message) in [
        ("limit=hunter2", "The parameter limit must be a whole number of at most 50."),
        ("status=hunter2", "The parameter status must be one of active, archived."),
        ("kind=hunter2", "The parameter kind must be \"mcp\"."),
        ("limit=1&limit=hunter2", "the parameter limit is there more than once"),
        (
            "order=hunter2",
            "No other parameter is allowed on this route than those of its rule: \"order\" is not.",
        ),
    ] {
        assert_eq!(query.check(text).expect_err(text).message, message);
    }
}

#[test]
fn a_constraint_that_cannot_stand_is_named_with_the_cure() {
    for (name, text, part) in [
        ("limit", "", "write \"*\""),
        ("limit", "!", "write \"*\""),
        ("limit", "<=", "no whole number"),
        ("limit", "<=-1", "no whole number"),
        ("limit", "<=1.5", "no whole number"),
        ("limit", "<50", "is no constraint"),
        ("limit", ">=50", "is no constraint"),
        ("limit", "!!5", "is no constraint"),
        ("status", "a||b", "lists an empty value"),
        ("status[]", "a", "without brackets"),
        ("", "a", "no parameter"),
        ("key", "a", "never match"),
        ("token", "!*", "never match"),
        ("consumer_session_client_secret", "*", "never match"),
    ] {
        let errors = Query::parse([(name, text)], false).expect_err(text);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].0 == name && errors[0].1.contains(part), "{name} {text}: {errors:?}");
    }
}

proptest! {
    /// However a name and a number are written, a query that passes asks for at most 50, read as leniently as the API does.
    #[test]
    fn no_spelling_gets_more_than_the_constraint_grants(
        text in "((limit|li%6Dit|limit%5B0%5D|limit\\[\\]|a)=[0-9+%a-f. ]{0,6}&?){0,3}",
    ) {
        let query = query(&[("limit", "<=50")], false);
        if query.check(&text).is_err() {
            return Ok(());
        }
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |text: &str| String::from_utf8_lossy(&decode(text)).into_owned();
            if !plain(name).starts_with("limit") {
                continue;
            }
            let value = plain(value);
            let digits: String = value.trim().chars().take_while(char::is_ascii_digit).collect();
            prop_assert!(digits.parse::<u64>().is_ok_and(|number| number <= 50), "{text}");
            prop_assert_eq!(digits, value, "{}", text);
        }
    }
}
