//! Limits: what callers are told, who is refused, who waits, and that the API's own 429 is never passed on.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::mock::{Algorithm, Fault, Options};
use metorial_proxy::server::Server;
use metorial_proxy::time::{Instant, timeout_at, unix_now};
use serde_json::json;

use crate::client::{Reply, request};
use crate::harness::{KEY, Mock, OTHER, OTHER_KEY, Proxy, eventually, load, pair, scratch};

/// An environment's limit, to be appended to other settings.
fn limit(requests: u32, window: &str) -> String {
    format!("\n[[environments]]\nlimit = {{ requests = {requests}, window = '{window}' }}\n")
}

/// That a reply is a 429 because of `policy`.
#[track_caller]
fn assert_refused_by(policy: &str, reply: &Reply) {
    assert_eq!(reply.refusal(), (429, "rate_limit_exceeded".to_owned()), "{reply:?}");
    assert_eq!(reply.json()["violated-policies"], json!([policy]), "{reply:?}");
}

/// The API's 429 for the next request, with a `Retry-After`.
fn refuse_next(mock: &Mock, retry_after: &str) {
    let headers = [("retry-after".to_owned(), Some(retry_after.to_owned()))].into();
    mock.fault(Fault { status: Some(429), headers, ..Fault::default() });
}

#[tokio::test]
async fn limits_are_told_on_everything_that_was_identified() {
    let (_mock, proxy) = pair(&limit(100, "10m")).await;
    let both = "\"client\";q=1000;w=10, \"environment\";q=100;w=600";
    let left = |reply: &Reply| reply.field("ratelimit").split(";t=").next().unwrap_or("").to_owned();
    for (target, status, remaining) in [
        ("/providers?limit=1", 200, 99),
        ("/providers?limit=1", 200, 99), // a hit
        ("/agents", 403, 99),
        ("/providers/none", 404, 98),
        ("/providers?limit=2", 200, 97),
    ] {
        let reply = proxy.get(target).await;
        assert_eq!(reply.status, status, "{target}");
        assert_eq!(reply.field("ratelimit-policy"), both, "{target}");
        assert_eq!(left(&reply), format!("\"environment\";r={remaining}"), "{target}");
        for name in ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "retry-after"] {
            assert_eq!(reply.field(name), "", "{name} speaks of our key, not of the caller's");
        }
    }
    let unknown = proxy.get_as("metorial_pk_unknown", "/providers").await;
    assert_eq!((unknown.status, unknown.field("ratelimit-policy")), (401, "\"client\";q=1000;w=10"));
    assert!(left(&unknown).starts_with("\"client\";r="), "{unknown:?}");
    let unidentified = proxy.get("//").await;
    assert_eq!((unidentified.status, unidentified.field("ratelimit")), (400, ""));
}

