use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::config::tests::{fault_at, minimal, show, variables};
use crate::config::{Loaded, Sources, load};

const CALLER: (&str, &str) = ("METORIAL_PUBLISHABLE_KEYS", "metorial_pk_a");
const SECRET: (&str, &str) = ("METORIAL_SECRET_KEY", "metorial_sk_a");

fn alone(set: &[(&str, &str)]) -> Result<Loaded, Vec<Fault>> {
    load(&Sources { file: None, env: &variables(set) })
}

#[track_caller]
fn ok(set: &[(&str, &str)]) -> Loaded {
    alone(set).unwrap_or_else(|faults| panic!("{}", show(&faults)))
}

#[track_caller]
fn refused(set: &[(&str, &str)], path: &str, part: &str) {
    let faults = alone(set).expect_err(part);
    let fault = fault_at(&faults, path);
    assert!(fault.contains(part), "{fault}");
    assert_eq!(faults.len(), 1, "{}", show(&faults));
}

/// Loads a minimal file with these variables set.
fn with_file(more: &str, set: &[(&str, &str)]) -> Result<Loaded, Vec<Fault>> {
    let file = std::env::temp_dir().join(format!("metorial-proxy-env-{}-{:p}", std::process::id(), &more));
    std::fs::write(&file, minimal(more)).expect("a temporary file");
    let mut env = variables(&[("SECRET", "metorial_sk_one")]);
    env.extend(variables(set));
    let loaded = load(&Sources { file: Some(&file), env: &env });
    std::fs::remove_file(&file).expect("a temporary file");
    loaded
}

#[test]
fn two_variables_are_enough() {
    let loaded = ok(&[SECRET, CALLER]);
    assert_eq!(show(&loaded.warnings), "");
    assert!(loaded.files.is_empty());
    let config = loaded.config;
    assert_eq!(config.server.listen, ["127.0.0.1:8080".parse().expect("an address")]);
    assert_eq!(config.server.admin.to_string(), "127.0.0.1:9090");
    assert_eq!(config.upstream.authority, "api.metorial.com");
    let environment = &config.environments[0];
    assert_eq!((environment.name.as_str(), environment.limit.requests), ("development", 100));
    assert_eq!(environment.secret_key.expose(), "metorial_sk_a");
    assert!(!environment.keyless);
}

#[test]
fn each_variable_stands_for_its_key() {
    let config = ok(&[
        SECRET,
        ("METORIAL_PUBLISHABLE_KEYS", " metorial_pk_a, metorial_pk_b,"),
        ("METORIAL_ENVIRONMENT", "production"),
        ("METORIAL_ALLOW", "catalog, GET /own/{id}"),
        ("METORIAL_ORIGINS", "https://a.example,https://b.example"),
        ("METORIAL_UPSTREAM", "http://127.0.0.1:4010/v1"),
        ("METORIAL_PROXY_LISTEN", "0.0.0.0:8080,[::1]:0"),
        ("METORIAL_PROXY_ADMIN", "0.0.0.0:9090"),
        ("METORIAL_PROXY_BASE_PATH", "/api/metorial"),
        ("METORIAL_PROXY_STORE", "memory"),
        ("METORIAL_PROXY_LOG", "debug"),
        ("METORIAL_KEYLESS", "false"),
    ])
    .config;
    let environment = &config.environments[0];
    assert_eq!((environment.name.as_str(), environment.limit.requests), ("production", 5000));
    assert_eq!(environment.publishable_keys.len(), 2);
    assert!(environment.access.decide(&http::Method::GET, "/own/1", "").is_ok());
    assert!(environment.origins.allows(b"https://b.example"));
    assert_eq!(
        (config.upstream.authority.as_str(), config.upstream.base_path.as_str()),
        ("127.0.0.1:4010", "/v1")
    );
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.server.admin.to_string(), "0.0.0.0:9090");
    assert_eq!(config.server.base_path, "/api/metorial");
    assert_eq!(config.telemetry.log, "debug");
}

#[test]
fn a_sidecar_needs_no_publishable_key_and_an_empty_variable_is_not_set() {
    let config =
        ok(&[SECRET, ("METORIAL_KEYLESS", "true"), ("METORIAL_ALLOW", "all"), ("METORIAL_ORIGINS", "")])
            .config;
    assert!(config.environments[0].keyless);
    refused(
        &[SECRET, ("METORIAL_PUBLISHABLE_KEYS", "")],
        PUBLISHABLE_KEYS,
        "is not set, and METORIAL_KEYLESS is not true",
    );
    refused(
        &[("METORIAL_SECRET_KEY", ""), CALLER],
        SECRET_KEY,
        "is not set, nor is METORIAL_SECRET_KEY_FILE",
    );
}

