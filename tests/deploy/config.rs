//! Reading what is deployed: YAML, and configurations for the proxy.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::signals::command;

const SECRET_KEY: &str = "metorial_sk_9fQx2LrWn7TzYwN3mXc5HsRfUeJ2aLgPdQo8iWtEjVxSECR";
pub(crate) const PASSWORD: &str = "a-password";

/// The documents in some YAML. With `versions` of Kubernetes, each has to be valid there.
pub(crate) fn documents(yaml: &str, versions: &[&str]) -> Vec<Value> {
    let python = std::env::var_os("METORIAL_TEST_PYTHON").expect(
        "METORIAL_TEST_PYTHON is unset: use tests/run, which installs what reads YAML and names its Python",
    );
    let mut reader = Command::new(python);
    reader.arg("tests/deploy/documents.py").args(versions);
    let mut reader = reader.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python runs");
    reader.stdin.take().expect("piped").write_all(yaml.as_bytes()).expect("written");
    let read = reader.wait_with_output().expect("it ends");
    assert!(read.status.success(), "in what deploy/ says; see above");
    serde_json::from_slice(&read.stdout).expect("JSON")
}

/// A folder of one test, gone when dropped.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let folder =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A configuration for the proxy as it is deployed.
pub(crate) struct Configuration {
    pub(crate) text: String,
    pub(crate) table: toml::Table,
}

impl Configuration {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), table: text.parse().expect("TOML") }
    }

    pub(crate) fn read(file: &str) -> Self {
        Self::new(&fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}")))
    }

    /// What is at `path`, such as `store.min_replicas`.
    pub(crate) fn get(&self, path: &str) -> Option<&toml::Value> {
        let mut keys = path.split('.');
        let first = self.table.get(keys.next()?);
        keys.fold(first, |at, key| at?.get(key))
    }

    pub(crate) fn duration(&self, path: &str) -> Option<Duration> {
        self.get(path)
            .map(|value| humantime::parse_duration(value.as_str().expect("text")).expect("a duration"))
    }

    pub(crate) fn texts(&self, path: &str) -> Vec<String> {
        let list = self.get(path).and_then(toml::Value::as_array).unwrap_or_else(|| panic!("no {path}"));
        list.iter().map(|entry| entry.as_str().expect("text").to_owned()).collect()
    }

    /// `(settle, deadline)`
    pub(crate) fn drain(&self) -> (Duration, Duration) {
        let key = |key: &str| self.duration(&format!("server.drain.{key}"));
        (key("settle").expect("settle"), key("deadline").expect("deadline"))
    }

    /// How long a request may take until its head.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.duration("server.request_timeout").unwrap_or(Duration::from_secs(20))
    }

    /// The files that secrets are read from.
    pub(crate) fn secret_files(&self) -> Vec<String> {
        let mut found = Vec::new();
        files(&toml::Value::Table(self.table.clone()), &mut found);
        found
    }

    /// The same, as a file in `folder`, with each secret in a file that is there.
    pub(crate) fn written(&self, folder: &Path) -> PathBuf {
        fs::create_dir_all(folder).expect("a folder");
        let mut text = self.text.clone();
        for (at, file) in self.secret_files().into_iter().enumerate() {
            let secret = folder.join(at.to_string());
            let content = if file.ends_with("secret-key") { SECRET_KEY } else { PASSWORD };
            fs::write(&secret, content).expect("written");
            text = text.replace(&format!("{file:?}"), &format!("{:?}", secret.display().to_string()));
        }
        let file = folder.join("metorial-proxy.toml");
        fs::write(&file, text).expect("written");
        file
    }

    /// Holds it to `metorial-proxy check`, with `variables` set; nothing may be wrong, nor worth a warning.
    #[track_caller]
    pub(crate) fn is_good(&self, name: &str, variables: &[(&str, &str)]) {
        let folder = Scratch::new(name);
        let file = self.written(&folder.0);
        let (code, output) = command(&["check", "--config", file.to_str().expect("text")], variables);
        assert!(code == Some(0) && !output.contains("warning"), "{name}: {output}");
    }
}

fn files(value: &toml::Value, found: &mut Vec<String>) {
    match value {
        toml::Value::Table(table) => match (table.len(), table.get("file")) {
            (1, Some(toml::Value::String(file))) => found.push(file.clone()),
            _ => table.values().for_each(|value| files(value, found)),
        },
        toml::Value::Array(list) => list.iter().for_each(|value| files(value, found)),
        _ => {}
    }
}
