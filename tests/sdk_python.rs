//! The official Python SDK, unchanged, with nothing but a publishable key, against the binary over real sockets.

#[path = "support/process.rs"]
mod process;
#[path = "support/sdk.rs"]
mod sdk;

use std::error::Error;
use std::process::Command;

#[test]
fn the_official_python_sdk_works_unchanged() -> Result<(), Box<dyn Error>> {
    let python = std::env::var_os("METORIAL_TEST_PYTHON")
        .ok_or("METORIAL_TEST_PYTHON is unset: use tests/run, which installs the SDK and names its Python")?;
    let mut checks = Command::new(python);
    checks.arg("tests/sdk/python_sdk.py");
    println!("{}", sdk::works_unchanged(&mut checks, "/provider-deployments")?);
    Ok(())
}
