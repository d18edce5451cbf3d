//! What the checks in a browser need around them: the stand-in API, proxies in front of it, and Node.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::process::Process;

// Different endings: the stand-in API shows the last four characters of the keys it saw.
pub(crate) const SECRET_KEY: &str =
    "metorial_sk_5hVbT0wKq7TzYwN3mXc5HsRfUeJ2aLgPdQo8iWtEjVxCnBkMyGhZrSuDlFpQ7s1";
pub(crate) const PUBLISHABLE_KEY: &str =
    "metorial_pk_2Gx8mWzXcVbNjHgFdSaQwErTyUiOpLkJhGfDsAzXcVbNmQwErTyUiOpLkR4b";

/// A folder of the test's own, gone with it.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let folder =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-browser-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// The stand-in API.
pub(crate) fn mock(limit: &str) -> (Process, String) {
    let arguments =
        ["mock", "--listen", "127.0.0.1:0", "--key", SECRET_KEY, "--items", "57", "--limit", limit];
    let mut mock = Process::start(&arguments, &[]).expect("a process");
    let url = url(&mut mock, "mock");
    (mock, url)
}

/// A proxy, by variables alone.
pub(crate) fn proxy(variables: &[(&str, &str)]) -> Process {
    let base = [
        ("METORIAL_SECRET_KEY", SECRET_KEY),
        ("METORIAL_PUBLISHABLE_KEYS", PUBLISHABLE_KEY),
        ("METORIAL_PROXY_LISTEN", "127.0.0.1:0"),
        ("METORIAL_PROXY_ADMIN", "127.0.0.1:0"),
    ];
    Process::start(&["run"], &[&base, variables].concat()).expect("a process")
}

pub(crate) fn url(process: &mut Process, listener: &str) -> String {
    process.url(listener).unwrap_or_else(|error| panic!("{error}"))
}

/// The folder in which tests/run has installed what package.json beside this file names.
pub(crate) fn modules() -> String {
    env::var("METORIAL_TEST_BROWSER")
        .expect("METORIAL_TEST_BROWSER is unset: use tests/run, which installs Chromium and Playwright")
}

/// Runs the checks of `script`. What they found, one line per check.
pub(crate) fn check(script: &str, arguments: &[&str], processes: &[&Process]) {
    let mut node = Command::new("node");
    node.arg(format!("tests/browser/{script}")).args(["--modules", &modules()]).args(arguments);
    // Whatever this machine's way out to the internet is.
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"] {
        node.env_remove(name);
    }
    let checked = node.output().expect("node runs: tests/run installs it");
    let lines = String::from_utf8_lossy(&checked.stdout);
    let errors = String::from_utf8_lossy(&checked.stderr);
    let logs: String = processes.iter().map(|process| process.log() + "\n").collect();
    assert!(checked.status.success(), "{}\n{lines}\n{errors}\n{logs}", checked.status);
    println!("{lines}");
    for key in [SECRET_KEY, PUBLISHABLE_KEY] {
        assert!(!logs.contains(key), "a log holds a key:\n{logs}");
    }
}
