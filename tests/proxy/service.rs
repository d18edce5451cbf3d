//! Under a service manager: sockets that it passes, and what it is told.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use socket2::{Domain, Socket, Type};

use crate::harness::{KEY, SECRET, scratch};
use crate::process::{Process, binary};

const LOOPBACK: (&str, u16) = ("127.0.0.1", 0);

/// A configuration whose addresses nobody could know beforehand, unless they were passed.
fn file(name: &str, listen: &str) -> PathBuf {
    let file = scratch(&format!("{}-service-{name}.toml", std::process::id()));
    let text = format!(
        r#"
        server.listen = {listen}
        server.admin = "127.0.0.1:0"
        server.workers = 3
        server.drain = {{ settle = "0s", deadline = "20s" }}
        upstream.url = "http://127.0.0.1:1"

        [[environments]]
        name = "main"
        secret_key = {{ env = "METORIAL_SECRET_KEY" }}
        publishable_keys = ["{KEY}"]
        "#
    );
    std::fs::write(&file, text).expect("written");
    file
}

/// The proxy with these sockets as its fds 3, 4, …, under these names.
fn activated(file: &PathBuf, names: &str, sockets: Vec<OwnedFd>) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", r#"LISTEN_PID=$$ exec "$0" run --config "$1""#]).arg(binary()).arg(file);
    command.envs([("METORIAL_SECRET_KEY", SECRET), ("LISTEN_FDNAMES", names)]);
    command.env("LISTEN_FDS", sockets.len().to_string());
    let mappings =
        sockets.into_iter().zip(3..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).expect("no fd twice");
    Process::spawn(command).expect("a process")
}

fn handle(socket: &TcpListener) -> OwnedFd {
    socket.try_clone().expect("a handle").into()
}

fn ask(address: SocketAddr) -> TcpStream {
    let mut caller = TcpStream::connect(address).expect("a connection");
    let head = format!("GET /agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n");
    caller.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).expect("sent");
    caller
}

#[track_caller]
fn is_answered(mut caller: TcpStream) {
    let mut answer = String::new();
    caller.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[test]
fn sockets_that_are_passed_are_served_by_all_workers_and_keep_callers_over_a_restart() {
    let file = file("passed", r#"["127.0.0.1:0", "127.0.0.1:0"]"#);
    let sockets = [(); 3].map(|()| TcpListener::bind(LOOPBACK).expect("a port"));
    let [first, admin, second] = [0, 1, 2].map(|at: usize| sockets[at].local_addr().expect("bound"));
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut process =
            activated(&file, "proxy:admin:metorial-proxy.socket", sockets.iter().map(handle).collect());
        assert_eq!(process.url("admin").expect("it runs"), format!("http://{admin}"));
        waiting.drain(..).for_each(is_answered);
        for address in [first, second] {
            let callers: Vec<TcpStream> = (0..20).map(|_| ask(address)).collect();
            callers.into_iter().for_each(is_answered);
        }
        process.signal("TERM");
        let (code, log) = process.end();
        assert_eq!(code, Some(0), "{log}");
        for address in [first, second] {
            assert!(log.contains(&format!("\"addr\":\"{address}\"")), "{log}");
            // While nobody is there.
            waiting.push(ask(address));
        }
    }
    std::fs::remove_file(file).expect("removed");
}

#[test]
fn a_socket_that_cannot_be_served_as_it_was_meant_is_refused() {
    let file = file("refused", r#"["127.0.0.1:0"]"#);
    let listener = |address| OwnedFd::from(TcpListener::bind(address).expect("a port"));
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let (datagrams, _other) = UnixDatagram::pair().expect("sockets");
    for (names, sockets, message) in [
        ("http", vec![listener(LOOPBACK)], "LISTEN_FDS: a socket is named \"http\""),
        (
            "",
            vec![listener(LOOPBACK), listener(LOOPBACK)],
            "LISTEN_FDS: more sockets named proxy were passed",
        ),
        ("proxy", vec![deaf.into()], "LISTEN_FDS: socket 0 (proxy) does not listen"),
        ("proxy", vec![datagrams.into()], "LISTEN_FDS: fd 3 is not a valid tcp socket"),
        (
            "proxy",
            vec![listener(("0.0.0.0", 0))],
            "server.listen[0]: the socket that was passed is open to others",
        ),
        (
            "admin",
            vec![listener(("0.0.0.0", 0))],
            "server.admin: the socket that was passed is open to others",
        ),
    ] {
        let (code, log) = activated(&file, names, sockets).end();
        assert!(code == Some(2) && log.contains(message), "{names}: {code:?}\n{log}");
    }
    std::fs::remove_file(file).expect("removed");
}

#[test]
fn the_service_manager_is_told_of_start_life_reload_and_end() {
    let file = file("notified", r#"["127.0.0.1:0"]"#);
    // Not in the scratch folder: the path of a socket has to be short.
    let path = std::env::temp_dir().join(format!("metorial-proxy-{}.sock", std::process::id()));
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    let told = || {
        let mut message = [0; 512];
        let length = manager.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let socket = path.to_str().expect("text");
    let variables = [("METORIAL_SECRET_KEY", SECRET), ("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "100000")];
    let mut process =
        Process::start(&["run", "--config", file.to_str().expect("text")], &variables).expect("a process");
    let address = process.url("proxy").expect("it runs").trim_start_matches("http://").to_owned();
    let messages = || std::iter::from_fn(|| Some(told()));
    assert!(
        messages().take(3).any(|message| message == "READY=1\n"),
        "before, at most what the watchdog says"
    );
    is_answered(ask(address.parse().expect("an address")));
    assert_eq!(messages().take(5).collect::<String>(), "WATCHDOG=1\n".repeat(5));
    // In ten seconds.
    let news = || messages().take(200).find(|message| message != "WATCHDOG=1\n").expect("news");
    for wrong in ["", "no_such_key = 1"] {
        let text = std::fs::read_to_string(&file).expect("read");
        std::fs::write(&file, format!("{wrong}\n{text}")).expect("written");
        process.signal("HUP");
        let reloading = news();
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert_eq!(news(), "READY=1\n", "whatever came of it");
    }
    process.signal("TERM");
    let stopping = news();
    // The drain's deadline, and ten seconds for what comes after it.
    assert_eq!(stopping, "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\n");
    let (code, log) = process.end();
    assert_eq!(code, Some(0), "{log}");
    [file, path].into_iter().for_each(|file| std::fs::remove_file(file).expect("removed"));
}
