//! What is learned about a request on its way and told on the way out, and the id that it is known by.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt::{self, Display, Formatter};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderValue, Request};
use opentelemetry::trace::SpanContext;
use tokio::sync::Notify;

use super::{CacheStatus, EnvironmentHandle, Unserved};
use crate::body::RequestBody;
use crate::domain::access::{Route, RouteId, ShadowRefusal};
use crate::domain::client_ip::ClientKey;
use crate::domain::ratelimit::Standing;
use crate::rejection::Rejection;
use crate::store::places::Place;
use crate::time::Timestamp;

/// What is known of an answer of upstream's beside itself.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// When the attempt that brought it was sent.
    pub sent: Timestamp,
    /// It set a cookie, which was taken out: it is one caller's own and is neither kept nor shared.
    pub had_cookie: bool,
    /// Only the end of upstream's connection tells where it ends, as it would if upstream had died: it is not kept.
    pub end_untold: bool,
}

/// What is learned about a request on its way; written once per fact, read when it is over.
#[derive(Debug)]
pub struct Journal {
    /// The request id: the caller's where sane, else ours.
    pub request_id: RequestId,
    /// The caller as counted, and its own limit, once counted.
    pub client: OnceCell<(ClientKey, Standing)>,
    /// On whose behalf, and as which route where that was opened; once that is decided.
    pub decided: OnceCell<(Rc<EnvironmentHandle>, Option<RouteId>)>,
    /// The known route that was refused.
    pub refused_route: OnceCell<&'static str>,
    /// Some of the attempt under way may have been written.
    written: Cell<bool>,
    /// Whom else that interests, on any thread.
    mirror: OnceCell<Arc<AtomicBool>>,
    /// Somebody waits until that changes; most often nobody does.
    awaited: Cell<bool>,
    changed: Notify,
    /// The rule whose constraint was broken.
    pub refusing_rule: OnceCell<String>,
    /// What a shadow rule would have refused. Boxed: there is hardly ever one, and each request has room for it.
    pub shadow: OnceCell<Box<ShadowRefusal>>,
    /// The request's span, where traces are made.
    pub trace: OnceCell<Box<SpanContext>>,
    notes: RefCell<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    cache: Option<CacheStatus>,
    rejection: Option<Rejection>,
    attempts: u32,
    broken: Option<&'static str>,
    place: Option<Place>,
    left: Option<Box<Request<RequestBody>>>,
    unserved: Option<Box<Unserved>>,
    answered: Option<Answered>,
}

/// Letters of an id of ours.
pub const MINTED: usize = 24;

/// A request id. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RequestId(Id);

#[derive(Debug, Clone)]
enum Id {
    Given(HeaderValue),
    Minted([u8; MINTED]),
}

impl RequestId {
    /// `None`: it is none that can be printed as it is.
    pub fn new(value: HeaderValue) -> Option<Self> {
        value.to_str().is_ok().then_some(Self(Id::Given(value)))
    }

    /// One of ours: letters and digits.
    pub fn minted(id: [u8; MINTED]) -> Self {
        Self(Id::Minted(id))
    }

    /// One that is told apart by nobody.
    pub const fn of(id: &'static str) -> Self {
        Self(Id::Given(HeaderValue::from_static(id)))
    }

    /// As a field's value.
    pub fn field(&self) -> HeaderValue {
        let mut value = match &self.0 {
            Id::Given(value) => value.clone(),
            // Letters and digits are a value.
            Id::Minted(id) => HeaderValue::from_bytes(id).unwrap_or(HeaderValue::from_static("")),
        };
        // No other message has it: HPACK is not to keep it.
        value.set_sensitive(true);
        value
    }
}

impl Display for RequestId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        // It was printable when it was made.
        match &self.0 {
            Id::Given(value) => value.to_str().unwrap_or_default(),
            Id::Minted(id) => str::from_utf8(id).unwrap_or_default(),
        }
    }
}

impl Journal {
    /// An empty one.
    pub fn new(request_id: RequestId) -> Self {
        Self {
            request_id,
            client: OnceCell::new(),
            decided: OnceCell::new(),
            refused_route: OnceCell::new(),
            written: Cell::new(false),
            mirror: OnceCell::new(),
            awaited: Cell::new(false),
            changed: Notify::new(),
            refusing_rule: OnceCell::new(),
            shadow: OnceCell::new(),
            trace: OnceCell::new(),
            notes: RefCell::default(),
        }
    }

    /// An empty one under an id of ours.
    pub fn of(request_id: &'static str) -> Self {
        Self::new(RequestId::of(request_id))
    }