#[tokio::test]
async fn a_spent_budget_is_refused_with_its_policy_and_hits_are_still_served() {
    let (mock, proxy) = pair(&limit(2, "1h")).await;
    assert_eq!(proxy.get("/providers").await.status, 200);
    assert_eq!(proxy.get("/providers/none").await.status, 404);
    let refused = proxy.get("/provider-groups").await;
    assert_refused_by("environment", &refused);
    let body = refused.json();
    assert_eq!(body["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(refused.field("proxy-status"), "metorial-proxy; error=http_request_denied");
    // The wait is told, but not as Retry-After: SDKs would sleep it silently.
    let wait = body["retry_after"].as_u64().expect("seconds");
    assert!((3500..=3620).contains(&wait), "{wait}");
    assert_eq!(refused.field("retry-after"), "");
    assert_eq!(refused.field("ratelimit"), format!("\"environment\";r=0;t={wait}"));
    assert_refused_by("environment", &proxy.post("/provider-deployments", "{}").await);
    assert!(proxy.get("/providers").await.field("cache-status").contains("hit"));
    assert_eq!(mock.received(), 2);
}

#[tokio::test]
async fn a_long_wait_for_the_addresses_budget_is_told_as_one_for_the_environment() {
    let (_mock, proxy) = pair("upstream.egress_limit = { requests = 1, window = '1h' }").await;
    assert_eq!(proxy.get("/providers").await.status, 200);
    let refused = proxy.get("/provider-groups").await;
    assert_refused_by("egress", &refused);
    assert_eq!(refused.field("retry-after"), "", "SDKs would sleep it silently");
    let wait = refused.json()["retry_after"].as_u64().expect("seconds");
    assert!((3500..=3620).contains(&wait), "{wait}");
    assert_eq!(refused.field("ratelimit"), format!("\"environment\";r=0;t={wait}"));
}

#[tokio::test]
async fn a_short_wait_is_told_as_retry_after_where_nobody_may_wait() {
    let toml = format!("upstream.retry.max_queue_wait = '0s'\n{}", limit(1, "30s"));
    let (_mock, proxy) = pair(&toml).await;
    assert_eq!(proxy.get("/providers").await.status, 200);
    let refused = proxy.get("/provider-groups").await;
    assert_refused_by("environment", &refused);
    let wait: u64 = refused.field("retry-after").parse().expect("seconds");
    assert!((1..=31).contains(&wait), "{wait}");
    assert_eq!(refused.json()["retry_after"], wait);
}

#[tokio::test]
async fn a_wait_that_the_api_names_is_told_in_seconds_on_503_and_no_longer_than_callers_may_sleep() {
    let (mock, proxy) = pair("clients.max_retry_after = '30s'").await;
    let told = async |status: Option<u16>, target: &str, line: &str| {
        let headers = [("retry-after".to_owned(), Some(line.to_owned()))].into();
        mock.fault(Fault { status, headers, ..Fault::default() });
        let reply = proxy.get(target).await;
        assert_eq!(reply.status, status.unwrap_or(200), "{reply:?}");
        reply.field("retry-after").to_owned()
    };
    let date = |seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_now() + seconds));
    // A list comes by way of the cache, which shares what it could not keep; one item does not.
    for target in ["/providers", "/providers/x"] {
        assert_eq!(told(Some(503), target, "30").await, "30");
        assert_eq!(told(Some(503), target, "31").await, "");
        let seconds: u64 = told(Some(503), target, &date(20)).await.parse().expect("seconds");
        assert!((15..=20).contains(&seconds), "{seconds}");
        assert_eq!(told(Some(503), target, &date(3600)).await, "");
        assert_eq!(told(Some(404), target, "7").await, "");
        assert_eq!(told(Some(500), target, "7").await, "");
    }
    assert_eq!(told(None, "/providers", "7").await, "");
    let hit = proxy.get("/providers").await;
    assert!(hit.field("cache-status").contains("hit"), "{hit:?}");
    assert_eq!(hit.field("retry-after"), "");
}

#[tokio::test]
async fn environments_with_one_secret_key_draw_from_one_budget() {
    let spend = async |secret: &str| {
        let toml = format!(
            "{OTHER}\nsecret_key = {{ env = '{secret}' }}\nlimit = {{ requests = 2, window = '1h' }}"
        );
        let toml =
            toml.replacen("[[environments]]", "[[environments]]\nlimit = { requests = 2, window = '1h' }", 1);
        let (_mock, proxy) = pair(&toml).await;
        let mut statuses = Vec::new();
        for (key, target) in [
            (KEY, "/providers"),
            (OTHER_KEY, "/providers"),
            (OTHER_KEY, "/provider-groups"),
            (KEY, "/provider-groups"),
        ] {
            statuses.push(proxy.get_as(key, target).await.status);
        }
        statuses
    };
    assert_eq!(spend("METORIAL_SECRET_KEY").await, [200, 200, 429, 429]);
    assert_eq!(spend("OTHER_SECRET_KEY").await, [200, 200, 200, 200]);
}

