//! The API's error object: flat, with `__typename` and `ok`.

use serde::Serialize;
use serde_json::{Value, json};

/// One error, as it goes out.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct ApiError(Box<Fields>);

/// Its fields; those that are `None` are left out.
#[derive(Debug, Clone, Serialize)]
struct Fields {
    __typename: &'static str,
    ok: bool,
    status: u16,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Vec<Value>>,
}

impl Fields {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            __typename: "error",
            ok: false,
            status,
            code,
            message: message.into(),
            hint: None,
            description: None,
            reason: None,
            entity: None,
            id: None,
            errors: None,
        }
    }
}

impl From<Fields> for ApiError {
    fn from(fields: Fields) -> Self {
        Self(Box::new(fields))
    }
}

impl ApiError {
    /// Its HTTP status.
    pub(crate) fn status(&self) -> u16 {
        self.0.status
    }

    pub(crate) fn unauthorized(message: &'static str, description: Option<String>) -> Self {
        Fields {
            hint: Some(
                "Make sure you are logged in and have the correct permissions to access this resource.",
            ),
            description,
            ..Fields::new(401, "unauthorized", message)
        }
        .into()
    }

    pub(crate) fn forbidden() -> Self {
        Fields::new(403, "forbidden", "You do not have permission to access this resource.").into()
    }

    pub(crate) fn not_found(entity: &str, id: Option<&str>) -> Self {
        Fields {
            hint: Some(
                "Make sure the resource you are trying to access exists, that you have access to it and that it has \
                 not been deleted.",
            ),
            entity: Some(entity.to_owned()),
            id: id.map(str::to_owned),
            ..Fields::new(
                404,
                "not_found",
                format!("The requested {} could not be found.", entity.replace('_', "-")),
            )
        }
        .into()
    }

    pub(crate) fn bad_request(message: impl Into<String>, reason: Option<&'static str>) -> Self {
        Fields { reason, ..Fields::new(400, "bad_request", message) }.into()
    }

    /// A validation error of `entity` ("query" or "body").
    pub(crate) fn invalid(entity: &str, errors: Vec<Value>) -> Self {
        Fields {
            hint: Some(
                "Make sure the data you are sending follows the specification outlined in the documentation.",
            ),
            entity: Some(entity.to_owned()),
            errors: Some(errors),
            ..Fields::new(400, "invalid_data", "The provided data is invalid.")
        }
        .into()
    }

    pub(crate) fn too_large() -> Self {
        Fields::new(413, "payload_too_large", "The request body is too large.").into()
    }

    pub(crate) fn rate_limited() -> Self {
        Fields {
            hint: Some("Please wait a few minutes before trying again"),
            ..Fields::new(429, "rate_limit_exceeded", "You have exceeded the rate limit for this instance")
        }
        .into()
    }

    /// The error that belongs to a status somebody asked for.
    pub(crate) fn of_status(status: u16) -> Self {
        let (code, message) = match status {
            401 => return Self::unauthorized("Invalid API key", None),
            403 => return Self::forbidden(),
            404 => return Self::not_found("endpoint", None),
            429 => return Self::rate_limited(),
            400 | 406 => ("bad_request", "The request is invalid."),
            402 => ("payment_required", "Payment is required to access this resource."),
            409 => ("conflict", "A similar resource already exists."),
            410 => ("gone", "The requested resource is no longer available."),
            412 => ("precondition_failed", "The precondition of the request failed."),
            501 => ("not_implemented", "The requested resource is not implemented."),
            504 => ("timeout", "The request timed out."),
            500..=599 => ("internal_server_error", "An internal server error occurred."),
            _ => ("bad_request", "The request is invalid."),
        };
        Fields::new(status, code, message).into()
    }
}

/// One entry of a validation error's `errors`.
pub(crate) fn violation(code: &str, message: impl Into<String>, path: &str, more: Value) -> Value {
    let mut entry = json!({"code": code, "message": message.into(), "path": [path]});
    if let (Some(entry), Value::Object(more)) = (entry.as_object_mut(), more) {
        entry.extend(more);
    }
    entry
}
