//! A real Redis server of the test's own, on a free port, ended with the test; or, where `METORIAL_TEST_REDIS` names one, a
//! Valkey server.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// The server; killed when dropped.
pub(crate) struct RedisServer {
    port: u16,
    options: Vec<String>,
    /// A shell that ends the server when this process ends, however that happens, and waits for it.
    guard: Option<Child>,
}

impl RedisServer {
    /// Starts one that keeps nothing on disk.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// Starts one with further options, such as `["--requirepass", "…"]`.
    pub(crate) fn with(options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = Self { port: 0, options, guard: None };
        for _ in 0..20 {
            server.port = free_port();
            if server.restart() {
                return server;
            }
        }
        panic!("{} does not start: is it installed?", program());
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it at once, with all it knew.
    pub(crate) fn kill(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            guard.wait().expect("the server's end");
        }
    }

    /// Starts it again at the same port, empty; whether it got there.
    pub(crate) fn restart(&mut self) -> bool {
        self.kill();
        let mut shell = Command::new("sh");
        // A read that ends means that nobody holds the other end any more.
        let guarded = "\"$0\" \"$@\" >/dev/null & server=$!; read -r _; kill -KILL $server; wait $server";
        shell.args(["-c", guarded, &program()]);
        shell.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        shell.args(["--save", "", "--appendonly", "no", "--dir", &std::env::temp_dir().to_string_lossy()]);
        shell.args(&self.options);
        self.guard = Some(shell.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a shell"));
        for _ in 0..500 {
            if self.is_up() {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        false
    }

    /// `STOP` stalls it, `CONT` lets it go on.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.guard.as_ref().expect("running").id();
        let kill = format!("kill -{name} $(cat /proc/{pid}/task/{pid}/children)");
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success(), "{kill}");
    }

    /// Whether it is this server that answers.
    fn is_up(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) else { return false };
        stream.write_all(b"PING\r\n").is_ok() && {
            let mut answer = [0; 1];
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok();
            std::io::Read::read(&mut stream, &mut answer).is_ok_and(|read| read == 1)
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

fn program() -> String {
    std::env::var("METORIAL_TEST_REDIS").unwrap_or_else(|_| "redis-server".to_owned())
}