#[tokio::test]
async fn only_what_goes_upstream_spends_the_budget() {
    let (mock, proxy) = pair(&format!("server.max_request_body = '1KiB'\n{}", limit(1, "1h"))).await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/agents").await.status, 403);
        assert_eq!(proxy.get("//").await.status, 400);
        assert_eq!(proxy.get_as("metorial_pk_unknown", "/providers").await.status, 401);
        assert_eq!(proxy.call("TRACE", "/providers", &[], "").await.status, 405);
        assert_eq!(proxy.post("/provider-deployments", &"x".repeat(2000)).await.status, 413);
    }
    assert_eq!(proxy.get("/providers").await.status, 200);
    assert_refused_by("environment", &proxy.get("/provider-groups").await);
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn a_request_that_was_never_sent_is_given_back() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let toml = format!("upstream.retry.max_attempts = 1\n{}", limit(1, "1h"));
    let proxy = Proxy::start(format!("http://{address}"), &toml);
    for _ in 0..3 {
        assert_eq!(proxy.get("/providers").await.status, 502);
    }
}

#[tokio::test]
async fn a_client_has_a_limit_of_its_own_and_spends_nothing_beyond_it() {
    let (mock, proxy) = pair("clients.limit = { requests = 3, window = '1h' }").await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/providers").await.status, 200);
    }
    let refused = proxy.get("/provider-groups").await;
    assert_refused_by("client", &refused);
    assert_eq!(refused.field("ratelimit-policy"), "\"client\";q=3;w=3600", "who calls was not asked");
    assert!(refused.field("ratelimit").starts_with("\"client\";r=0;t="), "{refused:?}");
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn guessing_keys_costs_more_than_asking() {
    let (_mock, proxy) = pair("clients.limit = { requests = 20, window = '1h' }").await;
    for _ in 0..2 {
        assert_eq!(proxy.get_as("metorial_pk_guess", "/providers").await.status, 401);
    }
    assert_refused_by("client", &proxy.get("/providers").await);
}

#[tokio::test]
async fn clients_behind_a_trusted_proxy_are_told_apart_and_nobody_else_can_pretend() {
    let toml = "clients.limit = { requests = 1, window = '1h' }";
    let from = async |proxy: &Proxy, address: &str| {
        proxy.call("GET", "/providers", &[("x-forwarded-for", address)], "").await.status
    };
    let (_mock, proxy) = pair(&format!("{toml}\nserver.trusted_proxies = ['127.0.0.0/8']")).await;
    assert_eq!(from(&proxy, "203.0.113.1").await, 200);
    assert_eq!(from(&proxy, "203.0.113.2").await, 200);
    assert_eq!(from(&proxy, "6.6.6.6, 203.0.113.1").await, 429, "the last hop is the one that is known");
    assert_eq!(from(&proxy, "2001:db8::1").await, 200);
    assert_eq!(from(&proxy, "2001:db8::2").await, 429, "of the same prefix");
    let (_mock, proxy) = pair(toml).await;
    assert_eq!(from(&proxy, "203.0.113.1").await, 200);
    assert_eq!(from(&proxy, "203.0.113.2").await, 429);
}

#[tokio::test]
async fn all_environments_together_keep_within_what_one_address_may_send() {
    let toml = format!(
        "upstream.egress_limit = {{ requests = 1, window = '1h' }}\n{OTHER}\nsecret_key = {{ env = 'OTHER_SECRET_KEY' }}"
    );
    let (mock, proxy) = pair(&toml).await;
    assert_eq!(proxy.get("/providers").await.status, 200);
    assert_refused_by("egress", &proxy.get_as(OTHER_KEY, "/providers").await);
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn a_request_waits_its_turn_and_the_api_never_has_to_refuse() {
    let quota = Quota { requests: 3, window: Duration::from_secs(1) };
    let mock = Mock::with(Options { limit: quota, ..Options::default() }).await;
    // Half a second longer than the API's: this machine may be busy.
    let proxy =
        Proxy::start(mock.url(), &format!("upstream.retry.max_queue_wait = '15s'\n{}", limit(3, "1500ms")));
    let get = |item: u32| {
        let proxy = &proxy;
        async move { proxy.get(&format!("/providers/{item}")).await.status }
    };
    let statuses = tokio::join!(get(1), get(2), get(3), get(4), get(5), get(6));
    assert_eq!(statuses, (404, 404, 404, 404, 404, 404));
    assert_eq!((mock.handle.counted(), mock.handle.refused()), (6, 0));
}

#[tokio::test]
async fn one_client_cannot_fill_the_queue() {
    let toml = format!("upstream.retry.max_queue_per_client = 1\n{}", limit(1, "3s"));
    let (mock, proxy) = pair(&toml).await;
    assert_eq!(proxy.get("/providers/1").await.status, 404);
    let (one, other) = tokio::join!(proxy.get("/providers/2"), proxy.get("/providers/3"));
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [404, 429]);
    assert_eq!(mock.received(), 2);
}

