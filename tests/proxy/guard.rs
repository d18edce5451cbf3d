//! The secrets never get out: not in an answer, however they are written and cut, and not in anything the proxy tells.

use std::fs;

use metorial_proxy::domain::secret_guard::SecretGuard;
use metorial_proxy::mock::{Fault, Reset};

use crate::client::{bearing, raw, request, try_send};
use crate::harness::{KEY, Mock, OTHER_SECRET, Proxy, SECRET, scratch, scripted};
use crate::process::Process;

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn base64(text: &str, alphabet: &[u8; 64]) -> String {
    let sextets = |three: &[u8]| {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        [18, 12, 6, 0].map(|shift| char::from(alphabet[(bits >> shift & 63) as usize]))
    };
    text.as_bytes().chunks(3).flat_map(sextets).collect()
}

/// Both keys are configured, whichever of them it is that comes back.
const ROTATING: &str = "[[environments]]\nnext_secret_key = { env = 'OTHER_SECRET_KEY' }";

/// How `secret` may be written, and how many characters of each way do not speak of it yet.
fn forms(secret: &str) -> Vec<(String, usize)> {
    let percent = |every: usize| -> String {
        let one = |(at, byte): (usize, u8)| match at % every {
            0 => format!("%{byte:02X}"),
            _ => char::from(byte).to_string(),
        };
        secret.bytes().enumerate().map(one).collect()
    };
    let mut all = vec![(secret.to_owned(), 0), (percent(1), 0), (percent(3), 0)];
    // Each alignment, and what really stands before a key.
    for before in ["", "a", "ab", "Bearer "] {
        for alphabet in [STANDARD, URL_SAFE] {
            all.push((
                base64(&format!("{before}{secret} and so on"), alphabet),
                (before.len() * 8).div_ceil(6),
            ));
        }
    }
    all
}

#[tokio::test]
async fn either_key_is_withheld_in_the_name_of_a_field() {
    for secret in [SECRET, OTHER_SECRET] {
        for name in [secret.to_owned(), format!("x-{}-y", base64(&format!("Bearer {secret}!!"), URL_SAFE))] {
            let answer = format!("HTTP/1.1 200 OK\r\n{name}: 1\r\ncontent-length: 2\r\n\r\nok");
            let (url, _) = scripted(move |_| answer.clone().into()).await;
            let proxy = Proxy::start(&url, ROTATING);
            assert_eq!(proxy.get("/providers/x").await.refusal(), (502, "secret_guard".to_owned()), "{name}");
        }
    }
}

