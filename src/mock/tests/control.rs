use serde_json::json;

use crate::mock::tests::support::{SECRET, roomy};

#[tokio::test]
async fn requests_are_told_without_their_keys() {
    let server = roomy().await;
    let headers = [("authorization", SECRET), ("accept", "a"), ("accept", "b")];
    server.call("GET", "/sessions?limit=1&key=metorial_sk_abcdefgh", &headers, "").await;
    server.call("DELETE", "/sessions/x", &[], "").await;
    let told = server.call("GET", "/_mock/requests", &[], "").await;
    let text = String::from_utf8(told.body.to_vec()).expect("text");
    assert!(!text.contains("metorial_sk_") && !text.contains("012345"), "{text}");
    let expected = json!({
        "received": 2, "counted": 1, "refused": 0,
        "requests": [
            {
                "method": "GET", "target": "/sessions?limit=1&key=…efgh", "status": 200,
                "headers": {
                    "host": "mock.test", "authorization": "Bearer …6789", "accept": ["a", "b"],
                },
            },
            {"method": "DELETE", "target": "/sessions/x", "status": 401, "headers": {"host": "mock.test"}},
        ],
    });
    let mut told = told.json();
    // What hyper adds for the body.
    for request in told["requests"].as_array_mut().expect("requests") {
        request["headers"].as_object_mut().expect("fields").remove("content-length");
    }
    assert_eq!(told, expected);
    assert_eq!(server.handle.requests().len(), 2);
    assert_eq!(server.call("DELETE", "/_mock/requests", &[], "").await.status, 200);
    let expected = json!({"received": 0, "counted": 0, "refused": 0, "requests": []});
    assert_eq!(server.call("GET", "/_mock/requests", &[], "").await.json(), expected);
}

#[tokio::test]
async fn a_fault_with_an_unknown_field_is_refused_by_its_name() {
    let server = roomy().await;
    for (body, named) in [(r#"{"rout": "*"}"#, "rout"), (r#"{"status": 42}"#, "status"), ("", "EOF")] {
        let reply = server.call("POST", "/_mock/faults", &[], body).await;
        assert_eq!(reply.status, 400);
        let error = reply.json()["error"].to_string();
        assert!(error.contains(named), "{error}");
    }
    server.call("POST", "/_mock/faults", &[], r#"{"status": 500, "reset": "after-head"}"#).await;
    let waiting = server.call("GET", "/_mock/faults", &[], "").await.json();
    let expected = json!({"route": "*", "next": 1, "status": 500, "reset": "after-head", "echo": false});
    assert_eq!(waiting, json!({"faults": [expected]}));
    assert_eq!(server.call("DELETE", "/_mock/faults", &[], "").await.status, 200);
    assert_eq!(server.get("/sessions").await.status, 200);
    assert_eq!(server.call("GET", "/_mock/other", &[], "").await.status, 404);
}