#[tokio::test]
async fn a_429_of_the_api_is_waited_out_where_that_fits() {
    let (mock, proxy) = pair("").await;
    refuse_next(&mock, "1");
    assert_eq!(proxy.get("/providers").await.status, 200);
    refuse_next(&mock, "1");
    let body = r#"{"name": "Again"}"#;
    let created = proxy.post("/provider-deployments", body).await;
    assert_eq!((created.status, &created.json()["name"]), (200, &json!("Again")));
    assert_eq!(mock.received(), 4);
}

#[tokio::test]
async fn a_429_of_the_api_that_takes_too_long_shuts_the_budget_and_becomes_our_own() {
    let toml = format!("{OTHER}\nsecret_key = {{ env = 'OTHER_SECRET_KEY' }}");
    let (mock, proxy) = pair(&toml).await;
    assert_eq!(proxy.get("/providers").await.status, 200);
    refuse_next(&mock, "120");
    let refused = proxy.get("/provider-groups").await;
    assert_refused_by("upstream", &refused);
    let wait = refused.json()["retry_after"].as_u64().expect("seconds");
    assert!((115..=120).contains(&wait), "{wait}");
    assert!(refused.field("ratelimit").starts_with("\"environment\";r=0;"), "{refused:?}");
    let received = mock.received();
    for target in ["/provider-groups", "/provider-listings", "/providers/1"] {
        assert_refused_by("upstream", &proxy.get(target).await);
    }
    assert_eq!(mock.received(), received, "nothing goes upstream meanwhile");
    assert!(proxy.get("/providers").await.field("cache-status").contains("hit"));
    assert_eq!(proxy.get_as(OTHER_KEY, "/providers").await.status, 200, "it was another key's 429");
}

#[tokio::test]
async fn a_429_of_the_edge_shuts_the_address_for_all_environments() {
    let (mock, proxy) = pair(&format!("{OTHER}\nsecret_key = {{ env = 'OTHER_SECRET_KEY' }}")).await;
    let without = ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"].map(|name| (name, None));
    let fields = without.into_iter().chain([("retry-after", Some("120"))]);
    let headers = fields.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))).collect();
    mock.fault(Fault { status: Some(429), headers, ..Fault::default() });
    assert_refused_by("upstream", &proxy.get("/providers").await);
    assert_refused_by("upstream", &proxy.get_as(OTHER_KEY, "/providers").await);
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn a_429_is_waited_out_in_a_window_shorter_than_a_second_too() {
    let (mock, proxy) = pair(&limit(100, "500ms")).await;
    refuse_next(&mock, "1");
    assert_eq!(proxy.get("/providers").await.status, 200);
}

#[tokio::test]
async fn under_backlog_the_api_never_has_to_refuse_however_it_counts_and_next_to_nothing_is_left() {
    let quota = Quota { requests: 100, window: Duration::from_secs(2) };
    let run = async |algorithm| {
        let mock = Mock::with(Options { limit: quota, algorithm, ..Options::default() }).await;
        let proxy = Proxy::start(
            mock.url(),
            &format!("server.trusted_proxies = ['127.0.0.1']\n{}", limit(100, "2s")),
        );
        let until = Instant::now() + quota.window * 3 - Duration::from_millis(200);
        let client = async |client: u32| {
            let address = format!("203.0.113.{client}");
            while Instant::now() < until {
                let fields = [("x-forwarded-for", address.as_str())];
                let ask = proxy.call("GET", "/providers/x", &fields, "");
                let status = timeout_at(until, ask).await.map_or(404, |reply| reply.status);
                assert!([404, 429].contains(&status), "{status}");
            }
        };
        join_all((0..50).map(client)).await;
        (mock.handle.counted(), mock.handle.refused())
    };
    let (trailing, aligned, lazy, bucket) = tokio::join!(
        run(Algorithm::Trailing),
        run(Algorithm::Aligned),
        run(Algorithm::Lazy),
        run(Algorithm::Bucket)
    );
    for (counted, refused) in [trailing, aligned, lazy, bucket] {
        // Of three windows, and what is under way at the end of them.
        assert!(counted >= 285, "{counted}");
        assert_eq!(refused, 0);
    }
}

