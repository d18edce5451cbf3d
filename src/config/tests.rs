//! The configuration as a whole: files as they are shipped, and lists of faults as an operator sees them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use serde::Serialize;

use super::value::keys;
use super::{Fault, Loaded, Sources, Variables, load, raw};
use crate::domain::environment::Environment;

mod any_input;
mod environments;
mod sections;
mod server;

/// A file that is gone after the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(content: impl AsRef<[u8]>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("metorial-proxy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).expect("a temporary file");
        Self(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

pub(super) fn variables(variables: &[(&str, &str)]) -> Variables {
    variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// Loads `text` as a file, with three secrets in the environment.
fn load_text(text: &str, more: &[(&str, &str)]) -> Result<Loaded, Vec<Fault>> {
    let file = TempFile::new(text);
    let secrets = [
        ("SECRET", "metorial_sk_one"),
        ("OTHER_SECRET", "metorial_sk_two"),
        ("THIRD_SECRET", "metorial_sk_three"),
    ];
    let mut env = variables(&secrets);
    env.extend(variables(more));
    load(&Sources { file: Some(&file.0), env: &env }).map_err(|mut faults| {
        faults.iter_mut().for_each(|fault| fault.path = fault.path.replace(file.name(), "FILE"));
        faults
    })
}

/// A file with one environment and nothing else, and `more` after it: keys of the environment, or further sections.
pub(super) fn minimal(more: &str) -> String {
    let environment = r#"
        [[environments]]
        name = "production"
        kind = "production"
        secret_key = { env = "SECRET" }
    "#;
    let keys = r#"publishable_keys = ["metorial_pk_replace_me"]"#;
    let keys = if more.contains("publishable_keys") || more.contains("keyless = true") { "" } else { keys };
    format!("{environment}{keys}\n{more}")
}

#[track_caller]
pub(super) fn ok(text: &str) -> Loaded {
    load_text(text, &[]).unwrap_or_else(|faults| panic!("{text}\n{}", show(&faults)))
}

#[track_caller]
pub(super) fn errors(text: &str) -> Vec<Fault> {
    load_text(text, &[]).err().unwrap_or_else(|| panic!("is accepted:\n{text}"))
}

#[track_caller]
pub(super) fn fault_at(faults: &[Fault], path: &str) -> String {
    let at: Vec<_> = faults.iter().filter(|fault| fault.path == path).collect();
    match at[..] {
        [fault] => fault.to_string(),
        _ => panic!("{} faults at {path}, of:\n{}", at.len(), show(faults)),
    }
}

pub(super) fn show(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("{fault}\n")).collect()
}

pub(super) fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    std::fs::read_to_string(path).expect("a shipped file")
}

/// Loads a shipped file, with a secret in the place of the one that is not here.
#[track_caller]
fn load_shipped(name: &str) -> Loaded {
    let secret = TempFile::new("metorial_sk_one\n");
    let text = shipped(name).replace("/run/secrets/metorial/secret-key", secret.name());
    assert!(text.contains(secret.name()), "{name}");
    ok(&text)
}

#[test]
fn the_reference_shows_every_key_that_works_with_its_default() {
    let reference = load_shipped("metorial-proxy.toml");
    let minimal = ok(&minimal(""));
    assert_eq!(format!("{:#?}", reference.config), format!("{:#?}", minimal.config));
    let opened = |loaded: &Loaded| loaded.config.environments[0].access.opened();
    assert_eq!(opened(&reference), opened(&minimal));
    assert_eq!(show(&reference.warnings), "");

    let text = shipped("metorial-proxy.toml");
    let shown = |key: &str| [" = ", "]"].iter().any(|after| text.contains(&format!("{key}{after}")));
    for (section, key, _) in every_key() {
        assert!(shown(&key), "{section}{key} is not in the reference");
    }
}

