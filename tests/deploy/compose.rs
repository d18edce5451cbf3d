//! `deploy/compose.yaml`, and its parts at work as far as that goes without containers.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};

use crate::config::{Configuration, PASSWORD, Scratch, documents};
use crate::image;
use crate::process::Process;
use crate::redis::RedisServer;

const REPLICAS: [&str; 2] = ["proxy-1", "proxy-2"];

fn compose() -> Value {
    let text = fs::read_to_string("deploy/compose.yaml").expect("deploy/compose.yaml");
    documents(&text, &[]).remove(0)
}

fn configuration() -> Configuration {
    Configuration::read("deploy/compose/metorial-proxy.toml")
}

fn balancer() -> String {
    fs::read_to_string("deploy/compose/haproxy.cfg").expect("deploy/compose/haproxy.cfg")
}

/// haproxy's value after `word`, a duration, in the line that begins with `line`.
fn setting(line: &str, word: &str) -> Duration {
    let text = balancer();
    let line = text.lines().map(str::trim).find(|text| text.starts_with(line)).expect("a line");
    let mut words = line.split_whitespace().skip_while(|text| *text != word).skip(1);
    humantime::parse_duration(words.next().expect("a value")).expect("a duration")
}

#[test]
fn replicas_have_time_to_stop_and_the_balancer_hears_of_it_first() {
    let compose = compose();
    let (settle, deadline) = configuration().drain();
    for replica in REPLICAS {
        let grace = compose["services"][replica]["stop_grace_period"].as_str().expect("a duration");
        let grace = humantime::parse_duration(grace).expect("a duration");
        assert!(deadline + Duration::from_secs(5) <= grace, "{replica}");
        assert_eq!(compose["services"][replica]["build"]["dockerfile"], "deploy/Dockerfile");
    }
    assert!(settle + configuration().request_timeout() <= deadline, "a request that came last has its time");
    // The second of two checks fails, each of which takes as long as its interval at most.
    assert!(balancer().contains(" fall 2 "));
    let noticed = setting("default-server", "inter") + setting("default-server", "fastinter") * 2;
    assert!(noticed <= settle, "{noticed:?}");
    // The proxy is the one to close: its idle_timeout is 75 s.
    assert!(
        ["client", "server"]
            .iter()
            .all(|end| setting(&format!("timeout {end}"), end) > Duration::from_secs(75))
    );
}

#[test]
fn names_and_addresses_agree() {
    let (compose, configuration) = (compose(), configuration());
    for replica in REPLICAS {
        assert!(balancer().contains(&format!("server {replica} {replica}:8080")), "{replica}");
        let secrets = compose["services"][replica]["secrets"].as_array().expect("secrets");
        for file in configuration.secret_files() {
            let secret = file.strip_prefix("/run/secrets/").expect("a secret");
            assert!(secrets.contains(&json!(secret)), "{secret}");
            let source = compose["secrets"][secret]["file"].as_str().expect("a file");
            assert!(source.starts_with("secrets/"), "{source}: .gitignore keeps that folder out");
        }
        let mounted = &compose["services"][replica]["configs"][0];
        assert_eq!(compose["services"][replica]["command"][2], mounted["target"]);
        assert_eq!(compose["configs"]["proxy"]["file"], "compose/metorial-proxy.toml");
    }
    let address = &compose["services"]["balancer"]["networks"]["inside"]["ipv4_address"];
    assert_eq!(configuration.texts("server.trusted_proxies"), [address.as_str().expect("an address")]);
    let counted = configuration.get("store.min_replicas").and_then(toml::Value::as_integer);
    assert_eq!(counted, i64::try_from(REPLICAS.len()).ok());
    let set = image::environment();
    let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    configuration.is_good("compose", &set);
}

#[test]
fn secrets_never_come_into_the_repository_or_the_package() {
    let ignored = fs::read_to_string(".gitignore").unwrap_or_default();
    assert!(ignored.lines().any(|line| line == "/deploy/secrets/"));
    let manifest: toml::Table =
        fs::read_to_string("Cargo.toml").expect("Cargo.toml").parse().expect("a manifest");
    let packed = manifest["package"]["include"].as_array().expect("patterns");
    let at = |pattern: &str| packed.iter().position(|listed| listed.as_str() == Some(pattern));
    // Of several patterns that match, the last one counts; what git ignores does not.
    assert!(at("!deploy/secrets/**").expect("kept out") > at("deploy/**").expect("taken in"));
}