#[tokio::test]
async fn one_client_leaves_a_reserve_for_newcomers_once_a_second_is_known() {
    let toml = format!("server.trusted_proxies = ['127.0.0.1']\n{}", limit(100, "1h"));
    let (mock, proxy) = pair(&toml).await;
    let from = async |client: u32| {
        let address = format!("203.0.113.{client}");
        proxy.call("GET", "/providers/x", &[("x-forwarded-for", address.as_str())], "").await
    };
    assert_eq!(from(0).await.status, 404, "a second client is known");
    let mut greedy = 0;
    let refused = loop {
        let reply = from(1).await;
        match reply.status {
            404 => greedy += 1,
            _ => break reply,
        }
    };
    assert_eq!(greedy, 79, "what is left but for the reserve");
    assert_refused_by("environment", &refused);
    assert!(refused.field("ratelimit").starts_with("\"environment\";r=0;t="), "{refused:?}");
    for newcomer in 10..30 {
        assert_eq!(from(newcomer).await.status, 404, "{newcomer}");
    }
    assert_eq!(mock.handle.counted(), 100);
    assert_refused_by("environment", &from(40).await);
}

#[tokio::test]
async fn a_client_that_waits_as_long_as_it_was_told_is_served_and_not_a_second_before() {
    let (_mock, proxy) = pair(&format!("upstream.retry.max_queue_wait = '0s'\n{}", limit(2, "3s"))).await;
    for _ in 0..2 {
        assert_eq!(proxy.get("/providers/x").await.status, 404);
    }
    let refused = proxy.get("/providers/x").await;
    let wait: u64 = refused.field("retry-after").parse().expect("seconds");
    assert_eq!(refused.field("ratelimit"), format!("\"environment\";r=0;t={wait}"));
    assert_eq!(wait, 4, "three seconds and the guard, rounded up");
    let told = Instant::now();
    eventually("its slot has come", || proxy.status().environments[0].remaining > 0).await;
    assert!(told.elapsed() > Duration::from_secs(wait - 2) && told.elapsed() <= Duration::from_secs(wait));
    assert_eq!(proxy.get("/providers/x").await.status, 404);
}

#[tokio::test]
async fn a_caller_that_leaves_while_it_waits_frees_its_place_also_where_a_page_was_asked_for() {
    let (mock, proxy) = pair(&limit(1, "4s")).await;
    assert_eq!(proxy.get("/providers/x").await.status, 404);
    let queued = || proxy.status().environments[0].queued;
    for target in ["/providers/y", "/providers?limit=7"] {
        let leaving = async {
            tokio::select! {
                reply = proxy.get(target) => panic!("{reply:?}"),
                () = eventually("it waits", || queued() == 1) => {}
            }
        };
        leaving.await;
        eventually("its place is free", || queued() == 0).await;
    }
    eventually("the window is over", || proxy.status().environments[0].remaining == 1).await;
    assert_eq!(mock.received(), 1, "neither was sent, and neither will be");
    assert_eq!(proxy.get("/providers?limit=7").await.status, 200, "and the next who asks is served");
}

#[tokio::test]
async fn after_a_restart_upstreams_first_answer_tells_what_was_spent_before() {
    let quota = Quota { requests: 10, window: Duration::from_secs(3600) };
    let mock = Mock::with(Options { limit: quota, ..Options::default() }).await;
    let spend = async |proxy: &Proxy, asked: usize| {
        let replies = join_all((0..asked).map(|_| proxy.get("/providers/x"))).await;
        replies.iter().filter(|reply| reply.status == 404).count()
    };
    assert_eq!(spend(&Proxy::start(mock.url(), &limit(10, "1h")), 7).await, 7);
    assert_eq!(spend(&Proxy::start(mock.url(), &limit(10, "1h")), 7).await, 3);
    assert_eq!((mock.handle.counted(), mock.handle.refused()), (10, 0));
}