    /// Another one, under the same id and within the same trace.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { trace: self.trace.clone(), ..Self::new(self.request_id.clone()) }
    }

    /// Another attempt begins: nothing of it has been written yet, and what broke the one before is no longer the end of it.
    pub fn attempt(&self) {
        self.written(false);
        self.notes(|notes| (notes.attempts, notes.broken) = (notes.attempts + 1, None));
    }

    /// Notes whether some of the attempt under way may have been written.
    pub fn written(&self, written: bool) {
        if self.written.replace(written) != written {
            if let Some(mirror) = self.mirror.get() {
                mirror.store(written, Ordering::SeqCst);
            }
            if self.awaited.get() {
                self.changed.notify_waiters();
            }
        }
    }

    /// From now on `mirror` tells the same to other threads.
    pub fn mirrored_by(&self, mirror: Arc<AtomicBool>) {
        mirror.store(self.is_written(), Ordering::SeqCst);
        self.mirror.set(mirror).ok();
    }

    /// Resolves when nothing of an attempt is on its way: it waits for its turn, for a connection, or to be tried again.
    pub async fn idle(&self) {
        self.awaited.set(true);
        loop {
            let changed = self.changed.notified();
            if !self.is_written() {
                return;
            }
            changed.await;
        }
    }

    /// Whether some of the attempt under way may have been written.
    pub fn is_written(&self) -> bool {
        self.written.get()
    }

    /// Notes how a list page was come by; a later note replaces an earlier one.
    pub fn cache(&self, status: CacheStatus) {
        self.notes(|notes| notes.cache = Some(status));
    }

    /// How a list page was come by.
    pub fn cache_status(&self) -> Option<CacheStatus> {
        self.notes(|notes| notes.cache)
    }

    /// On whose behalf, once that is decided.
    pub fn environment(&self) -> Option<&Rc<EnvironmentHandle>> {
        self.decided.get().map(|(environment, _)| environment)
    }

    /// As which route, once that is opened.
    pub fn route(&self) -> Option<&Route> {
        let (environment, route) = self.decided.get()?;
        route.map(|route| environment.environment.access.route(route))
    }

    /// Notes why the request was refused, and gives its in-flight place back: what is left to send is some hundred bytes, and
    /// a caller that does not read them must not keep others out.
    pub fn refused(&self, rejection: Rejection) {
        self.notes(|notes| (notes.rejection, notes.place) = (Some(rejection), None));
    }

    /// Why the request was refused.
    pub fn rejection(&self) -> Option<Rejection> {
        self.notes(|notes| notes.rejection.clone())
    }

    /// Keeps an in-flight place until the response has been sent.
    pub fn hold(&self, place: Place) {
        self.notes(|notes| notes.place = Some(place));
    }

    /// Leaves a request that is refused, for the answer to that.
    pub fn leave(&self, request: Box<Request<RequestBody>>) {
        self.notes(|notes| notes.left = Some(request));
    }

    /// Takes it.
    pub fn left(&self) -> Option<Box<Request<RequestBody>>> {
        self.notes(|notes| notes.left.take())
    }

    /// Leaves the request that an attempt was made of, for whoever may have to make another.
    pub fn leave_unserved(&self, unserved: Unserved) {
        self.notes(|notes| notes.unserved = Some(Box::new(unserved)));
    }

    /// Takes it.
    pub fn unserved(&self) -> Option<Box<Unserved>> {
        self.notes(|notes| notes.unserved.take())
    }

    /// Notes what is known of upstream's answer.
    pub fn answered(&self, answered: Answered) {
        self.notes(|notes| notes.answered = Some(answered));
    }

    /// What is known of the last answer of upstream's.
    pub fn answer(&self) -> Option<Answered> {
        self.notes(|notes| notes.answered)
    }

    /// Notes why the body ended early, after its head had been sent.
    pub fn broke(&self, reason: &'static str) {
        self.notes(|notes| notes.broken = Some(reason));
    }

    /// Why the body ended early.
    pub fn broken(&self) -> Option<&'static str> {
        self.notes(|notes| notes.broken)
    }

    /// Notes requests made to upstream.
    pub fn add_attempts(&self, attempts: u32) {
        self.notes(|notes| notes.attempts += attempts);
    }

    /// Requests made to upstream.
    pub fn attempts(&self) -> u32 {
        self.notes(|notes| notes.attempts)
    }

    fn notes<T>(&self, with: impl FnOnce(&mut Notes) -> T) -> T {
        with(&mut self.notes.borrow_mut())
    }
}
