//! `deploy/systemd/`: the units, and the configuration that they start the proxy with.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::config::{Configuration, Scratch};
use crate::process::binary;

/// `Key=Value` lines; a key may come more than once.
struct Unit(Vec<(String, String)>);

impl Unit {
    fn read(name: &str) -> Self {
        let text = fs::read_to_string(format!("deploy/systemd/{name}")).expect(name);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn all(&self, wanted: &str) -> Vec<&str> {
        self.0.iter().filter(|(key, _)| key == wanted).map(|(_, value)| value.as_str()).collect()
    }

    fn one(&self, key: &str) -> &str {
        let all = self.all(key);
        assert_eq!(all.len(), 1, "{key}");
        all[0]
    }
}

const SERVICE: &str = "metorial-proxy.service";
const SOCKET: &str = "metorial-proxy.socket";

fn configuration() -> Configuration {
    Configuration::read("deploy/systemd/metorial-proxy.toml")
}

#[test]
fn the_socket_is_what_the_configuration_listens_on() {
    let (socket, service) = (Unit::read(SOCKET), Unit::read(SERVICE));
    assert_eq!(socket.all("ListenStream"), configuration().texts("server.listen"));
    assert_eq!((socket.one("FileDescriptorName"), service.one("Requires")), ("proxy", SOCKET));
}

#[test]
fn the_service_tells_and_is_given_time_to_stop() {
    let (service, configuration) = (Unit::read(SERVICE), configuration());
    assert_eq!(service.one("Type"), "notify");
    // The socket stays open: there is nothing to settle.
    let (settle, deadline) = configuration.drain();
    assert_eq!(settle, Duration::ZERO);
    let seconds = |key: &str| Duration::from_secs(service.one(key).parse().expect("seconds"));
    assert!(deadline + Duration::from_secs(10) <= seconds("TimeoutStopSec"));
    assert!(!seconds("WatchdogSec").is_zero());
    // Refused to start.
    assert_eq!(service.one("RestartPreventExitStatus"), "2");
}

#[test]
fn files_are_where_the_unit_puts_them() {
    let (service, configuration) = (Unit::read(SERVICE), configuration());
    let (credential, _) = service.one("LoadCredential").split_once(':').expect("a name");
    assert_eq!(configuration.secret_files(), [format!("/run/credentials/{SERVICE}/{credential}")]);
    let state = configuration.get("store.state_file").and_then(toml::Value::as_str).expect("a file");
    assert!(state.starts_with(&format!("/var/lib/{}/", service.one("StateDirectory"))), "{state}");
    configuration.is_good("systemd", &[]);
}

#[test]
fn the_service_has_no_rights_to_speak_of() {
    let service = Unit::read(SERVICE);
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ] {
        assert_eq!(service.one(key), value, "{key}");
    }
}

#[test]
fn systemd_understands_every_line() {
    let folder = Scratch::new("units");
    for name in [SERVICE, SOCKET] {
        let text = fs::read_to_string(format!("deploy/systemd/{name}")).expect(name);
        // It looks whether what is to be started is there.
        let text = text.replace("/usr/local/bin/metorial-proxy", &binary().display().to_string());
        fs::write(folder.0.join(name), text).expect("written");
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(folder.0.join(SERVICE)).arg(folder.0.join(SOCKET));
    let verified = verify.output().expect("systemd-analyze runs: tests/run installs it");
    let said = String::from_utf8_lossy(&verified.stderr);
    // Of other units on this machine nothing is known here.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("metorial-proxy")).collect();
    assert!(ours.is_empty(), "{}", ours.join("\n"));
    assert!(verified.status.success(), "{said}");
}