#[tokio::test]
async fn a_state_file_keeps_what_was_spent_also_where_upstream_tells_nothing() {
    let without = ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"];
    let headers: BTreeMap<_, _> = without.iter().map(|name| ((*name).to_owned(), None)).collect();
    let (mock, state) = (Mock::start().await, scratch(&format!("state-{}.json", std::process::id())));
    mock.fault(Fault { headers, next: 1000, ..Fault::default() });
    let toml = format!("store.state_file = '{}'\n{}", state.display(), limit(10, "1h"));
    for (name, served) in [("main", 6), ("renamed", 4), ("main", 0)] {
        let proxy = Proxy::start(mock.url(), &format!("{toml}name = '{name}'\n"));
        let replies = join_all((0..6).map(|_| proxy.get("/providers/x"))).await;
        assert_eq!(replies.iter().filter(|reply| reply.status == 404).count(), served, "{name}");
        proxy.into_server().drain(Duration::ZERO, Duration::from_secs(5), std::future::pending()).await;
    }
    // Another secret is not another account.
    let rotated = format!("{toml}secret_key = {{ env = 'OTHER_SECRET_KEY' }}\n");
    let proxy = Proxy::start(mock.url(), &rotated);
    assert_refused_by("environment", &proxy.get("/providers/x").await);
    proxy.into_server().drain(Duration::ZERO, Duration::from_secs(5), std::future::pending()).await;
    let text = std::fs::read_to_string(&state).expect("a file");
    assert!(!text.contains("metorial_"), "{text}");
    std::fs::remove_file(&state).expect("removed");
    assert_eq!(mock.received(), 10);
}

#[tokio::test]
async fn a_state_file_that_makes_no_sense_is_no_reason_not_to_start_and_one_that_cannot_be_written_is() {
    let (mock, state) = (Mock::start().await, scratch(&format!("nonsense-{}.json", std::process::id())));
    std::fs::write(&state, "{").expect("written");
    let proxy = Proxy::start(mock.url(), &format!("store.state_file = '{}'", state.display()));
    assert_eq!(proxy.get("/providers/x").await.status, 404);
    let text = std::fs::read_to_string(&state).expect("a file");
    assert!(text.starts_with("{\"format\":1,"), "{text}");
    proxy.into_server().drain(Duration::ZERO, Duration::from_secs(5), std::future::pending()).await;

    // One that was not its process' last word leaves something unknown, which nobody tells of our address.
    // After a window it has lapsed.
    for (last, ago, left) in [(true, 2, 1000), (false, 2, 800), (false, 3600, 1000)] {
        let saved_at = metorial_proxy::time::unix_now() - ago;
        let text = format!("{{\"format\":1,\"saved_at\":{saved_at},\"last\":{last},\"budgets\":[]}}");
        std::fs::write(&state, text).expect("written");
        let proxy = Proxy::start(mock.url(), &format!("store.state_file = '{}'", state.display()));
        assert_eq!(proxy.status().egress.remaining, left, "{last} {ago}");
        let second = load(mock.url(), &format!("store.state_file = '{}'", state.display())).expect("loads");
        let Err(errors) = Server::start(&second) else { panic!("it started") };
        assert!(errors[0].message.contains("another instance"), "{errors:?}");
        proxy.into_server().drain(Duration::ZERO, Duration::from_secs(5), std::future::pending()).await;
    }
    std::fs::remove_file(&state).expect("removed");

    let nowhere = scratch("no-such-folder").join("state.json");
    let config = load(mock.url(), &format!("store.state_file = '{}'", nowhere.display())).expect("loads");
    let Err(errors) = Server::start(&config) else { panic!("it started") };
    assert_eq!(errors[0].place, "store.state_file");
    assert!(errors[0].message.contains("cannot be written"), "{errors:?}");
}

