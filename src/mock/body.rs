//! Request bodies: what their content type makes of them, on every method alike.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::mock::error::{ApiError, violation};
use crate::mock::query::Query;
use crate::mock::seed::Item;

/// Larger bodies are refused.
const MAX_BODY: usize = 16 << 20;

/// The whole body.
pub(crate) async fn read(body: Incoming) -> Result<Bytes, ApiError> {
    let body = Limited::new(body, MAX_BODY).collect().await;
    body.map(|body| body.to_bytes()).map_err(|_| ApiError::too_large())
}

/// The body's fields. Without a content type the body is ignored; with one that isn't JSON or a form it is refused.
pub(crate) fn parse(headers: &HeaderMap, body: &Bytes) -> Result<Item, ApiError> {
    let Some(kind) = headers.get(CONTENT_TYPE).filter(|kind| !kind.is_empty()) else {
        return Ok(Item::new());
    };
    let kind = String::from_utf8_lossy(kind.as_bytes());
    if kind.contains("application/json") {
        return match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(other) => Err(not_an_object(&other)),
            Err(_) => Err(ApiError::bad_request("Invalid JSON body", Some("invalid_json_body"))),
        };
    }
    if kind.contains("application/x-www-form-urlencoded") {
        return match std::str::from_utf8(body) {
            Ok(text) => Ok(Query::parse(text).into_object()),
            Err(_) => Err(ApiError::bad_request(
                "Invalid form-urlencoded body",
                Some("invalid_form-urlencoded_body"),
            )),
        };
    }
    let message = format!("Unsupported content type {kind}");
    Err(ApiError::bad_request(message, Some("unsupported_content_type")))
}

fn not_an_object(value: &Value) -> ApiError {
    let received = match value {
        Value::Null | Value::Array(_) | Value::Object(_) => "object",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
    };
    let message = format!("Invalid input, expected object, received {received}");
    let more = json!({"expected": "object", "received": received, "path": []});
    ApiError::invalid("body", vec![violation("invalid_type", message, "", more)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_decides() {
        for (kind, body, expected) in [
            ("", "not read", Ok(json!({}))),
            ("application/json", "{\"a\":1}", Ok(json!({"a": 1}))),
            ("application/json; charset=utf-8", "{}", Ok(json!({}))),
            ("application/x-www-form-urlencoded", "a=1&b%5B%5D=2", Ok(json!({"a": "1", "b": ["2"]}))),
            ("application/json", "", Err("bad_request/invalid_json_body")),
            ("application/json", "{", Err("bad_request/invalid_json_body")),
            ("application/json", "[1]", Err("invalid_data/")),
            ("text/plain", "", Err("bad_request/unsupported_content_type")),
            ("multipart/form-data", "", Err("bad_request/unsupported_content_type")),
        ] {
            let mut headers = HeaderMap::new();
            if !kind.is_empty() {
                headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
            }
            let parsed = parse(&headers, &Bytes::from_static(body.as_bytes())).map(Value::Object);
            let parsed = parsed.map_err(|error| {
                let error = serde_json::to_value(error).expect("JSON");
                assert_eq!(error["status"], 400);
                format!("{}/{}", error["code"].as_str().unwrap(), error["reason"].as_str().unwrap_or(""))
            });
            assert_eq!(parsed, expected.map_err(str::to_owned), "{kind} {body}");
        }
    }
}