#[test]
fn the_examples_load_without_a_warning() {
    let gateway = load_shipped("gateway.toml");
    assert_eq!(show(&gateway.warnings), "");
    assert_eq!(gateway.config.environments[0].limit.requests, 5000);
    let sidecar = load_shipped("sidecar.toml");
    assert_eq!(show(&sidecar.warnings), "");
    assert_eq!(sidecar.config.server.hosts, ["localhost", "127.0.0.1", "[::1]"]);
    assert!(sidecar.config.server.drain.settle.is_zero());
    let sessions = load_shipped("sessions.toml");
    assert_eq!(show(&sessions.warnings), "");
    let [browsers, backend] = &sessions.config.environments[..] else { panic!("two environments") };
    assert_eq!(browsers.budget, backend.budget);
    let may = |of: &Environment, method: &Method, path| of.access.decide(method, path, "").is_ok();
    assert!(may(backend, &Method::POST, "/sessions") && !may(browsers, &Method::POST, "/sessions"));
    for of in [browsers, backend] {
        assert!(!may(of, &Method::GET, "/sessions") && !may(of, &Method::GET, "/sessions/ses_1"));
    }
    assert!(may(browsers, &Method::GET, "/providers") && !may(backend, &Method::GET, "/providers"));
}

/// Every key there is: the path of its section, its name, and a file in which it has the value `VALUE`.
pub(super) fn every_key() -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    let mut add = |section: &str, keys: Vec<String>, file: &dyn Fn(&str) -> String| {
        all.extend(keys.into_iter().map(|key| (section.to_owned(), key.clone(), file(&key))));
    };
    fn of<T: Serialize + Default>() -> Vec<String> {
        keys::<T>()
    }
    let section = |name: &'static str| move |key: &str| minimal(&format!("[{name}]\n{key} = VALUE"));
    add("", of::<raw::File>(), &|key| format!("{key} = VALUE"));
    add("server.", of::<raw::Server>(), &section("server"));
    add("server.tls.", of::<raw::Tls>(), &section("server.tls"));
    add("server.drain.", of::<raw::Drain>(), &section("server.drain"));
    add("clients.", of::<raw::Clients>(), &section("clients"));
    add("clients.limit.", of::<raw::Quota>(), &section("clients.limit"));
    add("upstream.", of::<raw::Upstream>(), &section("upstream"));
    add("upstream.egress_limit.", of::<raw::Quota>(), &section("upstream.egress_limit"));
    add("upstream.retry.", of::<raw::Retry>(), &section("upstream.retry"));
    add("environments[0].", of::<raw::Environment>(), &|key| format!("[[environments]]\n{key} = VALUE"));
    add("environments[0].limit.", of::<raw::Quota>(), &section("environments.limit"));
    add("environments[0].secret_key.", of::<raw::SecretSource>(), &|key| {
        format!("[[environments]]\nsecret_key = {{ {key} = VALUE }}")
    });
    add("environments[0].rules[0].", of::<raw::Rule>(), &|key| {
        minimal(&format!("[[environments.rules]]\n{key} = VALUE"))
    });
    add("cache.", of::<raw::Cache>(), &section("cache"));
    add("store.", of::<raw::Store>(), &section("store"));
    add("telemetry.", of::<raw::Telemetry>(), &section("telemetry"));
    all
}

