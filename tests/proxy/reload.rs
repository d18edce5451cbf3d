//! Another configuration, secret or certificate without a restart: nobody notices but by what it says.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metorial_proxy::domain::key::SecretKey;
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::mock::{Fault, Options, Reset};
use metorial_proxy::time::sleep;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::Authority;
use crate::client::{Connection, Reply, bearing, connect, request, try_send};
use crate::harness::{KEY, Mock, OTHER_KEY, OTHER_SECRET, SECRET, scratch, upstream};
use crate::process::Process;

/// A folder of the test's own with a configuration and what it names.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static FOLDERS: AtomicU64 = AtomicU64::new(0);
        let at = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = scratch(&format!("reload-{}-{at}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// In one step, as careful writers do.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let new = self.at(&format!("{name}.new"));
        fs::write(&new, text).expect("written");
        fs::rename(new, self.at(name)).expect("in its place");
        self.at(name)
    }

    /// The configuration of a proxy in front of `upstream`, with these lines in `[server]` and in its one environment.
    fn configure(&self, upstream: &str, server: &str, environment: &str) -> PathBuf {
        let ample = "egress_limit = { requests = 100000, window = \"1s\" }";
        let server = format!("{server}\n[upstream]\nurl = \"{upstream}\"\n{ample}");
        self.write("proxy.toml", &self.text(&server, environment))
    }

    fn text(&self, server: &str, environment: &str) -> String {
        let mut environment = environment.to_owned();
        for (key, line) in [
            ("name = ", "name = \"main\"".to_owned()),
            ("publishable_keys", format!("publishable_keys = [\"{KEY}\"]")),
        ] {
            if !environment.contains(key) {
                environment = format!("{environment}\n{line}");
            }
        }
        let secret = self.at("secret-key");
        format!(
            r#"
            [server]
            admin = "127.0.0.1:0"
            drain = {{ settle = "0s", deadline = "5s" }}
            {server}
            [cache]
            ttl = "10m"
            [[environments]]
            secret_key = {{ file = {secret:?} }}
            {environment}
            "#
        )
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("removed");
    }
}

const LISTEN: &str = "listen = [\"127.0.0.1:0\"]\nworkers = 2";

/// A proxy that runs as a process of its own.
struct Live {
    process: Process,
    proxy: SocketAddr,
    admin: SocketAddr,
}

impl Live {
    fn start(config: &Path) -> Self {
        Self::with(&["run", "--config", config.to_str().expect("text")], &[])
    }