struct Balancer(Child);

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The store's server as the container starts it: with the options and the users that its command makes.
fn store(folder: &Path) -> RedisServer {
    let compose = compose();
    let command = compose["services"]["valkey"]["command"][0].as_str().expect("a command");
    let password = folder.join("store-password");
    fs::write(&password, PASSWORD).expect("written");
    let here = folder.display().to_string();
    let command = command
        .replace("$$", "$")
        .replace("/run/secrets/store-password", &password.display().to_string())
        .replace("/run/valkey", &here)
        .replace("/data", &here)
        .replace("exec valkey-server", r"printf '%s\n'");
    let options = Command::new("sh").args(["-ec", &command]).output().expect("a shell");
    assert!(options.status.success(), "{options:?}");
    let options = String::from_utf8(options.stdout).expect("text");
    let options: Vec<&str> = options.lines().collect();
    assert!(
        options.windows(2).any(|pair| pair == ["--maxmemory-policy", "noeviction"]),
        "budgets are never evicted"
    );
    RedisServer::with(&options)
}

/// One replica, where the test can reach it.
fn replica(name: &str, folder: &Path, store: &RedisServer) -> Process {
    let configuration = configuration();
    let text = configuration
        .text
        .replace("0.0.0.0:8080", "127.0.0.1:0")
        .replace("0.0.0.0:9090", "127.0.0.1:0")
        .replace("172.30.86.2", "127.0.0.1")
        .replace("redis://valkey:6379", &store.url());
    let file = Configuration::new(&text).written(&folder.join(name)).display().to_string();
    Process::start(&["run", "--config", &file], &[]).expect("a process")
}

fn address(process: &mut Process, listener: &str) -> SocketAddr {
    let url = process.url(listener).unwrap_or_else(|error| panic!("{error}"));
    url.trim_start_matches("http://").parse().expect("an address")
}

/// What comes back through the balancer, if anything.
fn ask(balancer: SocketAddr) -> Option<String> {
    exchange(balancer, "/agents", "host: x\r\nauthorization: Bearer metorial_pk_replace_me\r\n")
}

fn exchange(to: SocketAddr, target: &str, fields: &str) -> Option<String> {
    let mut caller = TcpStream::connect(to).ok()?;
    caller.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let request = format!("GET {target} HTTP/1.1\r\n{fields}connection: close\r\n\r\n");
    caller.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    caller.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("still not: {what}");
}

#[test]
fn its_parts_work_together() {
    let scratch = Scratch::new("parts");
    let store = store(&scratch.0);
    let mut replicas = REPLICAS.map(|name| replica(name, &scratch.0, &store));

    let mut text = balancer().replace("bind :8080", "bind fd@3").replace(" port 9090 ", " ");
    for (name, process) in REPLICAS.iter().zip(&mut replicas) {
        let (proxy, admin) = (address(process, "proxy"), address(process, "admin").port());
        text = text.replace(&format!("{name}:8080"), &format!("{proxy} port {admin}"));
    }
    let file = scratch.0.join("haproxy.cfg");
    fs::write(&file, text).expect("written");
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let callers = socket.local_addr().expect("bound");
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let mut haproxy = Command::new("haproxy");
    haproxy.env("PATH", path).args(["-db", "-q", "-f"]).arg(&file).stdin(Stdio::null());
    haproxy.fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(socket), child_fd: 3 }]).expect("one fd");
    let mut balancer = Balancer(haproxy.spawn().expect("haproxy runs: tests/run installs it"));
    // With it goes the test's own handle to the socket.
    drop(haproxy);

    eventually("the balancer has found a replica", || {
        let ended = balancer.0.try_wait().expect("a child");
        assert!(ended.is_none(), "haproxy has ended: {ended:?}");
        ask(callers).is_some()
    });
    for process in &mut replicas {
        let admin = address(process, "admin");
        eventually("it may use the store for all that it does there", || {
            let status = exchange(admin, "/status", &format!("host: {admin}\r\n")).unwrap_or_default();
            status.contains(r#""partitioned":false"#)
                && process.log().contains("connected to the shared store")
        });
        assert!(!process.log().contains("NOPERM"), "{}", process.log());
    }
    for _ in 0..4 {
        let answer = ask(callers).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("GET /agents"), "{answer}");
    }
    let served = |process: &Process| process.log().contains("\"/agents\"");
    // The balancer finds one after the other, and logs are written behind the answers.
    eventually("each has its share", || ask(callers).is_some() && replicas.iter().all(served));
}
