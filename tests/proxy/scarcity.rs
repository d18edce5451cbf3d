//! A machine that has run out of something: it is said, nobody who is there already suffers, and it heals by itself.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bad::{Act, BadUpstream, write};
use crate::client::{Connection, Reply, bearing, connect, request, try_send};
use crate::harness::{KEY, Mock, Proxy, SECRET, eventually, scratch};
use crate::process::{Process, binary, listener};

/// A configuration file of the test's own, in front of `upstream`.
fn file(name: &str, upstream: &str, toml: &str) -> PathBuf {
    let file = scratch(&format!("{}-{name}.toml", std::process::id()));
    let text = format!(
        r#"
        {toml}
        server.listen = ["127.0.0.1:0"]
        server.admin = "127.0.0.1:0"
        server.workers = 1
        server.drain = {{ settle = "0s", deadline = "5s" }}
        upstream.url = "{upstream}"
        upstream.retry.max_attempts = 1
        [[environments]]
        name = "main"
        kind = "production"
        secret_key = {{ env = "METORIAL_SECRET_KEY" }}
        publishable_keys = ["{KEY}"]
        "#
    );
    fs::write(&file, text).expect("written");
    file
}

fn address(process: &mut Process, listener: &str) -> SocketAddr {
    let url = process.url(listener).unwrap_or_else(|error| panic!("{error}"));
    url.trim_start_matches("http://").parse().expect("an address")
}

async fn get(connection: &mut Connection, target: &str) -> Reply {
    connection.send(bearing(KEY, target)).await.expect("an answer")
}

async fn said(process: &Process, what: &str) {
    eventually(what, || process.log().contains(what)).await;
}

#[tokio::test]
async fn of_five_times_what_may_be_in_flight_so_many_are_served_and_the_others_are_told_at_once() {
    const PLACES: u64 = 8;
    let go = CancellationToken::new();
    let script = [
        Act::Read,
        Act::Until(go.clone()),
        write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        Act::Serve,
    ];
    let upstream = BadUpstream::start(move |_| script.to_vec()).await;
    let proxy = Proxy::start(
        &upstream.url,
        &format!(
            "server.max_in_flight = {PLACES}\nupstream.attempt_timeout = '1m'\nserver.request_timeout = '1m'"
        ),
    );
    let address = proxy.address;
    let served: Vec<_> = (0..PLACES)
        .map(|_| TaskTracker::new().spawn(try_send(address, bearing(KEY, "/providers/x"))))
        .collect();
    eventually("every place is taken", || upstream.heads() == PLACES).await;
    for _ in 0..4 * PLACES {
        let reply = proxy.get("/providers/x").await;
        assert_eq!((reply.refusal(), reply.field("retry-after")), ((503, "overloaded".to_owned()), "1"));
    }
    assert_eq!(upstream.heads(), PLACES);
    go.cancel();
    for served in served {
        assert_eq!(served.await.expect("no panic").expect("an answer").status, 200);
    }
    assert_eq!(proxy.get("/providers/x").await.body, "good", "and there is room again");
    let refused = "metorial_proxy_decisions_total{outcome=\"refused\",policy=\"admit\"} 32\n";
    let metrics = proxy.metrics().await;
    assert!(metrics.contains(refused), "{metrics}");
}

#[tokio::test]
async fn with_few_descriptors_callers_that_have_a_connection_are_served_and_the_others_turned_away() {
    let mock = Mock::start().await;
    let file = file("few", &mock.url(), "");
    // One limit for start and end: it cannot be raised.
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n 64; exec "$0" run --config "$1""#]).arg(binary()).arg(&file);
    command.env("METORIAL_SECRET_KEY", SECRET);
    let mut process = Process::spawn(command).expect("a process");
    let proxy = address(&mut process, "proxy");
    said(&process, "too few file descriptors for that many connections").await;
    let mut served = Connection::http1(connect(proxy).await).await;
    assert_eq!(get(&mut served, "/agents").await.status, 403);
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(connect(proxy).await);
    }
    said(&process, "as many connections as may be: new ones are closed").await;
    assert_eq!(get(&mut served, "/providers/x").await.status, 404, "by a connection upstream of its own");
    assert_eq!(get(&mut served, "/providers").await.status, 200);
    drop(crowd);
    said(&process, "there is room for connections again").await;
    assert_eq!(get(&mut Connection::http1(connect(proxy).await).await, "/providers").await.status, 200);
    assert_eq!(process.log().matches("as many connections as may be").count(), 1, "{}", process.log());
    fs::remove_file(file).expect("removed");
}

