//! What `--help` shows below a command's options: commands to paste.

pub(super) const ALL: &str = "\
Examples:
  metorial-proxy demo                                    everything on this machine, no key needed
  METORIAL_SECRET_KEY=metorial_sk_… METORIAL_PUBLISHABLE_KEYS=metorial_pk_… metorial-proxy
  metorial-proxy run --config /etc/metorial-proxy.toml
  metorial-proxy check --config /etc/metorial-proxy.toml
  metorial-proxy explain --key metorial_pk_… GET '/provider-deployments?limit=2'
  metorial-proxy mock --listen 127.0.0.1:4010 --limit 100/600s

Each command has examples of its own: metorial-proxy help explain";

pub(super) const RUN: &str = "\
Examples:
  A gateway for a browser application:
    METORIAL_SECRET_KEY_FILE=/run/secrets/metorial/secret-key METORIAL_PUBLISHABLE_KEYS=metorial_pk_… \\
      METORIAL_ALLOW='catalog,GET /provider-deployments' METORIAL_ORIGINS=https://app.example.com metorial-proxy run
  A sidecar for the container beside it:
    METORIAL_SECRET_KEY_FILE=/run/secrets/metorial/secret-key METORIAL_KEYLESS=true metorial-proxy run
  From a file, with more in the log:
    METORIAL_PROXY_LOG=debug metorial-proxy run --config /etc/metorial-proxy.toml

Ends with 0 when a signal stopped it, 1 when it failed or a second signal cut it short, 2 when it refused to start.";

pub(super) const CHECK: &str = "\
Examples:
  metorial-proxy check --config /etc/metorial-proxy.toml
  METORIAL_SECRET_KEY=metorial_sk_… METORIAL_PUBLISHABLE_KEYS=metorial_pk_… metorial-proxy check

One line per error (key: what is wrong; what to do), and below it the line of the file. Of its values only
the one that is quoted is shown: a secret may stand where none belongs. Ends with 0 when all is good, else with 2.";

pub(super) const EXPLAIN: &str = "\
Examples:
  Why is this refused, and which rule would open it?
    metorial-proxy explain --config proxy.toml --key metorial_pk_… GET /sessions
  What does a browser at this origin get?
    metorial-proxy explain --config proxy.toml --key metorial_pk_… --origin https://app.example.com GET /providers
  For a script:
    metorial-proxy explain --config proxy.toml --key metorial_pk_… --json GET '/providers?limit=80' | jq .decision";

pub(super) const SCHEMA: &str = "\
Examples:
  metorial-proxy schema > metorial-proxy.schema.json
  In the first line of the file, for editors with Taplo (Even Better TOML):
    #:schema ./metorial-proxy.schema.json";

pub(super) const HEALTH: &str = "\
Examples:
  metorial-proxy health                            the address that METORIAL_PROXY_ADMIN names
  metorial-proxy health --admin 127.0.0.1:9090
  HEALTHCHECK CMD [\"metorial-proxy\", \"health\"]    in a Dockerfile";

pub(super) const TOP: &str = "\
Examples:
  metorial-proxy top                               the proxy whose admin address METORIAL_PROXY_ADMIN names
  metorial-proxy top --admin 127.0.0.1:9090
  metorial-proxy top --admin 10.0.0.7:9090 --token-file /run/secrets/metorial/admin-token
  metorial-proxy top | head -20                    once, where it is no terminal

From another machine it takes server.admin_token, and the address that it asks in server.hosts.
q, Esc or Ctrl-C leave. In a browser: http://127.0.0.1:9090/, for a program: /live.json.";

pub(super) const MOCK: &str = "\
Examples:
  metorial-proxy mock                                        any secret key, 100 requests in 10 minutes
  metorial-proxy mock --limit 5000/600s --latency 20ms --items 500
  curl -H 'Authorization: Bearer metorial_sk_x' 'http://127.0.0.1:4010/providers?limit=2'
  curl http://127.0.0.1:4010/_mock/requests                  what it received
  curl -d '{\"route\": \"GET /providers\", \"next\": 2, \"status\": 503}' http://127.0.0.1:4010/_mock/faults
  A proxy in front of it:
    METORIAL_UPSTREAM=http://127.0.0.1:4010 METORIAL_SECRET_KEY=metorial_sk_x METORIAL_PUBLISHABLE_KEYS=metorial_pk_x \\
      metorial-proxy";

pub(super) const DEMO: &str = "\
Examples:
  metorial-proxy demo
  metorial-proxy demo --listen 127.0.0.1:0 --admin 127.0.0.1:0    where the usual ports are taken";

pub(super) const COMPLETIONS: &str = "\
Examples:
  bash    metorial-proxy completions bash > ~/.local/share/bash-completion/completions/metorial-proxy
  zsh     metorial-proxy completions zsh > \"${fpath[1]}/_metorial-proxy\"
  fish    metorial-proxy completions fish > ~/.config/fish/completions/metorial-proxy.fish";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::commands::Cli;

    /// The words of each command line in `text`, as a shell would split it.
    fn command_lines(text: &str) -> Vec<Vec<String>> {
        let text = text.replace("\\\n", " ");
        let lines = text.lines().filter_map(|line| Some(&line[line.find("metorial-proxy")?..]));
        let lines = lines.filter(|line| line.starts_with("metorial-proxy ") || *line == "metorial-proxy");
        lines.map(words).collect()
    }

    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        // What stands between two quotes is one word; the explanation beside a command is set off by blanks.
        for (at, part) in line.split('\'').enumerate() {
            match at % 2 {
                1 => words.push(part.to_owned()),
                _ => {
                    let (part, end) = part.split_once("    ").map_or((part, false), |(part, _)| (part, true));
                    let plain = part.split([' ', '…']).filter(|word| !word.is_empty());
                    words.extend(plain.map(str::to_owned));
                    if end {
                        break;
                    }
                }
            }
        }
        let shell = words.iter().position(|word| ["|", ">", "2>&1"].contains(&word.as_str()));
        words.truncate(shell.unwrap_or(words.len()));
        words
    }

    #[test]
    fn every_example_can_be_typed() {
        let all = [ALL, RUN, CHECK, EXPLAIN, SCHEMA, HEALTH, TOP, MOCK, DEMO, COMPLETIONS];
        let mut seen = 0;
        for line in all.iter().flat_map(|text| command_lines(text)) {
            match Cli::try_parse_from(&line) {
                Ok(_) => seen += 1,
                Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => seen += 1,
                Err(error) => panic!("{line:?}: {error}"),
            }
        }
        assert!(seen > 20, "{seen} examples");
        assert!(Cli::try_parse_from(&command_lines("metorial-proxy explain --kye x GET /")[0]).is_err());
    }
}
