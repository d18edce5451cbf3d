//! The binary as a process of its own, ended with the test that started it.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a start may take before the test gives up.
const START: Duration = Duration::from_secs(30);

/// The binary under test: `METORIAL_PROXY_BIN` (tests/run: the release build), else the one built with the tests.
pub(crate) fn binary() -> PathBuf {
    let given = std::env::var_os("METORIAL_PROXY_BIN")
        .unwrap_or_else(|| OsString::from(env!("CARGO_BIN_EXE_metorial-proxy")));
    PathBuf::from(given)
}

/// A command of the binary that is running. Killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: Arc<Mutex<String>>,
    /// Ends with the output.
    pub(crate) listening: Receiver<(String, String)>,
    addresses: HashMap<String, String>,
}

impl Process {
    /// Starts `metorial-proxy ARGUMENTS…` with these variables and no `METORIAL_*` of the caller's.
    pub(crate) fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(binary());
        command.args(arguments).envs(variables.iter().copied());
        Self::spawn(command)
    }

    /// Starts a command that is, or becomes, `metorial-proxy`.
    pub(crate) fn spawn(mut command: Command) -> Result<Self, Box<dyn Error>> {
        for (name, _) in std::env::vars_os() {
            let given = command.get_envs().any(|(given, _)| given == name);
            if name.to_string_lossy().starts_with("METORIAL_") && !given {
                command.env_remove(name);
            }
        }
        let line: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        let log =
            Arc::new(Mutex::new(format!("$ metorial-proxy {}\n", line.first().map_or("run", |verb| verb))));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().display().to_string();
        let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        let stdout = child.stdout.take().ok_or("stdout is piped")?;
        let stderr = child.stderr.take().ok_or("stderr is piped")?;
        let (announce, listening) = channel();
        collect(stdout, log.clone(), announce.clone());
        collect(stderr, log.clone(), announce);
        Ok(Self { child, log, listening, addresses: HashMap::new() })
    }

    /// `http://ADDRESS` of a listener (`proxy`, `admin`, `mock`), once it is bound.
    pub(crate) fn url(&mut self, listener: &str) -> Result<String, Box<dyn Error>> {
        while !self.addresses.contains_key(listener) {
            match self.listening.recv_timeout(START) {
                Ok((name, address)) => self.addresses.insert(name, address),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("no listener `{listener}` within {START:?}:\n{}", self.log()).into());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    return Err(
                        format!("ended ({status}) without listener `{listener}`:\n{}", self.log()).into()
                    );
                }
            };
        }
        Ok(format!("http://{}", self.addresses[listener]))
    }

    /// What it wrote so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill, and the wait tells at once.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads `output` to its end, on a thread of its own.
fn collect(output: impl Read + Send + 'static, log: Arc<Mutex<String>>, announce: Sender<(String, String)>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            {
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                writeln!(log, "{line}").unwrap_or_default();
            }
            if let Some(bound) = listener(&line) {
                // The test may have what it wants already.
                drop(announce.send(bound));
            }
        }
    });
}

/// Name and address in a log line `listening`.
pub(crate) fn listener(line: &str) -> Option<(String, String)> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |field: &str| event[field].as_str().map(str::to_owned);
    (event["message"] == "listening").then_some(())?;
    Some((text("listener")?, text("addr")?))
}