#[tokio::test]
async fn every_form_of_either_key_is_withheld_in_a_field_and_in_a_body() {
    for secret in [SECRET, OTHER_SECRET] {
        for (form, _) in forms(secret) {
            for answer in [
                format!("HTTP/1.1 200 OK\r\nx-echo: a{form}\r\ncontent-length: 2\r\n\r\nok"),
                format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n\"{form}\"", form.len() + 2),
            ] {
                let (url, _) = scripted(move |_| answer.clone().into()).await;
                let proxy = Proxy::start(&url, ROTATING);
                // One that is passed on, and one that would be kept.
                for target in ["/providers/x", "/providers"] {
                    let reply = proxy.get(target).await;
                    assert_eq!(reply.refusal(), (502, "secret_guard".to_owned()), "{form}");
                    assert!(!format!("{reply:?}").contains(&form), "{reply:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_stream_of_single_bytes_is_cut_before_the_first_byte_of_either_key() {
    for (form, clean) in [SECRET, OTHER_SECRET].into_iter().flat_map(forms) {
        let text = format!("{{\"filler\": \"{}\", \"echo\": \"{form}\"}}", "x".repeat(300));
        let mut answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
        text.chars().for_each(|byte| answer.push_str(&format!("1\r\n{byte}\r\n")));
        answer.push_str("0\r\n\r\n");
        let (url, _) = scripted(move |_| answer.clone().into()).await;
        let proxy = Proxy::start(&url, ROTATING);
        // A caller of HTTP/1.0 gets the body as it is, without chunks.
        let ask = format!("GET /providers/x HTTP/1.0\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n");
        let answer = raw(proxy.address, &ask).await;
        let passed = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let innocent = text.find(&form).expect("it is there") + clean;
        assert!(text.starts_with(passed) && passed.len() <= innocent, "{form}: {passed}");
        assert!(passed.len() + 64 > innocent, "{form}: what cannot be it passes at once: {passed}");
        let page = proxy.get("/providers").await;
        assert_eq!(
            page.refusal(),
            (502, "secret_guard".to_owned()),
            "a page is whole before it is passed on"
        );
        assert_eq!(proxy.status().cache.entries, 0);
    }
}

#[tokio::test]
async fn no_output_of_the_proxy_holds_a_key() {
    let mock = Mock::start().await;
    let file = scratch(&format!("{}-guard.toml", std::process::id()));
    let text = format!(
        "[server]\nlisten = ['127.0.0.1:0']\nadmin = '127.0.0.1:0'\nworkers = 1\ndrain = {{ settle = '0s' }}\n\
         [upstream]\nurl = '{}'\n[telemetry]\nlog = 'trace'\n\
         [[environments]]\nname = 'main'\nkind = 'production'\npublishable_keys = ['{KEY}']\n\
         secret_key = {{ env = 'METORIAL_SECRET_KEY' }}\nnext_secret_key = {{ env = 'NEXT' }}\n\
         allow = ['catalog', 'POST /provider-deployments']\n",
        mock.url()
    );
    fs::write(&file, text).expect("written");
    let arguments = ["run", "--config", file.to_str().expect("text")];
    let mut process = Process::start(&arguments, &[("METORIAL_SECRET_KEY", SECRET), ("NEXT", OTHER_SECRET)]);
    let process = process.as_mut().expect("a process");
    let mut address = |listener: &str| {
        let url = process.url(listener).unwrap_or_else(|error| panic!("{error}"));
        url.trim_start_matches("http://").parse().expect("an address")
    };
    let (proxy, admin) = (address("proxy"), address("admin"));
    let mut outputs = String::new();
    let mut note = |what: &str, outcome: Result<crate::client::Reply, hyper::Error>| match outcome {
        Ok(reply) => {
            outputs.push_str(&format!("{what} {reply:?}\n{}\n", String::from_utf8_lossy(&reply.body)))
        }
        Err(error) => outputs.push_str(&format!("{what} {error:?}\n")),
    };
    let faults = [
        Fault::default(),
        Fault { echo: true, ..Fault::default() },
        // The first key is refused, the other one taken; then that is echoed; then both are refused.
        Fault { status: Some(401), echo: true, ..Fault::default() },
        Fault { echo: true, ..Fault::default() },
        Fault { status: Some(401), echo: true, next: 2, ..Fault::default() },
        Fault { status: Some(500), echo: true, ..Fault::default() },
        Fault { reset: Some(Reset::AfterHead), ..Fault::default() },
        Fault { truncate: Some(3), ..Fault::default() },
    ];
    for (at, fault) in faults.into_iter().enumerate() {
        // A list page that is not there yet, what is passed through, and a write.
        let page = format!("/providers?search={at}");
        for (method, target) in [
            ("GET", page.as_str()),
            ("GET", "/providers/x"),
            ("HEAD", "/providers/x"),
            ("POST", "/provider-deployments"),
        ] {
            mock.fault(fault.clone());
            let bearer = format!("Bearer {KEY}");
            let fields = [("authorization", bearer.as_str()), ("content-type", "application/json")];
            let body = if method == "POST" { "{}" } else { "" };
            note(target, try_send(proxy, request(method, target, &fields, body)).await);
        }
    }
    // A caller that holds one, in every place that is looked at or not.
    for target in
        [&format!("/providers?key={SECRET}"), &format!("/{SECRET}"), &format!("/providers?search={SECRET}")]
    {
        note("theirs", try_send(proxy, bearing(KEY, target)).await);
    }
    note("theirs", try_send(proxy, bearing(SECRET, "/providers")).await);
    for target in ["/status", "/metrics", "/livez", "/readyz", "/", "/nowhere"] {
        let host = admin.to_string();
        note(target, try_send(admin, request("GET", target, &[("host", &host)], "")).await);
    }
    process.signal("TERM");
    crate::harness::eventually("it has ended", || {
        process.child.try_wait().is_ok_and(|ended| ended.is_some())
    })
    .await;
    while process.listening.recv().is_ok() {}
    outputs.push_str(&process.log());
    for part in [
        "secret_guard",
        "upstream_credentials",
        "another secret key is in use",
        "metorial_proxy_secret_age_seconds",
        "fingerprint",
    ] {
        assert!(outputs.contains(part), "the outputs lack {part}");
    }
    let guard = SecretGuard::new([SECRET, OTHER_SECRET]).expect("a guard");
    for line in outputs.lines() {
        assert!(!guard.found_in(line.as_bytes()), "{line}");
        assert!(!line.contains(&SECRET[12..24]) && !line.contains(&OTHER_SECRET[12..24]), "{line}");
    }
    fs::remove_file(file).expect("removed");
}
