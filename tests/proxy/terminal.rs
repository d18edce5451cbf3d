//! What a person sees: help with examples, completions, faults with the line they stand in, colours on a terminal alone.

use std::process::Command;

use crate::harness::scratch;
use crate::process::binary;
use crate::signals::command;

const FAULTY: &str = r#"# A proxy with a few faults.
[server]
listen = ["127.0.0.1:8080", "nowhere"]   # hunter2
admin_token = "hunter2"
max_uri = "1GiB"
drain = { settle = "5s", deadlin = "27s" }

[[environments]]
name = "main"
secret_key = "metorial_sk_hunter2"
publishable_keys = ["metorial_sk_hunter2"]
allow = ["catalogue"]
pasword = "hunter2"

[[environments]]
secret_key = { env = "NO_SUCH_VARIABLE" }
publishable_keys = ["metorial_pk_hunter2"]
"#;

/// A faulty file, gone after `with`.
fn faulty<T>(name: &str, with: impl FnOnce(&str) -> T) -> T {
    let file = scratch(&format!("{}-{name}.toml", std::process::id()));
    std::fs::write(&file, FAULTY).expect("written");
    let result = with(file.to_str().expect("text"));
    std::fs::remove_file(file).expect("removed");
    result
}

/// What `metorial-proxy ARGUMENTS` writes to a terminal.
fn on_a_terminal(arguments: &str, variables: &[(&str, &str)]) -> String {
    let mut script = Command::new("script");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("METORIAL_")) {
        script.env_remove(name);
    }
    script.args(["-qec", &format!("{} {arguments}", binary().display()), "/dev/null"]);
    script.env_remove("NO_COLOR").env("TERM", "xterm-256color").envs(variables.iter().copied());
    let output = script.stdin(std::process::Stdio::null()).output();
    let output = output.expect("script (Debian: bsdutils), which gives a command a terminal");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn check_shows_the_line_of_each_fault_and_no_secret_in_it() {
    let (code, output) = faulty("excerpts", |file| {
        let (code, output) = command(&["check", "--config", file], &[]);
        (code, output.replace(file, "proxy.toml"))
    });
    assert_eq!(code, Some(2));
    assert!(!output.contains("hunter2"), "{output}");
    assert!(!output.contains('\u{1b}'), "no terminal, no colours: {output:?}");
    insta::assert_snapshot!(output);
}

#[test]
fn faults_are_coloured_on_a_terminal_unless_no_color_says_otherwise() {
    let check = |variables: &[(&str, &str)]| {
        faulty("colours", |file| on_a_terminal(&format!("check --config {file}"), variables))
    };
    let coloured = check(&[]);
    assert!(coloured.contains("\u{1b}[") && coloured.contains("server.max_uri"), "{coloured:?}");
    let plain = check(&[("NO_COLOR", "1")]);
    assert!(!plain.contains('\u{1b}') && plain.contains("server.max_uri"), "{plain:?}");
}

#[test]
fn the_log_is_for_a_person_on_a_terminal_and_json_elsewhere() {
    // Somebody else has the address: a run that ends by itself, after its first lines.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    let address = taken.local_addr().expect("an address").to_string();
    let variables = [
        ("METORIAL_SECRET_KEY", "metorial_sk_hunter2"),
        ("METORIAL_PUBLISHABLE_KEYS", "metorial_pk_a"),
        ("METORIAL_UPSTREAM", "http://192.0.2.1"),
        ("METORIAL_NO_SUCH", "a warning"),
        ("METORIAL_PROXY_LISTEN", "127.0.0.1:0"),
        ("METORIAL_PROXY_ADMIN", address.as_str()),
    ];
    let (_, output) = command(&["run"], &variables);
    let warning = output.lines().find(|line| line.contains("METORIAL_NO_SUCH")).expect("a line of the log");
    serde_json::from_str::<serde_json::Value>(warning).expect("JSON");

    let warning = |variables: &[(&str, &str)]| {
        let output = on_a_terminal("run", variables);
        output.lines().find(|line| line.contains("METORIAL_NO_SUCH")).expect("a line of the log").to_owned()
    };
    let coloured = warning(&variables);
    assert!(
        coloured.contains("\u{1b}[") && coloured.contains("WARN") && !coloured.contains('{'),
        "{coloured:?}"
    );
    let mut plain = variables.to_vec();
    plain.push(("NO_COLOR", "1"));
    let plain = warning(&plain);
    assert!(plain.contains("WARN") && !plain.contains(['\u{1b}', '{']), "{plain:?}");
}

#[test]
fn each_command_says_by_example_what_it_is_for() {
    for name in ["run", "check", "explain", "schema", "health", "top", "mock", "demo", "completions"] {
        let (code, help) = command(&[name, "--help"], &[]);
        assert_eq!(code, Some(0), "{help}");
        let (_, examples) = help.split_once("Examples:\n").expect("examples");
        assert!(examples.contains("metorial-proxy"), "{help}");
        // For terminals of a usual width and a half.
        assert!(help.lines().all(|line| line.chars().count() <= 125), "{help}");
    }
    let (_, help) = command(&["--help"], &[]);
    for name in ["run", "check", "explain", "schema", "health", "top", "mock", "demo", "completions"] {
        assert!(help.contains(&format!("\n  {name} ")), "{help}");
    }
}

#[test]
fn shells_complete_commands_and_options() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script) = command(&["completions", shell], &[]);
        assert_eq!(code, Some(0));
        for word in ["explain", "egress-limit", "config"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(command(&["completions", "tcsh"], &[]).0, Some(2));
    // As bash itself would ask.
    let ask = r#"
        source <("$1" completions bash)
        for words in "metorial-proxy ch" "metorial-proxy mock --eg" "metorial-proxy explain --k"; do
            COMP_WORDS=($words) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            function=$(complete -p metorial-proxy | sed 's/.*-F \([^ ]*\).*/\1/')
            "$function" metorial-proxy "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[@]}"
        done
    "#;
    let asked = Command::new("bash").args(["-c", ask, "bash"]).arg(binary()).output().expect("bash");
    let answers = String::from_utf8(asked.stdout).expect("UTF-8");
    assert_eq!(answers.lines().collect::<Vec<_>>(), ["check", "--egress-limit", "--key"]);
}
