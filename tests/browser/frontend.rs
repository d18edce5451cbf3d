//! The proxy as a frontend's page uses it: by `fetch` and by the official SDK, with a publishable key alone.

use crate::process::Process;
use crate::site;
use crate::stage::{PUBLISHABLE_KEY, SECRET_KEY, Scratch, check, mock, proxy, url};

const SMALL_BUDGET: &str = "3";

#[test]
fn a_page_reads_what_its_origin_may_and_others_read_nothing() {
    let folder = Scratch::new("frontend");
    let [listed, foreign] = [(); 2].map(|()| site::serve(&folder.0));
    let allow = "catalog,GET /provider-deployments,GET /server-deployments";
    let (ample_mock, mock_url) = mock("100/600s");
    let mut ample =
        proxy(&[("METORIAL_UPSTREAM", &mock_url), ("METORIAL_ALLOW", allow), ("METORIAL_ORIGINS", &listed)]);
    let (small_mock, small_url) = mock(&format!("{SMALL_BUDGET}/600s"));
    let file = folder.0.join("small.toml");
    let text = format!(
        r#"
        server = {{ listen = ["127.0.0.1:0"], admin = "127.0.0.1:0" }}
        clients.max_retry_after = "20m"
        upstream = {{ url = "{small_url}", retry.max_queue_wait = "0s" }}
        cache.enabled = false

        [[environments]]
        name = "small"
        limit = {{ requests = {SMALL_BUDGET}, window = "600s" }}
        secret_key = {{ env = "METORIAL_SECRET_KEY" }}
        publishable_keys = ["{PUBLISHABLE_KEY}"]
        origins = ["{listed}"]
        allow = ["catalog", "GET /server-deployments"]
        "#
    );
    std::fs::write(&file, text).expect("written");
    let arguments = ["run", "--config", file.to_str().expect("text")];
    let mut small = Process::start(&arguments, &[("METORIAL_SECRET_KEY", SECRET_KEY)]).expect("a process");
    let arguments = [
        ["--site", folder.0.to_str().expect("text")],
        ["--key", PUBLISHABLE_KEY],
        ["--listed", &listed],
        ["--foreign", &foreign],
        ["--proxy", &url(&mut ample, "proxy")],
        ["--mock", &mock_url],
        ["--small-proxy", &url(&mut small, "proxy")],
        ["--small-budget", SMALL_BUDGET],
    ];
    check("frontend.mjs", arguments.as_flattened(), &[&ample_mock, &ample, &small_mock, &small]);
}