#[tokio::test]
async fn a_token_bucket_is_there_for_those_who_ask_for_it() {
    let toml =
        format!("upstream.retry.max_queue_wait = '0s'\n{}algorithm = 'token-bucket'\n", limit(4, "2s"));
    let (_mock, proxy) = pair(&toml).await;
    for _ in 0..4 {
        assert_eq!(proxy.get("/providers/x").await.status, 404);
    }
    let refused = proxy.get("/providers/x").await;
    assert_refused_by("environment", &refused);
    assert_eq!(refused.field("retry-after"), "1", "the next token, not the next window");
}

#[tokio::test]
async fn what_others_spend_on_the_same_account_is_taken_into_account() {
    let quota = Quota { requests: 4, window: Duration::from_secs(3600) };
    let mock = Mock::with(Options { limit: quota, ..Options::default() }).await;
    let proxy = Proxy::start(mock.url(), &limit(4, "1h"));
    let secret = format!("Bearer {}", crate::harness::SECRET);
    let direct = request("GET", "/providers/1", &[("authorization", &secret)], "");
    for _ in 0..2 {
        crate::client::try_send(mock.address, direct.clone()).await.expect("an answer");
    }
    assert_eq!(proxy.get("/providers/1").await.status, 404, "this answer tells of the others");
    assert_eq!(proxy.get("/providers/1").await.status, 404);
    assert_refused_by("environment", &proxy.get("/providers/1").await);
    assert_eq!(mock.handle.refused(), 0);
}

#[tokio::test]
async fn what_others_spent_comes_back_when_it_does_upstream() {
    let quota = Quota { requests: 6, window: Duration::from_secs(2) };
    let mock = Mock::with(Options { limit: quota, ..Options::default() }).await;
    let proxy =
        Proxy::start(mock.url(), &format!("upstream.retry.max_queue_wait = '0s'\n{}", limit(6, "2s")));
    let secret = format!("Bearer {}", crate::harness::SECRET);
    let direct = request("GET", "/providers/1", &[("authorization", &secret)], "");
    for _ in 0..4 {
        crate::client::try_send(mock.address, direct.clone()).await.expect("an answer");
    }
    let remaining = || proxy.status().environments[0].remaining;
    assert_eq!(proxy.get("/providers/1").await.status, 404);
    assert_eq!(remaining(), 1);
    eventually("all of it is there again", || remaining() == 6).await;
    for _ in 0..6 {
        assert_eq!(proxy.get("/providers/1").await.status, 404);
    }
    assert_eq!(mock.handle.refused(), 0);
}

#[tokio::test]
async fn a_limit_of_the_operators_own_is_not_mistaken_for_the_apis() {
    // The API counts over ten minutes, this environment over one second.
    let (_mock, proxy) = pair(&format!("upstream.retry.max_queue_wait = '0s'\n{}", limit(4, "1s"))).await;
    for _ in 0..4 {
        assert_eq!(proxy.get("/providers/1").await.status, 404);
    }
    let status = || proxy.status().environments[0].remaining;
    eventually("the window has passed", || status() == 4).await;
    for _ in 0..4 {
        assert_eq!(proxy.get("/providers/1").await.status, 404);
    }
}

#[tokio::test]
async fn no_caller_takes_its_address_out_of_what_a_proxy_in_front_tells() {
    for header in ["x-forwarded-for", "forwarded"] {
        let (_mock, proxy) = pair(&format!(
            "server.trusted_proxies = ['127.0.0.1']\nserver.client_ip_header = '{header}'\n\
             clients.limit = {{ requests = 1, window = '1h' }}"
        ))
        .await;
        let address = if header == "forwarded" { "for=203.0.113.1" } else { "203.0.113.1" };
        let ask = async |fields: &[(&str, &str)]| proxy.call("GET", "/providers", fields, "").await.status;
        assert_eq!(ask(&[(header, address)]).await, 200);
        assert_eq!(ask(&[(header, address)]).await, 429);
        assert_eq!(ask(&[(header, address), ("connection", header)]).await, 429, "{header}");
    }
}
