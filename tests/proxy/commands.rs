//! The binary as an operator meets it: exit codes, signals, and output without a key.

use std::fs;
use std::path::{Path, PathBuf};

use crate::client::{Reply, request, try_send};
use crate::harness::{KEY, Mock, SECRET, eventually, scratch};
use crate::process::{Process, binary};
use crate::signals::command;

/// A configuration file of the test's own; `drain` is what differs.
fn file(name: &str, upstream: &str, drain: &str) -> PathBuf {
    let file = scratch(&format!("{}-{name}.toml", std::process::id()));
    let text = format!(
        r#"
        [server]
        listen = ["127.0.0.1:0"]
        admin = "127.0.0.1:0"
        drain = {drain}

        [upstream]
        url = "{upstream}"

        [[environments]]
        name = "main"
        secret_key = {{ env = "METORIAL_SECRET_KEY" }}
        publishable_keys = ["{KEY}"]
        "#
    );
    fs::write(&file, text).expect("written");
    file
}

fn run(file: &Path) -> Process {
    let file = file.to_str().expect("text");
    Process::start(&["run", "--config", file], &[("METORIAL_SECRET_KEY", SECRET)]).expect("a process")
}

fn address(process: &mut Process, listener: &str) -> std::net::SocketAddr {
    let url = process.url(listener).unwrap_or_else(|error| panic!("{error}"));
    url.trim_start_matches("http://").parse().expect("an address")
}

/// What a command printed holds no key.
#[track_caller]
fn assert_discreet(output: &str) {
    for hidden in [SECRET, &SECRET[12..24], KEY] {
        assert!(!output.contains(hidden), "{output}");
    }
}

#[test]
fn check_tells_every_error_with_its_key_and_ends_with_2() {
    let file = scratch(&format!("{}-check.toml", std::process::id()));
    let text = r#"
        [server]
        listen = ["nowhere"]
        max_uri = "1GiB"
        colour = "red"
        [upstream]
        url = "gopher://x"
        [[environments]]
        name = "main"
        secret_key = { env = "NO_SUCH_VARIABLE" }
        publishable_keys = ["metorial_sk_9fQx2LrWn7TzYwN3mXc5Hs"]
        allow = ["everything", "GET sessions"]
    "#;
    fs::write(&file, text).expect("written");
    for verb in ["check", "run"] {
        let (code, output) = command(&[verb, "--config", file.to_str().expect("text")], &[]);
        assert_eq!(code, Some(2), "{output}");
        for key in [
            "server.listen[0]",
            "server.max_uri",
            "server.colour",
            "upstream.url",
            "environments[0].secret_key",
            "environments[0].publishable_keys[0]",
            "environments[0].allow[0]",
            "environments[0].allow[1]",
        ] {
            assert!(output.contains(key), "{verb}: {key}\n{output}");
        }
        assert_discreet(&output);
    }
    fs::remove_file(file).expect("removed");
    let upstream = ("METORIAL_UPSTREAM", "https://example.com:8443/api/v1");
    let (code, output) =
        command(&["check"], &[("METORIAL_SECRET_KEY", SECRET), ("METORIAL_PUBLISHABLE_KEYS", KEY), upstream]);
    assert_eq!(code, Some(0), "{output}");
    let good =
        "configuration is good: 127.0.0.1:8080 -> https://example.com:8443/api/v1, admin 127.0.0.1:9090";
    assert!(output.contains(good), "{output}");
    assert_discreet(&output);
    assert_eq!(command(&["check", "--no-such-flag"], &[]).0, Some(2));
}

#[test]
fn a_command_whose_answer_does_not_arrive_has_failed() {
    for (out, code, told) in [("/dev/full", 1, true), ("/dev/null", 0, false)] {
        let mut schema = std::process::Command::new(binary());
        let to = fs::File::options().write(true).open(out).expect("a device");
        let schema = schema.arg("schema").stdout(to).output().expect("a process");
        let errors = String::from_utf8_lossy(&schema.stderr);
        assert_eq!((schema.status.code(), errors.contains("stdout")), (Some(code), told), "{out}: {errors}");
    }
}

#[tokio::test]
async fn run_serves_until_a_signal_and_its_log_holds_ids_and_no_secrets() {
    let mock = Mock::start().await;
    let file = file("run", &mock.url(), "{ settle = '0s' }");
    for signal in ["TERM", "INT"] {
        let mut process = run(&file);
        let (proxy, admin) = (address(&mut process, "proxy"), address(&mut process, "admin"));
        let target = format!("/providers?search=hush-hush&token={KEY}");
        let ask =
            request("GET", &target, &[("x-request-id", "id-of-the-caller"), ("cookie", "a=biscuit")], "");
        assert_eq!(try_send(proxy, ask).await.expect("an answer").status, 200);
        let body = "{\"x\": \"in-the-body\"}";
        let ask = request("POST", &target, &[("content-type", "application/json")], body);
        assert_eq!(try_send(proxy, ask).await.expect("an answer").status, 403);
        assert_eq!(command(&["health", "--admin", &admin.to_string()], &[]).0, Some(0));
        assert_eq!(command(&["health"], &[("METORIAL_PROXY_ADMIN", &admin.to_string())]).0, Some(0));

        // The workers share the address, and yet nobody else gets it; each fault has its line.
        let (listen, port) = (proxy.to_string(), admin.to_string());
        let taken = [
            ("METORIAL_SECRET_KEY", SECRET),
            ("METORIAL_PROXY_LISTEN", &listen),
            ("METORIAL_PROXY_ADMIN", &port),
        ];
        let (code, output) = command(&["run", "--config", file.to_str().expect("text")], &taken);
        assert_eq!(code, Some(2), "{output}");
        for (key, address) in [("server.admin", admin), ("server.listen[0]", proxy)] {
            let fault = format!("metorial-proxy: {key}: {address} is in use");
            assert_eq!(output.lines().filter(|line| line.starts_with(&fault)).count(), 1, "{output}");
        }

        process.signal(signal);
        let (code, log) = process.end();
        assert_eq!(code, Some(0), "{log}");
        let line = log.lines().find(|line| line.contains("id-of-the-caller")).expect("an access log");
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(line.to_string().contains("\"/providers\"") && line.to_string().contains("200"), "{line}");
        for hidden in ["hush-hush", "biscuit", "in-the-body", "search="] {
            assert!(!log.contains(hidden), "{hidden}: {log}");
        }
        assert_discreet(&log);
        assert_eq!(command(&["health", "--admin", &admin.to_string()], &[]).0, Some(1));
    }
    fs::remove_file(file).expect("removed");
}

