//! What goes with an answer's body until it has passed.

use std::rc::Rc;

use super::Shared;
use crate::body::{BodyError, Lease};
use crate::exchange::Journal;
use crate::rejection::UpstreamFault;

/// Goes with a body on its way: gives the connection back at its end, and tells of one that ended early.
pub(super) struct Receipt {
    pub(super) lease: Option<Box<dyn Lease>>,
    pub(super) shared: Rc<Shared>,
    pub(super) journal: Rc<Journal>,
}

impl Lease for Receipt {
    fn finish(self: Box<Self>) {
        if let Some(lease) = self.lease {
            lease.finish();
        }
    }

    fn broken(self: Box<Self>, error: &BodyError) {
        if matches!(error, BodyError::Secret) {
            return self.shared.guarded(&self.journal);
        }
        self.shared.health.set_healthy(false);
        self.journal.broke(UpstreamFault::ConnectionTerminated.name());
        tracing::warn!(request_id = &*self.journal.request_id, %error, "upstream's answer ended early");
    }
}