#[test]
fn a_wrong_type_and_an_unknown_key_are_told_at_their_own_path() {
    for (section, key, file) in every_key() {
        // No key takes this.
        let wrong = file.replace("VALUE", "nan");
        fault_at(&errors(&wrong), &format!("{section}{key}"));

        let typo = format!("{key}x");
        let unknown = file.replace(&format!("{key} = VALUE"), &format!("{typo} = nan"));
        let fault = fault_at(&errors(&unknown), &format!("{section}{typo}"));
        assert!(fault.ends_with(&format!("is no known key; did you mean {key}?")), "{fault}");
    }
    fault_at(&errors(&minimal("[clients]\n\"a\\nb\" = 1")), "clients.\"a\\nb\"");
    let fault = fault_at(&errors(&minimal("[clients]\nbanana = 1")), "clients.banana");
    assert!(fault.contains("use one of: ipv6_prefix, limit, max_retry_after, max_tracked"), "{fault}");
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let awful = r#"
        lisen = 1
        [server]
        listen = ["localhost:8080", "0.0.0.0:8080", 3]
        admin = "0.0.0.0:8080"
        base_path = "/api/"
        workers = -1
        tls = { certificate = "/nonexistent/tls.crt" }
        trusted_proxies = ["10.0.0.0/33"]
        client_ip_header = "x-real-ip"
        hosts = ["example.com:443"]
        max_uri = 8192
        idle_timeout = 75
        drain = { settle = "1m", deadline = "27s", settel = "1s" }
        admin_token = "hunter2"
        proxy_protocol = true
        [clients]
        limit = 1000
        ipv6_prefix = 128
        [upstream]
        url = "https://user:hunter2@api.metorial.com"
        forward_headers = ["Authorization", "x tenant"]
        http2 = "alway"
        [upstream.retry]
        budget = 2
        [[environments]]
        name = "a b"
        kind = "prod"
        secret_key = "metorial_sk_hunter2"
        publishable_keys = ["metorial_sk_hunter2", "nonsense"]
        origins = ["https://app.example.com/"]
        versions = []
        allow = ["catalogue", "all", "GET no-slash", "FETCH /x"]
        algorithm = "leaky-bucket"
        [[environments.rules]]
        methods = ["get"]
        invalidates = ["provider-configs"]
        [[environments]]
        keyless = true
        secret_key = { file = "/nonexistent/secret" }
        [cache]
        max_page = "100MiB"
        [store]
        url = "redis://:hunter2@localhost"
        [telemetry]
        log = ""
        otlp = "http://user:hunter2@127.0.0.1:4318"
    "#;
    let faults = show(&errors(awful));
    assert!(!faults.contains("hunter2"), "{faults}");
    insta::assert_snapshot!(faults);
}

#[test]
fn a_syntax_error_is_told_by_line_and_column_and_never_quoted() {
    let broken = |text: &str| show(&errors(text));
    assert_eq!(
        broken("[server]\nadmin = \"é\" metorial_sk_hunter2\n"),
        "FILE:2:13: is no TOML: unexpected key or value, expected newline, `#`; correct the syntax (https://toml.io)\n"
    );
    for text in [
        "secret_key = metorial_sk_hunter2",
        "secret_key = \"metorial_sk_hunter2",
        "secret_key = 'metorial_sk_hunter2\n'",
        "metorial_sk_hunter2",
        "a = \"hunter2\"\na = \"hunter2\"",
        "a.hunter2.b = 1\na.hunter2 = 2",
        "a = \"\\hunter2\"",
    ] {
        let fault = broken(text);
        assert!(fault.starts_with("FILE:") && !fault.contains("hunter2"), "{fault}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_told_by_name() {
    let env = Variables::new();
    let missing =
        load(&Sources { file: Some(Path::new("/nonexistent/proxy.toml")), env: &env }).expect_err("missing");
    assert_eq!(
        show(&missing),
        "/nonexistent/proxy.toml: the file \"/nonexistent/proxy.toml\" cannot be read (entity not found); create it, or correct the path\n"
    );
    let binary = TempFile::new([0xff, 0xfe]);
    let faults = load(&Sources { file: Some(&binary.0), env: &env }).expect_err("binary");
    assert!(faults[0].message.contains("is not UTF-8"), "{}", show(&faults));
    let faults = load(&Sources { file: Some(&std::env::temp_dir()), env: &env }).expect_err("a directory");
    assert!(faults[0].message.contains("is a directory"), "{}", show(&faults));
}

#[test]
fn every_file_it_depends_on_is_named() {
    let files = ["a", "b", "c", "d"].map(TempFile::new);
    let [certificate, private_key, ca, token] = files.each_ref().map(TempFile::name);
    let loaded = ok(&minimal(&format!(
        "[server]\nadmin_token = {{ file = {token:?} }}\n\
         tls = {{ certificate = {certificate:?}, private_key = {private_key:?} }}\n\
         [upstream]\nca_certificate = {ca:?}"
    )));
    let expected = [token, certificate, private_key, ca].map(PathBuf::from);
    assert_eq!(loaded.files[1..], expected);
}