#[tokio::test]
async fn without_any_descriptor_requests_get_a_503_and_connections_wait_until_there_are_some() {
    let mock = Mock::start().await;
    let file = file("none", &mock.url(), "");
    let mut process = start(&file);
    let (proxy, admin) = (address(&mut process, "proxy"), address(&mut process, "admin"));
    let mut early = Connection::http1(connect(proxy).await).await;
    assert_eq!(get(&mut early, "/agents").await.status, 403);
    let pid = Pid::from_child(&process.child);
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(3), maximum }).expect("a limit");

    let reply = get(&mut early, "/providers/x").await;
    assert_eq!(reply.refusal(), (503, "overloaded".to_owned()));
    assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=connection_limit_reached");
    assert_eq!(reply.field("retry-after"), "1");
    assert_eq!(mock.received(), 0);
    let late = connect(proxy).await;
    said(&process, "accepting paused: new connections wait").await;

    prlimit(Some(pid), Resource::Nofile, before).expect("a limit");
    assert_eq!(get(&mut Connection::http1(late).await, "/providers").await.status, 200, "it has waited");
    assert_eq!(get(&mut early, "/providers/x").await.status, 404);
    said(&process, "accepting again").await;
    assert_eq!(process.log().matches("accepting paused").count(), 1, "{}", process.log());
    let status =
        try_send(admin, request("GET", "/status", &[("host", "localhost")], "")).await.expect("a status");
    assert_eq!(status.json()["upstream"]["healthy"], true, "the API had no part in it");
    fs::remove_file(file).expect("removed");
}

fn start(file: &Path) -> Process {
    let file = file.to_str().expect("text");
    Process::start(&["run", "--config", file], &[("METORIAL_SECRET_KEY", SECRET)]).expect("a process")
}

/// A process whose log is read only until it listens. Killed when dropped.
struct Unheard {
    child: Child,
    /// `None`: there is nobody at the other end.
    log: Option<BufReader<ChildStderr>>,
}

impl Drop for Unheard {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Unheard {
    fn start(file: &Path) -> Self {
        let mut command = Command::new(binary());
        command.args(["run", "--config"]).arg(file).env_clear().env("METORIAL_SECRET_KEY", SECRET);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let log = child.stderr.take().map(BufReader::new);
        Self { child, log }
    }

    fn address(&mut self, wanted: &str) -> SocketAddr {
        loop {
            let mut line = String::new();
            let log = self.log.as_mut().expect("it is read");
            assert!(log.read_line(&mut line).expect("a log") > 0, "it has ended");
            if let Some((_, address)) = listener(&line).filter(|(name, _)| name == wanted) {
                return address.parse().expect("an address");
            }
        }
    }
}

async fn lost(admin: SocketAddr) -> u64 {
    let metrics =
        try_send(admin, request("GET", "/metrics", &[("host", "localhost")], "")).await.expect("metrics");
    let text = String::from_utf8(metrics.body.to_vec()).expect("text");
    let lost = text.lines().find_map(|line| line.strip_prefix("metorial_proxy_log_lines_dropped_total "));
    lost.and_then(|lost| lost.parse().ok()).expect("a count")
}

#[tokio::test]
async fn a_log_that_cannot_be_written_costs_lines_that_are_counted_and_no_request() {
    let file = file("log", "http://127.0.0.1:1", "clients.limit = { requests = 1000000, window = '10s' }");
    for reader_stays in [false, true] {
        let mut process = Unheard::start(&file);
        let (proxy, admin) = (process.address("proxy"), process.address("admin"));
        if !reader_stays {
            process.log = None;
        }
        let mut connection = Connection::http1(connect(proxy).await).await;
        let mut sent = 0;
        while lost(admin).await == 0 {
            for _ in 0..500 {
                assert_eq!(get(&mut connection, "/agents").await.status, 403);
            }
            sent += 500;
            assert!(sent < 50_000, "nothing is lost");
        }
        kill_process(Pid::from_child(&process.child), Signal::TERM).expect("sent");
        let mut end = None;
        eventually("it stops", || {
            end = process.child.try_wait().expect("a child");
            end.is_some()
        })
        .await;
        assert_eq!(end.and_then(|end| end.code()), Some(0));
    }
    fs::remove_file(file).expect("removed");
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_is_told_once_and_written_again_when_it_can() {
    let folder = scratch(&format!("{}-state", std::process::id()));
    let away = folder.with_extension("away");
    fs::create_dir(&folder).expect("a folder");
    let state = folder.join("state.json");
    let file = file("state", "http://127.0.0.1:1", &format!("store.state_file = {state:?}"));
    let mut process = start(&file);
    address(&mut process, "proxy");
    fs::rename(&folder, &away).expect("moved");
    said(&process, "the state file cannot be written").await;
    fs::remove_file(away.join("state.json")).expect("removed");
    fs::rename(&away, &folder).expect("moved back");
    said(&process, "the state file is written again").await;
    assert!(state.exists());
    assert_eq!(process.log().matches("the state file cannot be written").count(), 1, "{}", process.log());
    process.signal("TERM");
    assert_eq!(process.end().0, Some(0));
    fs::remove_dir_all(folder).expect("removed");
    fs::remove_file(file).expect("removed");
}
