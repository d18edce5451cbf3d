//! The official Python SDK, unchanged, with nothing but a publishable key, against the binary over real sockets.

#[path = "support/process.rs"]
mod process;

use std::error::Error;
use std::process::Command;

use process::Process;

// Different endings: the stand-in API shows the last four characters of the keys it saw.
const SECRET_KEY: &str = "metorial_sk_1b0vKq7TzYwN3mXc5HsRfUeJ2aLgPdQo8iWtEjVxCnBkMyGhZrSuDlFpA9k4";
const PUBLISHABLE_KEY: &str = "metorial_pk_7Tq2mWzXcVbNjHgFdSaQwErTyUiOpLkJhGfDsAzXcVbNmQwErTyUiOpLkP2w";
/// Of the second proxy, whose budget the SDK spends: as small as the API's own is large.
const TIGHT_BUDGET: &str = "5";

#[test]
fn the_official_python_sdk_works_unchanged() -> Result<(), Box<dyn Error>> {
    let python = std::env::var_os("METORIAL_TEST_PYTHON")
        .ok_or("METORIAL_TEST_PYTHON is unset: use tests/run, which installs the SDK and names its Python")?;

    // As the README starts it: variables alone.
    let mut mock = Process::start(
        &["mock", "--listen", "127.0.0.1:0", "--limit", "100/600s", "--items", "57", "--key", SECRET_KEY],
        &[],
    )?;
    let mock_url = mock.url("mock")?;
    let mut proxy = Process::start(
        &["run"],
        &[
            ("METORIAL_SECRET_KEY", SECRET_KEY),
            ("METORIAL_PUBLISHABLE_KEYS", PUBLISHABLE_KEY),
            ("METORIAL_UPSTREAM", &mock_url),
            ("METORIAL_ALLOW", "catalog,GET /provider-deployments,GET /provider-deployments/{id}"),
            ("METORIAL_PROXY_LISTEN", "127.0.0.1:0"),
            ("METORIAL_PROXY_ADMIN", "127.0.0.1:0"),
        ],
    )?;

    // With a file, and limits that are quickly spent on both sides.
    let tight_limit = format!("{TIGHT_BUDGET}/5s");
    let mut tight_mock = Process::start(
        &["mock", "--listen", "127.0.0.1:0", "--limit", &tight_limit, "--key", SECRET_KEY],
        &[],
    )?;
    let tight_mock_url = tight_mock.url("mock")?;
    let file = format!("{}/sdk_python.toml", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(
        &file,
        format!(
            r#"
            [server]
            listen = ["127.0.0.1:0"]
            admin = "127.0.0.1:0"

            [upstream]
            url = "{tight_mock_url}"

            [upstream.retry]
            max_queue_wait = "0s"

            [[environments]]
            name = "tight"
            limit = {{ requests = {TIGHT_BUDGET}, window = "5s" }}
            secret_key = {{ env = "METORIAL_SECRET_KEY" }}
            publishable_keys = ["{PUBLISHABLE_KEY}"]
            allow = ["GET /provider-deployments", "GET /provider-deployments/{{id}}"]

            [cache]
            enabled = false
            "#
        ),
    )?;
    let mut tight_proxy =
        Process::start(&["run", "--config", &file], &[("METORIAL_SECRET_KEY", SECRET_KEY)])?;

    let sdk = Command::new(python)
        .args(["tests/sdk/python_sdk.py", "--key", PUBLISHABLE_KEY])
        .args(["--secret-ends", &SECRET_KEY[SECRET_KEY.len() - 4..]])
        .args(["--proxy", &proxy.url("proxy")?, "--mock", &mock_url])
        .args(["--tight-proxy", &tight_proxy.url("proxy")?, "--tight-mock", &tight_mock_url])
        .args(["--tight-budget", TIGHT_BUDGET])
        // Of this test alone, whatever the machine's way out to the internet is.
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
        .output()?;
    let checks = String::from_utf8_lossy(&sdk.stdout);
    let errors = String::from_utf8_lossy(&sdk.stderr);
    println!("{checks}");
    let logs = [&mock, &proxy, &tight_mock, &tight_proxy].map(Process::log).join("\n");
    assert!(sdk.status.success(), "{}\n{checks}\n{errors}\n{logs}", sdk.status);
    for key in [SECRET_KEY, PUBLISHABLE_KEY] {
        assert!(
            !logs.replace(&format!("--key {SECRET_KEY}"), "").contains(key),
            "a log holds a key:\n{logs}"
        );
    }
    Ok(())
}