    fn with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut process = Process::start(arguments, variables).expect("a process");
        let mut address = |listener| {
            let url = process.url(listener).unwrap_or_else(|error| panic!("{error}"));
            url.trim_start_matches("http://").parse::<SocketAddr>().expect("an address")
        };
        let (mut proxy, admin) = (address("proxy"), address("admin"));
        if proxy.ip().is_unspecified() {
            proxy.set_ip([127, 0, 0, 1].into());
        }
        Self { process, proxy, admin }
    }

    async fn get(&self, target: &str) -> Reply {
        self.get_as(KEY, target).await
    }

    async fn get_as(&self, key: &str, target: &str) -> Reply {
        try_send(self.proxy, bearing(key, target)).await.expect("an answer")
    }

    async fn admin(&self, target: &str) -> Reply {
        let host = self.admin.to_string();
        try_send(self.admin, request("GET", target, &[("host", &host)], "")).await.expect("an answer")
    }

    async fn status(&self) -> Value {
        self.admin("/status").await.json()
    }

    async fn reloads(&self, result: &str) -> u64 {
        let metrics = self.admin("/metrics").await;
        let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
        let name = format!("metorial_proxy_config_reloads_total{{result=\"{result}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name)).expect("it is counted");
        line.parse().expect("a number")
    }

    /// Waits until so many reloads ended so.
    async fn reloaded(&self, result: &str, times: u64) {
        for _ in 0..4000 {
            if self.reloads(result).await >= times {
                return;
            }
            sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("no reload was {result}:\n{}", self.process.log());
    }

    async fn left(&self) -> u64 {
        self.status().await["environments"][0]["remaining"].as_u64().expect("a number")
    }

    fn hang_up(&self) {
        self.process.signal("HUP");
    }

    /// Ends it: all that it wrote, in which there is no key.
    fn end(self) -> String {
        self.process.signal("TERM");
        let (code, log) = self.process.end();
        assert_eq!(code, Some(0), "{log}");
        for hidden in [&SECRET[12..], &OTHER_SECRET[12..], KEY, OTHER_KEY] {
            assert!(!log.contains(hidden), "{log}");
        }
        log
    }
}

/// The last four characters of each key that was sent, and the path.
fn sent(mock: &Mock) -> Vec<(String, String)> {
    let told = mock.handle.requests().into_iter();
    told.map(|seen| {
        let key = seen.headers.iter().find(|(name, _)| name == "authorization");
        (key.map(|(_, key)| key.replace("Bearer …", "")).unwrap_or_default(), seen.target)
    })
    .collect()
}

#[tokio::test]
async fn a_signal_has_rules_keys_names_and_limits_changed_and_nothing_forgotten() {
    let (mock, folder) = (Mock::start().await, Folder::new());
    folder.write("secret-key", SECRET);
    let server = format!("{LISTEN}\n[clients]\nlimit = {{ requests = 5, window = \"10m\" }}");
    let config = folder.configure(&mock.url(), &server, "limit = { requests = 20, window = \"10m\" }");
    let live = Live::start(&config);
    assert_eq!(live.get("/providers").await.status, 200);
    for _ in 0..2 {
        assert_eq!(live.get("/providers/x").await.status, 404);
    }
    assert_eq!(live.get("/agents").await.status, 403);
    assert_eq!(live.left().await, 17);
    let pages = live.status().await["cache"]["entries"].clone();

    let environment = format!(
        "name = \"renamed\"\nlimit = {{ requests = 10, window = \"5m\" }}\nallow = [\"catalog\", \"GET /agents\"]\n\
         publishable_keys = [\"{OTHER_KEY}\"]"
    );
    let server = format!("{LISTEN}\n[clients]\nlimit = {{ requests = 10, window = \"10m\" }}");
    folder.configure(&mock.url(), &server, &environment);
    live.hang_up();
    live.reloaded("ok", 1).await;
    let status = live.status().await;
    let budget = &status["environments"][0];
    assert_eq!(
        (&budget["name"], &budget["limit"], &budget["remaining"]),
        (&json!("renamed"), &json!(10), &json!(7))
    );
    assert_eq!(status["cache"]["entries"], pages);
    assert_eq!((&status["reload"]["ok"], &status["reload"]["errors"]), (&json!(true), &json!([])));
    assert_eq!(live.get_as(OTHER_KEY, "/agents").await.status, 200);
    assert_eq!(live.left().await, 6);
    // Four fifths of the client's own bucket were gone.
    assert_eq!(live.get_as(OTHER_KEY, "/agents").await.status, 200);
    assert_eq!(live.get_as(OTHER_KEY, "/providers").await.refusal(), (429, "rate_limit_exceeded".into()));
    live.end();
}

#[tokio::test]
async fn a_page_stays_through_a_reload_and_never_becomes_that_of_another_key_or_upstream() {
    let (mock, other, folder) = (Mock::start().await, Mock::start().await, Folder::new());
    folder.write("secret-key", SECRET);
    let live = Live::start(&folder.configure(&mock.url(), LISTEN, "budget = \"one\""));
    let status = async || live.get("/providers").await.field("cache-status").to_owned();
    assert!(status().await.contains("stored"));
    folder.configure(&mock.url(), LISTEN, "budget = \"one\"\norigins = [\"https://app.example\"]");
    live.reloaded("ok", 1).await;
    assert!(status().await.contains("hit"), "whatever else changed");
    folder.write("secret-key", OTHER_SECRET);
    live.reloaded("ok", 2).await;
    assert!(status().await.contains("stored"), "the other key may be another instance's");
    folder.configure(&other.url(), LISTEN, "budget = \"one\"");
    live.reloaded("ok", 3).await;
    assert!(status().await.contains("stored"));
    assert_eq!((mock.received(), other.received()), (3, 1), "and one of them was to prove the key");
    assert_eq!(live.left().await, 100 - 4);
    live.end();
}

#[tokio::test]
async fn a_file_with_errors_changes_nothing_and_says_where_they_are() {
    let (mock, folder) = (Mock::start().await, Folder::new());
    folder.write("secret-key", SECRET);
    let live = Live::start(&folder.configure(&mock.url(), LISTEN, ""));
    assert_eq!(live.get("/providers").await.status, 200);
    folder.configure(&mock.url(), LISTEN, "allow = [\"everything\"]\ncolour = \"red\"");
    live.reloaded("failed", 1).await;
    let status = live.status().await;
    assert_eq!(status["reload"]["ok"], false);
    let errors = status["reload"]["errors"].to_string();
    for key in ["environments[0].allow[0]", "environments[0].colour"] {
        assert!(errors.contains(key), "{errors}");
    }
    assert_eq!(live.get("/providers").await.status, 200);
    assert_eq!(live.admin("/readyz").await.status, 200);
    folder.write("proxy.toml", "this is no TOML");
    live.reloaded("failed", 2).await;
    // The cure may be in a file that was not there.
    let missing = folder.at("missing");
    let names_it = format!("next_secret_key = {{ file = \"{}\" }}", missing.display());
    folder.configure(&mock.url(), LISTEN, &names_it);
    live.reloaded("failed", 3).await;
    assert!(
        live.status().await["reload"]["errors"][0].as_str().expect("text").contains("next_secret_key.file")
    );
    folder.write("missing", OTHER_SECRET);
    live.reloaded("ok", 1).await;
    let status = live.status().await;
    assert_eq!((&status["reload"]["ok"], &status["reload"]["errors"]), (&json!(true), &json!([])));
    assert_eq!(status["secrets"].as_array().map(Vec::len), Some(2));
    let log = live.end();
    let line = log.lines().find(|line| line.contains("environments[0].allow[0]")).expect("it is told");
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert!(line["cure"].is_string() && line["level"] == "ERROR", "{line}");
}

#[tokio::test]
async fn a_volume_that_kubernetes_swaps_brings_a_new_secret_which_is_proven_first() {
    let (mock, folder) = (Mock::start().await, Folder::new());
    let generation = |name: &str, secret: &str| {
        fs::create_dir(folder.at(name)).expect("a folder");
        fs::write(folder.at(name).join("secret-key"), secret).expect("written");
        symlink(name, folder.at("..data_tmp")).expect("a link");
        fs::rename(folder.at("..data_tmp"), folder.at("..data")).expect("swapped");
    };
    generation("..2026_01", SECRET);
    symlink("..data/secret-key", folder.at("secret-key")).expect("a link");
    let live = Live::start(&folder.configure(&mock.url(), LISTEN, "kind = \"production\""));
    assert_eq!(live.get("/providers/x").await.status, 404);
    for (at, secret, ending) in [("..2026_02", OTHER_SECRET, "OTHR"), ("..2026_03", SECRET, "SECR")] {
        let before = mock.received();
        generation(at, secret);
        live.reloaded("ok", before / 2 + 1).await;
        assert_eq!(live.get("/providers/x").await.status, 404);
        let asked = sent(&mock).split_off(usize::try_from(before).expect("few"));
        assert_eq!(asked, [(ending.into(), "/instance".into()), (ending.into(), "/providers/x".into())]);
        let status = live.status().await;
        assert_eq!(
            status["secrets"][0]["fingerprint"],
            SecretKey::parse(secret).expect("a key").fingerprint()
        );
        assert_eq!(
            status["environments"][0]["remaining"],
            5000 - mock.received(),
            "another key is no amnesty"
        );
    }
    live.end();
}

#[tokio::test]
async fn a_secret_that_upstream_refuses_does_not_replace_one_that_works() {
    let key = SecretKey::parse(SECRET).ok();
    let mock = Mock::with(Options { key, limit: Quota::PRODUCTION, ..Options::default() }).await;
    let folder = Folder::new();
    folder.write("secret-key", SECRET);
    let live = Live::start(&folder.configure(&mock.url(), LISTEN, ""));
    // Nothing of what comes with it is in force either.
    folder.write("other-key", OTHER_SECRET);
    let server = format!("{LISTEN}\n[upstream]\nurl = \"{}\"", mock.url());
    let allow = "allow = [\"catalog\", \"GET /agents\"]";
    folder.write("proxy.toml", &folder.text(&server, allow).replace("secret-key", "other-key"));
    live.reloaded("failed", 1).await;
    let status = live.status().await;
    let error = status["reload"]["errors"][0].as_str().expect("text");
    assert!(error.starts_with("environments[0].secret_key: upstream refused the new key "), "{error}");
    assert_eq!(status["upstream"]["credentials_ok"], true);
    assert_eq!((live.get("/providers/x").await.status, live.get("/agents").await.status), (404, 403));
    assert_eq!(
        sent(&mock),
        [("OTHR".into(), "/instance".into()), ("SECR".into(), "/providers/x".to_owned())]
    );
    folder.write("other-key", SECRET);
    live.reloaded("ok", 1).await;
    assert_eq!(live.get("/agents").await.status, 200);
    assert_eq!(mock.received(), 3, "what is known is not asked about");
    live.end();
}

#[tokio::test]
async fn a_secret_that_cannot_be_tried_is_tried_again_by_itself() {
    // An answer of the API's own would say how its count stands, and so that it took the key.
    let edge: BTreeMap<_, _> =
        ["limit", "remaining", "reset"].map(|name| (format!("ratelimit-{name}"), None)).into();
    for fault in [
        Fault { reset: Some(Reset::Before), ..Fault::default() },
        Fault { status: Some(503), headers: edge.clone(), ..Fault::default() },
        Fault { status: Some(429), headers: edge, ..Fault::default() },
    ] {
        let (mock, folder) = (Mock::start().await, Folder::new());
        folder.write("secret-key", SECRET);
        let live = Live::start(&folder.configure(&mock.url(), LISTEN, "kind = \"production\""));
        mock.fault(Fault { route: "GET /instance".into(), ..fault });
        folder.write("secret-key", OTHER_SECRET);
        live.reloaded("failed", 1).await;
        let error = live.status().await["reload"]["errors"][0].to_string();
        assert!(error.contains("could not be tried") && error.contains("by itself"), "{error}");
        live.reloaded("ok", 1).await;
        assert_eq!(live.get("/providers/x").await.status, 404);
        assert_eq!(sent(&mock).last().map(|(key, _)| key.as_str()), Some("OTHR"));
        live.end();
    }
}

#[tokio::test]
async fn no_request_fails_while_the_configuration_is_reloaded_under_load() {
    let (mock, folder) = (Mock::start().await, Folder::new());
    folder.write("secret-key", SECRET);
    let environment = |at: u64| {
        let keys = format!("publishable_keys = [\"{KEY}\", \"metorial_pk_number{at}\"]");
        format!("name = \"number{}\"\nkind = \"production\"\n{keys}", at.div_ceil(2) % 2)
    };
    let server = format!("{LISTEN}\n[clients]\nlimit = {{ requests = 100000, window = \"1s\" }}");
    let live = Live::start(&folder.configure(&mock.url(), &server, &environment(0)));
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for caller in 0..4 {
        let (over, answered, proxy) = (over.clone(), answered.clone(), live.proxy);
        callers.spawn(async move {
            let mut connection = match caller % 2 {
                0 => Connection::http1(connect(proxy).await).await,
                _ => Connection::http2(connect(proxy).await).await,
            };
            for at in 0u64.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // Pages and what is no page, over one connection and over new ones.
                let target = format!("/providers?limit=2&search={}", at / 3);
                let reply = connection.send(bearing(KEY, &target)).await.expect("an answer");
                assert_eq!(reply.status, 200, "{reply:?}");
                let reply = try_send(proxy, bearing(KEY, "/providers/x")).await.expect("an answer");
                assert_eq!(reply.status, 404, "{reply:?}");
                answered.fetch_add(2, Ordering::Relaxed);
                // Within the budgets, however fast the machine is.
                sleep(std::time::Duration::from_millis(40)).await;
            }
        });
    }
    for at in 1..=6 {
        let before = answered.load(Ordering::Relaxed);
        // By turns the name and the secret change.
        match at % 2 {
            0 => folder.write("secret-key", if at % 4 == 0 { SECRET } else { OTHER_SECRET }),
            _ => folder.configure(&mock.url(), &server, &environment(at)),
        };
        live.reloaded("ok", at).await;
        while answered.load(Ordering::Relaxed) < before + 50 {
            assert!(callers.try_join_next().is_none(), "a caller has failed");
            sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.expect("nothing failed");
    }
    assert_eq!(live.reloads("failed").await, 0);
    assert_eq!(live.left().await, 5000 - mock.received(), "nothing was forgotten, nothing counted twice");
    live.end();
}

async fn handshake(proxy: SocketAddr, client: &TlsConnector) -> TlsStream<TcpStream> {
    let name = ServerName::try_from("proxy.test").expect("a name");
    client.connect(name, connect(proxy).await).await.expect("a handshake")
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

#[tokio::test]
async fn a_certificate_is_swapped_for_new_connections_and_old_ones_go_on() {
    let (mock, folder, authority) = (Mock::start().await, Folder::new(), Authority::new());
    let (first, second) = (authority.sign("proxy.test"), authority.sign("proxy.test"));
    folder.write("secret-key", SECRET);
    let (certificate, key) =
        (folder.write("tls.crt", &first.certificate), folder.write("tls.key", &first.key));
    let tls = format!("{LISTEN}\ntls = {{ certificate = {certificate:?}, private_key = {key:?} }}");
    let live = Live::start(&folder.configure(&mock.url(), &tls, ""));
    let client = authority.client(&["http/1.1"]);
    let stream = handshake(live.proxy, &client).await;
    let before = shown(&stream);
    let mut old = Connection::http1(stream).await;
    assert_eq!(old.send(bearing(KEY, "/providers")).await.expect("an answer").status, 200);

    folder.write("tls.crt", &second.certificate);
    live.reloaded("failed", 1).await;
    assert!(live.status().await["reload"]["errors"].to_string().contains("do not fit"));
    assert_eq!(shown(&handshake(live.proxy, &client).await), before, "one without the other is nothing");
    folder.write("tls.key", &second.key);
    live.reloaded("ok", 1).await;
    let stream = handshake(live.proxy, &client).await;
    assert_ne!(shown(&stream), before);
    let mut new = Connection::http1(stream).await;
    for connection in [&mut old, &mut new] {
        assert_eq!(connection.send(bearing(KEY, "/providers")).await.expect("an answer").status, 200);
    }
    live.end();
}

#[tokio::test]
async fn connections_to_the_api_stay_until_another_certificate_authority_or_setting_asks_for_others() {
    let (folder, authority) = (Folder::new(), Authority::new());
    folder.write("secret-key", SECRET);
    let ca = folder.write("ca.pem", &Authority::new().pem());
    let (url, connections) = upstream(Some(authority.sign("127.0.0.1").server(&["http/1.1"]))).await;
    let server = |upstream: &str| {
        format!(
            "listen = [\"127.0.0.1:0\"]\nworkers = 1\n[upstream]\nurl = \"{url}\"\nca_certificate = {ca:?}\n{upstream}"
        )
    };
    let live = Live::start(&folder.write("proxy.toml", &folder.text(&server(""), "")));
    assert_eq!(
        live.get("/providers/x").await.field("proxy-status"),
        "metorial-proxy; error=tls_certificate_error; details=\"certificate is from an unknown issuer\""
    );
    folder.write("ca.pem", &authority.pem());
    live.reloaded("ok", 1).await;
    let made = || connections.load(Ordering::Relaxed);
    assert_eq!(live.get("/providers/x").await.status, 200);
    let before = made();
    folder.write("proxy.toml", &folder.text(&server(""), "origins = [\"https://app.example\"]"));
    live.reloaded("ok", 2).await;
    assert_eq!((live.get("/providers/x").await.status, made()), (200, before));
    folder.write("proxy.toml", &folder.text(&server("idle_timeout = \"14s\""), ""));
    live.reloaded("ok", 3).await;
    assert_eq!((live.get("/providers/x").await.status, made()), (200, before + 1));
    folder.write("proxy.toml", &folder.text(&server(""), &format!("publishable_keys = [\"{OTHER_KEY}\"]")));
    live.reloaded("ok", 4).await;
    assert_eq!(live.get("/providers/x").await.status, 401, "a key that is gone opens nothing");
    assert_eq!(live.get_as(OTHER_KEY, "/providers/x").await.status, 200);
    live.end();
}

#[tokio::test]
async fn what_only_a_restart_changes_is_named_and_the_rest_is_in_force() {
    let (mock, folder) = (Mock::start().await, Folder::new());
    folder.write("secret-key", SECRET);
    let open = "listen = [\"0.0.0.0:0\"]\nworkers = 2";
    let live = Live::start(&folder.configure(&mock.url(), open, ""));
    let store = "[store]\nurl = \"redis://127.0.0.1:1\"";
    let other = format!("listen = [\"127.0.0.1:0\"]\nworkers = 3\nhosts = [\"other.test\"]\n{store}");
    folder.configure(&mock.url(), &other, "");
    live.reloaded("ok", 1).await;
    let status = live.status().await;
    assert_eq!(status["reload"]["needs_restart"], json!(["server.listen", "server.workers", "store.url"]));
    assert_eq!(status["store"]["kind"], "memory");
    assert_eq!(live.get("/providers").await.status, 403, "the host is another");

    // In the file every listener is loopback. In force none is.
    folder.configure(&mock.url(), "listen = [\"127.0.0.1:0\"]", "keyless = true\npublishable_keys = []");
    live.reloaded("failed", 1).await;
    let errors = live.status().await["reload"]["errors"].to_string();
    assert!(errors.contains("environments[0].keyless: would let anyone who reaches 0.0.0.0:0"), "{errors}");
    let ask = request("GET", "/providers", &[("host", "other.test")], "");
    assert_eq!(try_send(live.proxy, ask).await.expect("an answer").status, 401);
    folder.configure(&mock.url(), open, "");
    live.reloaded("ok", 2).await;
    assert_eq!(live.status().await["reload"]["needs_restart"], json!([]));
    let log = live.end();
    assert!(log.contains("\"server.workers\""), "{log}");
}

#[tokio::test]
async fn limits_of_requests_and_the_log_change_for_connections_that_are_open() {
    let (mock, folder) = (Mock::start().await, Folder::new());
    folder.write("secret-key", SECRET);
    let allow = "allow = [\"catalog\", \"POST /provider-deployments\"]";
    let live = Live::start(&folder.configure(&mock.url(), LISTEN, allow));
    let mut connection = Connection::http1(connect(live.proxy).await).await;
    let mut post = async || {
        let bearer = format!("Bearer {KEY}");
        let fields = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let ask = request("POST", "/provider-deployments", &fields, "{\"name\": \"0123456789\"}");
        connection.send(ask).await.expect("an answer").status
    };
    assert_eq!(post().await, 200);
    let rest = format!("{LISTEN}\nmax_request_body = \"10B\"\n[telemetry]\nlog = \"warn\"");
    folder.configure(&mock.url(), &rest, allow);
    live.reloaded("ok", 1).await;
    let requests = |log: &str| log.lines().filter(|line| line.contains("/provider-deployments")).count();
    assert_eq!(post().await, 413);
    let log = live.end();
    assert_eq!(requests(&log), 1, "{log}");
}

#[tokio::test]
async fn without_a_configuration_file_the_file_of_the_secret_is_read_again() {
    let (mock, folder) = (Mock::start().await, Folder::new());
    let secret = folder.write("secret-key", SECRET);
    let variables = [
        ("METORIAL_SECRET_KEY_FILE", secret.to_str().expect("text")),
        ("METORIAL_PUBLISHABLE_KEYS", KEY),
        ("METORIAL_UPSTREAM", &mock.url()),
        ("METORIAL_PROXY_LISTEN", "127.0.0.1:0"),
        ("METORIAL_PROXY_ADMIN", "127.0.0.1:0"),
    ];
    let live = Live::with(&[], &variables);
    mock.fault(Fault { route: "GET /instance".into(), status: Some(401), ..Fault::default() });
    folder.write("secret-key", OTHER_SECRET);
    live.reloaded("failed", 1).await;
    let error = live.status().await["reload"]["errors"][0].to_string();
    assert!(error.contains("METORIAL_SECRET_KEY_FILE: upstream refused"), "{error}");
    live.hang_up();
    live.reloaded("ok", 1).await;
    assert_eq!(live.get("/providers").await.status, 200);
    assert_eq!(sent(&mock).last().map(|(key, _)| key.as_str()), Some("OTHR"));
    live.end();
}
