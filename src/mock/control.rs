//! `/_mock/…`: what was received, and faults. Neither authenticated, recorded, counted nor delayed.

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use crate::mock::answer::Answer;
use crate::mock::body;
use crate::mock::faults::Fault;
use crate::mock::service::State;

/// What paths of the control begin with.
pub(crate) const PREFIX: &str = "/_mock/";

pub(crate) async fn answer(state: &State, request: Request<Incoming>) -> Answer {
    let (head, incoming) = request.into_parts();
    let body = body::read(incoming).await.unwrap_or_default();
    let done = || Answer::json(StatusCode::OK, &json!({"ok": true}));
    match (&head.method, head.uri.path()) {
        (&Method::GET, "/_mock/requests") => {
            let report = state.recorder.lock().report();
            Answer::json(StatusCode::OK, &report)
        }
        (&Method::DELETE, "/_mock/requests") => {
            state.recorder.lock().reset();
            done()
        }
        (&Method::GET, "/_mock/faults") => {
            let waiting = state.faults.lock().waiting();
            Answer::json(StatusCode::OK, &json!({"faults": waiting}))
        }
        (&Method::POST, "/_mock/faults") => {
            let fault = serde_json::from_slice::<Fault>(&body).map_err(|error| error.to_string());
            match fault.and_then(|fault| state.faults.lock().add(fault)) {
                Ok(()) => done(),
                Err(error) => refused(StatusCode::BAD_REQUEST, &error),
            }
        }
        (&Method::DELETE, "/_mock/faults") => {
            state.faults.lock().clear();
            done()
        }
        _ => refused(
            StatusCode::NOT_FOUND,
            "there are GET and DELETE /_mock/requests, and GET, POST and DELETE /_mock/faults",
        ),
    }
}

fn refused(status: StatusCode, error: &str) -> Answer {
    Answer::json(status, &json!({"ok": false, "error": error}))
}