#[tokio::test]
async fn a_second_signal_ends_at_once_with_1() {
    let mock = Mock::start().await;
    let file = file("hurry", &mock.url(), "{ settle = '1h', deadline = '1h' }");
    let mut process = run(&file);
    address(&mut process, "proxy");
    process.signal("TERM");
    // Signals that come together count as one.
    eventually("it has heard the first", || process.log().contains("\"stopping\"")).await;
    process.signal("TERM");
    let (code, log) = process.end();
    assert_eq!(code, Some(1), "{log}");
    fs::remove_file(file).expect("removed");
}

#[tokio::test]
async fn the_demo_prints_commands_that_work_and_ends_on_ctrl_c() {
    let listen = ["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut process = Process::start(&listen, &[]).expect("a process");
    let (proxy, admin) = (address(&mut process, "proxy"), address(&mut process, "admin"));
    let mock = address(&mut process, "mock");
    let ask = request("GET", "/_mock/requests", &[("host", "mock")], "");
    assert_eq!(
        try_send(mock, ask).await.expect("an answer").status,
        200,
        "each address that is bound is told"
    );
    eventually("there is a guide", || process.log().contains("Ctrl-C stops it.")).await;
    let guide = process.log();
    let quoted = |line: &str, from: &str, to: char| -> String {
        let start = line.find(from).unwrap_or_else(|| panic!("{from} in {line}")) + from.len();
        line[start..].chars().take_while(|c| *c != to).collect()
    };
    let key = quoted(&guide, "Authorization: ", '\'');
    let ask = async |method: &str, target: &str, body: &'static str| -> Reply {
        let fields = [("authorization", key.as_str()), ("content-type", "application/json")];
        try_send(proxy, request(method, target, &fields, body)).await.expect("an answer")
    };
    let proxy_url = format!("http://{proxy}");
    let pages: Vec<&str> = guide.lines().filter(|line| line.starts_with("  curl -i -H")).collect();
    assert_eq!(pages.len(), 2, "{guide}");
    for (line, status) in pages.into_iter().zip(["stored", "hit"]) {
        let reply = ask("GET", &quoted(line, &proxy_url, '\''), "").await;
        assert!(reply.status == 200 && reply.field("cache-status").contains(status), "{line}: {reply:?}");
    }
    let write = guide.lines().find(|line| line.contains("-d '")).expect("a write");
    assert_eq!(ask("POST", &quoted(write, &proxy_url, '\''), "{\"name\":\"mine\"}").await.status, 403);
    let many = guide.lines().find(|line| line.contains("?search=$n")).expect("a loop");
    let many = quoted(many, &proxy_url, '"');
    let mut statuses = Vec::new();
    for n in 1..=120 {
        statuses.push(ask("GET", &many.replace("$n", &n.to_string()), "").await.status);
    }
    assert!(
        statuses[..99].iter().all(|status| *status == 200)
            && statuses[99..].iter().all(|status| *status == 429)
    );
    assert!(guide.contains(&format!("curl http://{admin}/status")), "{guide}");
    let host = admin.to_string();
    let status = try_send(admin, request("GET", "/status", &[("host", &host)], "")).await.expect("an answer");
    assert_eq!(status.json()["environments"][0]["remaining"], 0);
    process.signal("INT");
    let (code, log) = process.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("metorial_sk_"), "{log}");
}

#[tokio::test]
async fn the_stand_in_api_is_a_command_too() {
    let listen = ["mock", "--listen", "127.0.0.1:0", "--items", "3", "--key", SECRET];
    let mut process = Process::start(&listen, &[]).expect("a process");
    let mock = address(&mut process, "mock");
    let key = format!("Bearer {SECRET}");
    let ask = request("GET", "/providers", &[("authorization", &key)], "");
    assert_eq!(try_send(mock, ask).await.expect("an answer").items(), 3);
    let seen = try_send(mock, request("GET", "/_mock/requests", &[], "")).await.expect("an answer").json();
    assert_eq!((&seen["received"], &seen["counted"]), (&1.into(), &1.into()));
    process.signal("TERM");
    let (code, log) = process.end();
    assert_eq!(code, Some(0), "{log}");
    assert_discreet(&log);
}
