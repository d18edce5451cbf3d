//! Whatever is written: it is accepted or refused, and nothing panics.

use proptest::prelude::*;

use super::*;

/// A value of TOML: often of the wrong type for where it ends up.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| toml::Value::Float(number).to_string()),
        any::<bool>().prop_map(|flag| flag.to_string()),
        any::<String>().prop_map(|text| toml::Value::String(text).to_string()),
        "[0-9]{1,20}(ns|ms|s|m|h|d|y|KiB|MiB|TiB|EB)".prop_map(|text| format!("{text:?}")),
        "(https?://)?[a-z:@\\[\\]/?#.0-9]{0,20}".prop_map(|text| format!("{text:?}")),
        "(GET|get|ALL) /[a-z{}*/:]{0,12}".prop_map(|text| format!("{text:?}")),
        Just("2026-01-01T00:00:00Z".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|values| format!("[{}]", values.join(", "))),
            ("(requests|window|file|env|settle|path|[a-z]{1,3})", inner)
                .prop_map(|(key, value)| format!("{{ {key} = {value} }}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_at_any_key_is_accepted_or_refused(at in 0..every_key().len(), value in value()) {
        let (_, _, file) = &every_key()[at];
        let _outcome = load_text(&file.replace("VALUE", &value), &[]).map(|loaded| loaded.warnings);
    }

    #[test]
    fn any_text_is_accepted_or_refused(text in any::<String>(), line in "[a-z.\\[\\]={}\"', 0-9\n#]{0,80}") {
        prop_assert!(load_text(&text, &[]).is_err());
        prop_assert!(load_text(&line, &[]).is_err());
    }

    #[test]
    fn any_variable_is_accepted_or_refused(name in "(UPSTREAM|ALLOW|KEYLESS|PROXY_(LISTEN|LOG|BASE_PATH|X))", value in any::<String>()) {
        let name = format!("METORIAL_{name}");
        let env = variables(&[("METORIAL_SECRET_KEY", "metorial_sk_a"), (&name, &value)]);
        let loaded = load(&Sources { file: None, env: &env });
        prop_assert!(loaded.is_err() || name == "METORIAL_KEYLESS");
    }
}

#[test]
fn a_log_filter_with_a_character_beyond_ascii_is_refused_and_no_panic() {
    let variables: Variables = [("METORIAL_PROXY_LOG".into(), "\u{3000}K[f^}\u{a800}>?$".into())].into();
    let faults = load(&Sources { file: None, env: &variables }).expect_err("refused");
    assert!(faults.iter().any(|fault| fault.path == "METORIAL_PROXY_LOG"), "{faults:?}");
    assert!(crate::telemetry::logging::parse("\u{3000}K[f^}\u{a800}>?$").is_err());
}