#[test]
fn the_secret_comes_from_one_of_two_variables() {
    let file = std::env::temp_dir().join(format!("metorial-proxy-env-secret-{}", std::process::id()));
    std::fs::write(&file, "metorial_sk_from_file\n").expect("a temporary file");
    let name = file.to_str().expect("UTF-8");
    let loaded = ok(&[("METORIAL_SECRET_KEY_FILE", name), CALLER]);
    assert_eq!(loaded.config.environments[0].secret_key.expose(), "metorial_sk_from_file");
    assert_eq!(loaded.files, std::slice::from_ref(&file));
    refused(&[("METORIAL_SECRET_KEY_FILE", name), SECRET, CALLER], SECRET_KEY, "unset one of them");
    std::fs::remove_file(&file).expect("a temporary file");
    refused(&[("METORIAL_SECRET_KEY_FILE", name), CALLER], SECRET_KEY_FILE, "cannot be read");
    refused(&[("METORIAL_SECRET_KEY", "hunter2"), CALLER], SECRET_KEY, "does not begin with metorial_sk_");
}

#[test]
fn everything_that_is_wrong_is_told_at_once_at_its_variable() {
    let faults = alone(&[
        ("METORIAL_SECRET_KEY", "metorial_pk_hunter2"),
        ("METORIAL_PUBLISHABLE_KEYS", "metorial_pk_a,metorial_sk_hunter2"),
        ("METORIAL_KEYLESS", "yes"),
        ("METORIAL_ENVIRONMENT", "staging"),
        ("METORIAL_ALLOW", "catalog,all,GET sessions"),
        ("METORIAL_ORIGINS", "app.example.com"),
        ("METORIAL_UPSTREAM", "https://user:hunter2@api.metorial.com"),
        ("METORIAL_PROXY_LISTEN", "8080"),
        ("METORIAL_PROXY_ADMIN", "localhost"),
        ("METORIAL_PROXY_BASE_PATH", "api"),
        ("METORIAL_PROXY_STORE", "redis://:hunter2@localhost"),
        ("METORIAL_PROXY_LOG", "a=b=c"),
        ("METORIAL_PROXY_LISTEM", "127.0.0.1:1"),
        ("METORIAL_PROXY_COLOUR", "blue"),
    ])
    .expect_err("awful");
    assert!(!show(&faults).contains("hunter2"), "{}", show(&faults));
    insta::assert_snapshot!(show(&faults));
    insta::assert_snapshot!("nothing_is_set", show(&alone(&[]).expect_err("nothing")));
}

#[test]
fn keyless_is_for_loopback() {
    let set = [SECRET, ("METORIAL_KEYLESS", "true"), ("METORIAL_PROXY_LISTEN", "0.0.0.0:8080")];
    refused(&set, KEYLESS, "anyone who reaches 0.0.0.0:8080");
}

#[test]
fn a_variable_that_is_not_text_is_refused() {
    let mut env = variables(&[SECRET, CALLER]);
    env.insert("METORIAL_UPSTREAM".into(), std::ffi::OsString::from_vec(vec![0xff]));
    let faults = load(&Sources { file: None, env: &env }).expect_err("not UTF-8");
    assert!(fault_at(&faults, "METORIAL_UPSTREAM").contains("is not UTF-8"));
    env.insert("METORIAL_UPSTREAM".into(), "".into());
    env.insert("METORIAL_SECRET_KEY".into(), std::ffi::OsString::from_vec(vec![0xff]));
    let faults = load(&Sources { file: None, env: &env }).expect_err("not UTF-8");
    assert!(fault_at(&faults, "METORIAL_SECRET_KEY").contains("is not UTF-8"));
}

