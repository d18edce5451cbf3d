use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::domain::key::SecretKey;
use crate::domain::operation::OPERATIONS;
use crate::mock::tests::support::{PUBLISHABLE, SECRET, request, roomy, start};
use crate::mock::{Options, page};

const LIST: &str = "/provider-deployments";

fn ids(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().expect("items");
    items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test]
async fn a_list_is_paged_to_its_end_by_the_last_items_id() {
    let server = roomy().await;
    let mut all = Vec::new();
    let mut target = LIST.to_owned();
    let mut sizes = Vec::new();
    loop {
        let page = server.json(&target).await;
        assert_eq!(page["__typename"], "list");
        assert_eq!(page["pagination"]["has_more_before"], json!(!all.is_empty()));
        sizes.push(ids(&page).len());
        all.extend(ids(&page));
        if page["pagination"]["has_more_after"] == json!(false) {
            break;
        }
        target = format!("{LIST}?after={}", all.last().expect("an id"));
    }
    assert_eq!(sizes, [20, 20, 17]);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 57);
    // A cursor of the client's own making, the other order, and the prefixed forms.
    let cursor = page::encode("before", &all[3]);
    assert_eq!(ids(&server.json(&format!("{LIST}?cursor={cursor}&limit=2")).await), all[1..3]);
    assert_eq!(ids(&server.json(&format!("{LIST}?order=desc&limit=1")).await), all[56..]);
    for prefix in ["/instances/ins_1", "/dashboard/instances/ins_1"] {
        assert_eq!(ids(&server.json(&format!("{prefix}{LIST}?limit=3")).await), all[..3]);
    }
    let archived = server.json(&format!("{LIST}?status%5B0%5D=archived&limit=100")).await;
    assert_eq!(ids(&archived).len(), 7);
    let slack = server.json(&format!("{LIST}?search=slack&status=active&status=archived")).await;
    assert_eq!(ids(&slack).len(), 5);
    let nested = server.json("/callbacks/cal_1/instances").await;
    assert_ne!(ids(&nested), ids(&server.json("/callbacks/cal_2/instances").await));
    for bad in ["limit=0", "limit=101", "limit=x", "order=up"] {
        let reply = server.get(&format!("{LIST}?{bad}")).await;
        let body = reply.json();
        assert_eq!(
            (reply.status, &body["code"], &body["entity"]),
            (400, &json!("invalid_data"), &json!("query"))
        );
    }
}

#[tokio::test]
async fn another_process_would_hold_the_same_items() {
    let (one, other) = (roomy().await, roomy().await);
    assert_eq!(one.json(LIST).await, other.json(LIST).await);
    let few = start(Options { items: 3, ..Options::default() }).await;
    assert_eq!(ids(&few.json(LIST).await), ids(&one.json(LIST).await)[..3]);
}

