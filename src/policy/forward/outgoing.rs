//! A request as it goes upstream.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request};

use crate::body::RequestBody;

/// All that upstream gets of a request.
///
/// Its fields are a list: each is looked for by nobody and written once, and a map of them takes 670 instructions more.
#[derive(Debug)]
pub struct Outgoing {
    /// What is asked.
    pub method: Method,
    /// Of what, in origin form (RFC 9112 §3.2.1).
    pub target: PathAndQuery,
    /// Line by line, with `Host`.
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// `None` once it is on its way and cannot be sent again.
    pub body: Option<RequestBody>,
    /// Where the answer's fields go.
    pub room: HeaderMap,
}

impl Outgoing {
    /// Without fields or a body.
    pub fn new(method: Method, target: PathAndQuery) -> Self {
        Self { method, target, fields: Vec::new(), body: Some(RequestBody::Empty), room: HeaderMap::new() }
    }

    /// For a library to send, with the body, which is on its way from then on.
    pub fn to_request(&mut self) -> Request<RequestBody> {
        let mut request = Request::new(self.body.take().unwrap_or_default());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone().into();
        for (name, value) in &self.fields {
            request.headers_mut().append(name.clone(), value.clone());
        }
        request
    }
}