#[test]
fn a_mistyped_variable_is_found() {
    refused(
        &[SECRET, CALLER, ("METORIAL_PROXY_BASEPATH", "/a")],
        "METORIAL_PROXY_BASEPATH",
        "did you mean METORIAL_PROXY_BASE_PATH?",
    );
    refused(
        &[SECRET, CALLER, ("METORIAL_PROXY_WORKERS", "1")],
        "METORIAL_PROXY_WORKERS",
        "no variable of this proxy",
    );
    let loaded = ok(&[SECRET, CALLER, ("METORIAL_ORIGIN", "https://a.example")]);
    assert!(fault_at(&loaded.warnings, "METORIAL_ORIGIN").contains("did you mean METORIAL_ORIGINS?"));
}

#[test]
fn what_kubernetes_sets_for_a_service_of_our_name_is_passed_over() {
    let loaded = ok(&[
        SECRET,
        CALLER,
        ("METORIAL_PROXY_SERVICE_HOST", "10.0.0.1"),
        ("METORIAL_PROXY_SERVICE_PORT", "80"),
        ("METORIAL_PROXY_SERVICE_PORT_HTTP", "80"),
        ("METORIAL_PROXY_PORT", "tcp://10.0.0.1:80"),
        ("METORIAL_PROXY_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("METORIAL_PROXY_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("METORIAL_PROXY_ADMIN_PORT_9090_TCP_PROTO", "tcp"),
        ("METORIAL_MOCK_SERVICE_HOST", "10.0.0.2"),
    ]);
    assert_eq!(show(&loaded.warnings), "");
    refused(
        &[SECRET, CALLER, ("METORIAL_PROXY_PORT", "8080")],
        "METORIAL_PROXY_PORT",
        "no variable of this proxy",
    );
}

#[test]
fn with_a_file_some_variables_override_it_and_the_others_are_only_warned_about() {
    let more = "[server]\nlisten = [\"127.0.0.1:1\"]\n[upstream]\nurl = \"https://file.example\"\n[telemetry]\nlog = \"warn\"";
    let loaded = with_file(
        more,
        &[
            ("METORIAL_UPSTREAM", "https://variable.example"),
            ("METORIAL_PROXY_LISTEN", "127.0.0.1:2"),
            ("METORIAL_PROXY_ADMIN", "127.0.0.1:3"),
            ("METORIAL_PROXY_BASE_PATH", "/x"),
            ("METORIAL_PROXY_LOG", ""),
            SECRET,
            CALLER,
        ],
    )
    .expect("loads");
    let config = loaded.config;
    assert_eq!(config.upstream.authority, "variable.example");
    assert_eq!((config.server.listen[0].port(), config.server.admin.port()), (2, 3));
    assert_eq!((config.server.base_path.as_str(), config.telemetry.log.as_str()), ("/x", "warn"));
    assert_eq!(config.environments[0].secret_key.expose(), "metorial_sk_one");
    let warned: Vec<_> = loaded.warnings.iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(warned, [PUBLISHABLE_KEYS, SECRET_KEY]);

    let faults = with_file("", &[("METORIAL_PROXY_LISTEN", "127.0.0.1:2,nowhere")]).expect_err("no address");
    fault_at(&faults, "METORIAL_PROXY_LISTEN[1]");
    let faults = with_file("[server]\nadmin = \"nowhere\"", &[]).expect_err("no address");
    fault_at(&faults, "server.admin");
    let faults = with_file("keyless = true\npublishable_keys = [\"pk\"]", &[]).expect_err("no key");
    fault_at(&faults, "environments[0].publishable_keys[0]");
}

#[test]
fn a_variable_that_the_file_refers_to_is_not_warned_about() {
    let token = "[server]\nadmin_token = { env = \"METORIAL_PROXY_TOKEN\" }";
    let loaded = with_file(token, &[("METORIAL_PROXY_TOKEN", "t0ken")]).expect("loads");
    assert_eq!(show(&loaded.warnings), "");
    let faults = with_file("", &[("METORIAL_PROXY_TOKEN", "t0ken")]).expect_err("unknown");
    fault_at(&faults, "METORIAL_PROXY_TOKEN");
}

#[test]
fn a_variable_can_name_the_file() {
    let set = variables(&[("METORIAL_PROXY_CONFIG", "/nonexistent/proxy.toml"), SECRET, CALLER]);
    let faults = load(&Sources { file: None, env: &set }).expect_err("missing");
    fault_at(&faults, "/nonexistent/proxy.toml");
    let faults =
        load(&Sources { file: Some("/nonexistent/other.toml".as_ref()), env: &set }).expect_err("missing");
    fault_at(&faults, "/nonexistent/other.toml");
}
