//! The example frontend in `deploy/frontend`, built as its documentation says, in front of real proxies.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::site;
use crate::stage::{PUBLISHABLE_KEY, SECRET_KEY, Scratch, check, mock, modules, proxy, url};

/// The example's files, and what they import, in `folder`.
fn copied(folder: &Path) {
    for file in fs::read_dir("deploy/frontend").expect("the example").map(|file| file.expect("a file").path())
    {
        if file.is_file() {
            fs::copy(&file, folder.join(file.file_name().expect("a name"))).expect("copied");
        }
    }
    let installed = fs::canonicalize(modules()).expect("installed").join("node_modules");
    let named = json(Path::new("deploy/frontend/package.json"));
    for (name, version) in
        ["dependencies", "devDependencies"].iter().flat_map(|kind| named[kind].as_object()).flatten()
    {
        let package = json(&installed.join(name).join("package.json"));
        assert_eq!(&package["version"], version, "{name}: the tests and the example have the same");
    }
    symlink(installed, folder.join("node_modules")).expect("linked");
}

fn json(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn it_lists_deployments_and_says_what_is_wrong() {
    let folder = Scratch::new("example");
    copied(&folder.0);
    let origin = site::serve(&folder.0.join("dist"));
    let (ample_mock, ample_url) = mock("100/600s");
    let (small_mock, small_url) = mock("1/600s");
    let variables = |upstream| {
        [
            ("METORIAL_UPSTREAM", upstream),
            ("METORIAL_ALLOW", "GET /server-deployments"),
            ("METORIAL_ORIGINS", &origin),
        ]
    };
    let mut ample = proxy(&variables(ample_url.as_str()));
    let mut small = proxy(&variables(small_url.as_str()));
    let arguments = [
        ["--folder", folder.0.to_str().expect("text")],
        ["--page", &origin],
        ["--key", PUBLISHABLE_KEY],
        ["--proxy", &url(&mut ample, "proxy")],
        ["--small-proxy", &url(&mut small, "proxy")],
    ];
    check("example.mjs", arguments.as_flattened(), &[&ample_mock, &ample, &small_mock, &small]);
}

#[test]
fn it_takes_no_secret_key() {
    let folder = Scratch::new("example-secret");
    copied(&folder.0);
    let build = |key: &str| {
        let mut node = Command::new("node");
        node.arg("build.js").current_dir(&folder.0);
        node.envs([("METORIAL_URL", "http://127.0.0.1:8080"), ("METORIAL_PUBLISHABLE_KEY", key)]);
        node.output().expect("node runs: tests/run installs it")
    };
    let refused = build(SECRET_KEY);
    assert!(!refused.status.success() && !folder.0.join("dist").exists());
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("metorial_pk_") && !told.contains(SECRET_KEY), "{told}");
    let built = build(PUBLISHABLE_KEY);
    assert!(built.status.success(), "{built:?}");
    let page = fs::read_to_string(folder.0.join("dist/app.js")).expect("a page");
    assert!(page.contains(PUBLISHABLE_KEY));
}
