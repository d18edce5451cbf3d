//! The dashboard on the admin port: it follows what happens, explains, is for everybody, and tells nothing secret.

use std::env;
use std::fs;

use crate::process::Process;
use crate::stage::{PUBLISHABLE_KEY, SECRET_KEY, Scratch, check, mock, url};

const LIMIT: &str = "40";
const ADMIN_TOKEN: &str = "an-admin-token-Zq8vX2mW7TzYwN3mXc5HsRfU";
/// As the balancer tells it; every other address of the test is loopback.
const CLIENT: &str = "198.51.100.23";

#[test]
fn the_dashboard_follows_what_happens_and_tells_nothing_secret() {
    let folder = Scratch::new("dashboard");
    let (mock, mock_url) = mock(&format!("{LIMIT}/600s"));
    let file = folder.0.join("proxy.toml");
    let text = format!(
        r#"
        [server]
        listen = ["127.0.0.1:0"]
        admin = "127.0.0.1:0"
        admin_token = {{ env = "ADMIN_TOKEN" }}
        trusted_proxies = ["127.0.0.1/32"]

        [upstream]
        url = "{mock_url}"
        retry.max_queue_wait = "0s"

        [[environments]]
        name = "storefront"
        limit = {{ requests = {LIMIT}, window = "600s" }}
        newcomer_reserve = 0
        secret_key = {{ env = "METORIAL_SECRET_KEY" }}
        publishable_keys = ["{PUBLISHABLE_KEY}"]

        [cache]
        ttl = "10m"
        "#
    );
    fs::write(&file, text).expect("written");
    let variables = [("METORIAL_SECRET_KEY", SECRET_KEY), ("ADMIN_TOKEN", ADMIN_TOKEN)];
    let mut proxy =
        Process::start(&["run", "--config", file.to_str().expect("text")], &variables).expect("a process");
    let left = folder.0.join("left");
    fs::create_dir(&left).expect("a folder");
    let (proxy_url, admin_url) = (url(&mut proxy, "proxy"), url(&mut proxy, "admin"));
    let mut arguments = vec!["--key", PUBLISHABLE_KEY, "--proxy", &proxy_url, "--admin", &admin_url];
    arguments.extend(["--limit", LIMIT, "--client", CLIENT, "--left", left.to_str().expect("text")]);
    // `METORIAL_TEST_SCREENSHOTS=config/screenshots cargo test --test browser dashboard` takes those of the README.
    let screenshots = env::var("METORIAL_TEST_SCREENSHOTS").ok();
    if let Some(folder) = &screenshots {
        arguments.extend(["--screenshots", folder]);
    }
    check("dashboard.mjs", &arguments, &[&mock, &proxy]);

    let mut seen = 0;
    for left in fs::read_dir(&left).expect("what was seen") {
        let left = left.expect("a file").path();
        let text = fs::read_to_string(&left).expect("text");
        assert!(text.contains("storefront"), "{}: nothing of this proxy\n{text}", left.display());
        for hidden in
            [SECRET_KEY, &SECRET_KEY[12..24], PUBLISHABLE_KEY, &PUBLISHABLE_KEY[12..24], ADMIN_TOKEN, CLIENT]
        {
            assert!(!text.contains(hidden), "{} tells {hidden}\n{text}", left.display());
        }
        seen += 1;
    }
    assert_eq!(seen, 6);
}
