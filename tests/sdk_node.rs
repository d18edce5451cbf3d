//! The official Node SDK, unchanged, with nothing but a publishable key, against the binary over real sockets.

#[path = "support/process.rs"]
mod process;
#[path = "support/sdk.rs"]
mod sdk;

use std::error::Error;
use std::process::Command;

#[test]
fn the_official_node_sdk_works_unchanged() -> Result<(), Box<dyn Error>> {
    let folder = std::env::var_os("METORIAL_TEST_NODE")
        .ok_or("METORIAL_TEST_NODE is unset: use tests/run, which installs the SDK and names its folder")?;
    // The published SDK speaks of what an older version of the API calls a deployment.
    let mut checks = Command::new("node");
    checks.arg("tests/sdk/node_sdk.mjs").arg("--sdk").arg(folder);
    println!("{}", sdk::works_unchanged(&mut checks, "/server-deployments")?);
    Ok(())
}
