//! What an official SDK is tested against: the stand-in API behind the proxy, with ample limits and with small ones.

use std::error::Error;
use std::process::Command;

use crate::process::Process;

// Different endings: the stand-in API shows the last four characters of the keys it saw.
const SECRET_KEY: &str = "metorial_sk_1b0vKq7TzYwN3mXc5HsRfUeJ2aLgPdQo8iWtEjVxCnBkMyGhZrSuDlFpA9k4";
const PUBLISHABLE_KEY: &str = "metorial_pk_7Tq2mWzXcVbNjHgFdSaQwErTyUiOpLkJhGfDsAzXcVbNmQwErTyUiOpLkP2w";
/// What the SDK spends of the small limits: as small as the API's own is large.
const SMALL_BUDGET: &str = "5";

/// A proxy and the stand-in API behind it.
struct Pair {
    mock: Process,
    mock_url: String,
    proxy: Process,
}

impl Pair {
    /// As the README starts it: variables alone.
    fn ample(routes: [&str; 2]) -> Result<Self, Box<dyn Error>> {
        let (mock, mock_url) = mock(&["--limit", "100/600s", "--items", "57"])?;
        let proxy = Process::start(
            &["run"],
            &[
                ("METORIAL_SECRET_KEY", SECRET_KEY),
                ("METORIAL_PUBLISHABLE_KEYS", PUBLISHABLE_KEY),
                ("METORIAL_UPSTREAM", &mock_url),
                ("METORIAL_ALLOW", &format!("catalog,{}", routes.join(","))),
                ("METORIAL_PROXY_LISTEN", "127.0.0.1:0"),
                ("METORIAL_PROXY_ADMIN", "127.0.0.1:0"),
            ],
        )?;
        Ok(Self { mock, mock_url, proxy })
    }

    /// With a file, and limits that are quickly spent on both sides, for as long as `window`.
    fn small(name: &str, routes: [&str; 2], window: &str, clients: &str) -> Result<Self, Box<dyn Error>> {
        let (mock, mock_url) = mock(&["--limit", &format!("{SMALL_BUDGET}/{window}")])?;
        let file = format!("{}/{}_{name}.toml", env!("CARGO_TARGET_TMPDIR"), env!("CARGO_CRATE_NAME"));
        std::fs::write(
            &file,
            format!(
                r#"
                [server]
                listen = ["127.0.0.1:0"]
                admin = "127.0.0.1:0"

                [clients]
                {clients}

                [upstream]
                url = "{mock_url}"

                [upstream.retry]
                max_queue_wait = "0s"

                [[environments]]
                name = "{name}"
                limit = {{ requests = {SMALL_BUDGET}, window = "{window}" }}
                secret_key = {{ env = "METORIAL_SECRET_KEY" }}
                publishable_keys = ["{PUBLISHABLE_KEY}"]
                allow = {routes:?}

                [cache]
                enabled = false
                "#
            ),
        )?;
        let proxy = Process::start(&["run", "--config", &file], &[("METORIAL_SECRET_KEY", SECRET_KEY)])?;
        Ok(Self { mock, mock_url, proxy })
    }
}

fn mock(limits: &[&str]) -> Result<(Process, String), Box<dyn Error>> {
    let arguments = [&["mock", "--listen", "127.0.0.1:0", "--key", SECRET_KEY], limits].concat();
    let mut mock = Process::start(&arguments, &[])?;
    let url = mock.url("mock")?;
    Ok((mock, url))
}

/// Runs the checks of an SDK that holds nothing but a publishable key, and may list and get what is at `collection`.
/// What they found, one line per check.
pub(crate) fn works_unchanged(checks: &mut Command, collection: &str) -> Result<String, Box<dyn Error>> {
    let [list, get] = [format!("GET {collection}"), format!("GET {collection}/{{id}}")];
    let routes = [list.as_str(), get.as_str()];
    let mut ample = Pair::ample(routes)?;
    let mut tight = Pair::small("tight", routes, "5s", "")?;
    // The wait for its budget is not told as Retry-After.
    let mut distant = Pair::small("distant", routes, "600s", r#"max_retry_after = "1s""#)?;

    let checked = checks
        .args(["--key", PUBLISHABLE_KEY, "--secret-ends", &SECRET_KEY[SECRET_KEY.len() - 4..]])
        .args(["--proxy", &ample.proxy.url("proxy")?, "--mock", &ample.mock_url])
        .args(["--tight-proxy", &tight.proxy.url("proxy")?, "--tight-mock", &tight.mock_url])
        .args(["--distant-proxy", &distant.proxy.url("proxy")?, "--distant-mock", &distant.mock_url])
        .args(["--small-budget", SMALL_BUDGET])
        // Of this test alone, whatever the machine's way out to the internet is.
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
        .output()
        .map_err(|error| format!("{}: {error}", checks.get_program().display()))?;
    let lines = String::from_utf8_lossy(&checked.stdout);
    let errors = String::from_utf8_lossy(&checked.stderr);
    let logs = [&ample, &tight, &distant].map(|pair| pair.mock.log() + "\n" + &pair.proxy.log()).join("\n");
    assert!(checked.status.success(), "{}\n{lines}\n{errors}\n{logs}", checked.status);
    for key in [SECRET_KEY, PUBLISHABLE_KEY] {
        assert!(
            !logs.replace(&format!("--key {SECRET_KEY}"), "").contains(key),
            "a log holds a key:\n{logs}"
        );
    }
    Ok(lines.into_owned())
}