#[tokio::test]
async fn writes_change_what_is_read() {
    let server = roomy().await;
    let made = server.post(LIST, r#"{"name": "Mine", "metadata": {"a": 1}}"#).await;
    assert_eq!(made.status, 200);
    let made = made.json();
    let path = format!("{LIST}/{}", made["id"].as_str().expect("an id"));
    assert_eq!(server.json(&path).await, made);
    let last = server.json(&format!("{LIST}?order=desc&limit=1")).await;
    assert_eq!(last["items"], json!([made]));
    let changed = server.write("PATCH", &path, r#"{"name": "Yours"}"#).await.json();
    assert_eq!((&changed["name"], &changed["metadata"]), (&json!("Yours"), &json!({"a": 1})));
    assert_eq!(server.json(&path).await["name"], "Yours");
    let deleted = server.call("DELETE", &path, &[("authorization", SECRET)], "").await;
    assert_eq!((deleted.status, deleted.json()), (200, changed));
    let gone = server.get(&path).await;
    assert_eq!((gone.status, &gone.json()["entity"]), (404, &json!("provider_deployment")));
    assert_eq!(gone.json()["id"], made["id"]);
    let alert = server.json("/monitor-alerts?limit=1").await["items"][0].clone();
    let action = format!("/monitor-alerts/{}/resolve", alert["id"].as_str().expect("an id"));
    assert_eq!(server.post(&action, "{}").await.json(), alert);
    assert_eq!(server.post("/monitor-alerts/nope/resolve", "{}").await.status, 404);
}

#[tokio::test]
async fn every_read_of_the_table_answers_and_secrets_stand_where_the_table_says() {
    let server = roomy().await;
    for operation in OPERATIONS.iter().filter(|operation| operation.method == http::Method::GET) {
        let (template, secret) = (&operation.template, operation.returns_secret);
        let mut path = template.replace(['{', '}'], "");
        let is_item = template.ends_with('}');
        if is_item {
            let list = path.rsplit_once('/').expect("a parent").0.to_owned();
            let Some(_) =
                OPERATIONS.iter().find(|op| op.list && template.starts_with(&format!("{}/", op.template)))
            else {
                continue;
            };
            let page = server.get(&format!("{list}?limit=1")).await;
            if page.status != 200 {
                continue;
            }
            path = format!("{list}/{}", ids(&page.json())[0]);
        }
        let body = server.json(&path).await;
        let item = if operation.list { &body["items"][0] } else { &body };
        let has_secret =
            ["client_secret", "signing_secret", "secret"].iter().any(|field| item.get(*field).is_some());
        assert_eq!(has_secret, secret, "{template}: {item}");
        assert!(item["id"].is_string() && item["object"].is_string(), "{template}");
    }
}

#[tokio::test]
async fn who_calls_is_decided_as_the_api_decides_it() {
    let server = roomy().await;
    for (headers, target, message) in [
        (&[][..], LIST, "Missing Authorization header"),
        (&[], "/unheard-of", "Missing Authorization header"),
        (&[("authorization", "Bearer nonsense")], LIST, "Invalid API key"),
        (
            &[("authorization", "bearer metorial_sk_1")],
            "/sessions?key=metorial_sk_1",
            "Malformed Authorization header",
        ),
    ] {
        let reply = server.call("GET", target, headers, "").await;
        let body = reply.json();
        assert_eq!((reply.status, &body["message"]), (401, &json!(message)));
        assert_eq!((&body["code"], &body["__typename"]), (&json!("unauthorized"), &json!("error")));
        assert_eq!(reply.field("access-control-allow-credentials"), "true");
        assert_eq!((reply.field("metorial-req-id"), reply.field("ratelimit-limit")), ("", ""));
    }
    let echo = server.call("GET", LIST, &[("authorization", "Basic c2VjcmV0")], "").await.json();
    assert_eq!(echo["description"], r#"Expected "Bearer <token>", got "Basic c2VjcmV0""#);
    for target in ["/sessions?token=metorial_sk_1", "/sessions?key=metorial_sk_1"] {
        assert_eq!(server.call("GET", target, &[], "").await.status, 200);
    }
    let only = SecretKey::parse("metorial_sk_right").expect("a key");
    let server = start(Options { key: Some(only), ..Options::default() }).await;
    assert_eq!(server.get(LIST).await.status, 401);
    assert_eq!(server.call("GET", "/sessions?key=metorial_sk_right", &[], "").await.status, 200);
}

#[tokio::test]
async fn a_publishable_key_reads_the_catalog_and_nothing_else() {
    let server = roomy().await;
    let headers = [("authorization", PUBLISHABLE), ("origin", "https://app.test")];
    let open = server.call("GET", "/providers", &headers, "").await;
    assert_eq!((open.status, open.field("access-control-allow-origin")), (200, "https://app.test"));
    assert_eq!((open.field("vary"), open.field("access-control-expose-headers")), ("", ""));
    let shut = server.call("GET", LIST, &headers, "").await;
    assert_eq!((shut.status, &shut.json()["code"]), (403, &json!("forbidden")));
    let secret = [("authorization", SECRET), ("origin", "https://app.test")];
    let unreadable = server.call("GET", "/providers", &secret, "").await;
    assert_eq!((unreadable.status, unreadable.field("access-control-allow-origin")), (200, ""));
}

#[tokio::test]
async fn the_fields_of_an_answer_are_the_apis() {
    let server = roomy().await;
    let reply = server.get(LIST).await;
    assert_eq!(reply.field("content-type"), "application/json");
    assert_eq!(reply.field("x-powered-by"), "Metorial");
    assert!(reply.field("metorial-req-id").starts_with("req_") && reply.field("metorial-req-id").len() == 24);
    assert_eq!((reply.field("etag"), reply.field("cache-control")), ("", ""));
    for (headers, target, version) in [
        (&[][..], "/providers", "2025-01-01"),
        (&[("metorial-version", "2026-01-01-magnetar")], "/providers", "2026-01-01"),
        (&[("metorial-version", "tomorrow")], "/providers?api-version=magnetar", "2025-01-01"),
        (&[], "/providers?api-version=magnetar", "2026-01-01"),
    ] {
        let headers: Vec<_> = headers.iter().copied().chain([("authorization", SECRET)]).collect();
        assert_eq!(server.call("GET", target, &headers, "").await.field("metorial-version"), version);
    }
    let head = server.call("HEAD", LIST, &[("authorization", SECRET)], "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.field("content-length"), reply.body.len().to_string());
    let h2 = server.send_h2(request("GET", LIST, &[("authorization", SECRET)], "")).await.expect("an answer");
    assert_eq!((h2.status, h2.body), (200, reply.body));
    let h2 =
        server.send_h2(request("HEAD", LIST, &[("authorization", SECRET)], "")).await.expect("an answer");
    assert_eq!((h2.status, h2.body.len()), (200, 0));
}

#[tokio::test]
async fn some_paths_are_answered_before_anybody_asks_who_calls() {
    let server = roomy().await;
    let root = server.call("GET", "/", &[], "").await;
    assert_eq!((root.status, root.field("location")), (301, "https://metorial.com/api"));
    let ping = server.call("GET", "/ping", &[], "").await;
    assert_eq!((ping.status, &ping.body[..]), (200, &b"OK"[..]));
    let preflight = server.call("OPTIONS", "/anything", &[("origin", "https://app.test")], "").await;
    assert_eq!((preflight.status, preflight.field("access-control-max-age")), (204, "604800"));
    assert_eq!(server.handle.counted(), 0);
    for target in ["/provider-deployments/", "/unheard-of", "/dashboard/provider-deployments"] {
        let reply = server.get(target).await;
        assert_eq!((reply.status, &reply.json()["entity"]), (404, &json!("endpoint")), "{target}");
    }
    assert_eq!(server.handle.counted(), 3);
}

#[tokio::test]
async fn content_types_are_checked_on_every_method() {
    let server = roomy().await;
    for (method, kind, body, reason) in [
        ("GET", "application/json", "", "invalid_json_body"),
        ("DELETE", "application/json", "", "invalid_json_body"),
        ("GET", "text/plain", "", "unsupported_content_type"),
        ("POST", "multipart/form-data; boundary=x", "--x--", "unsupported_content_type"),
        ("POST", "application/json", "{", "invalid_json_body"),
    ] {
        let path = if method == "DELETE" { "/provider-deployments/x" } else { LIST };
        let headers = [("authorization", SECRET), ("content-type", kind)];
        let reply = server.call(method, path, &headers, body).await;
        assert_eq!((reply.status, &reply.json()["reason"]), (400, &json!(reason)), "{method} {kind}");
    }
    let ignored = server.call("POST", LIST, &[("authorization", SECRET)], "not JSON").await;
    assert_eq!((ignored.status, &ignored.json()["name"]), (200, &Value::Null));
    let form = [("authorization", SECRET), ("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(server.call("POST", LIST, &form, "name=By+form").await.json()["name"], "By form");
}
