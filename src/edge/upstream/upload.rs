//! Bodies that stream up, by hyper: it goes on sending while the answer comes, however whoever asked reads that.

use std::cell::Cell;
use std::rc::Rc;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::connect::Stream;
use super::http1::Http1;
use super::interim::{self, Counted};
use super::{Pool, answer, failed, fault, unsent};
use crate::body::{BodyError, Lease, RequestBody};
use crate::exchange::Delivery;
use crate::policy::forward::{Answer, Outgoing, TransportError};

impl Pool {
    /// Sends a request whose body is a stream over a connection, which comes back to the pool when all is done.
    pub(super) async fn upload(
        self: &Rc<Self>,
        connection: Box<Http1<Stream>>,
        request: &mut Outgoing,
    ) -> Result<Answer, Box<TransportError>> {
        let born = connection.born;
        let io = TokioIo::new(Counted::<_, interim::Http1>::new(connection.into_io()));
        let mut builder = http1::Builder::new();
        let (mut sender, connection) = match builder.max_buf_size(512 * 1024).handshake(io).await {
            Ok(connected) => connected,
            Err(error) => return Err(failed(&error, Delivery::Never)),
        };
        let (pool, done) = (self.clone(), Rc::new(Cell::new(false)));
        let done_by_then = done.clone();
        self.connector.tasks.spawn_local(async move {
            match connection.without_shutdown().await {
                Ok(parts) if done_by_then.get() && parts.read_buf.is_empty() => {
                    let connection = Http1::new(parts.io.into_inner().into_inner(), born);
                    pool.give_back(Box::new(connection));
                }
                Ok(_) => {}
                // A connection's failure reaches whoever sent a request over it; without one it concerns nobody.
                Err(error) => tracing::debug!(error = fault::chain(&error), "a connection to upstream ended"),
            }
        });
        let sent = sender.try_send_request(request.to_request()).await;
        let response = sent.map_err(|error| unsent(error, request))?;
        Ok(answer(response, Some(Box::new(Returning { sender, done }))))
    }
}

/// Says that a connection may serve again, where all of the body has gone up when the response was read to the end; dropped
/// before, the connection closes.
struct Returning {
    sender: http1::SendRequest<RequestBody>,
    done: Rc<Cell<bool>>,
}

impl Lease for Returning {
    fn finish(self: Box<Self>) {
        // Ready is what has given all it had to the socket: for one that is written to in vectors, hyper holds nothing back.
        self.done.set(self.sender.is_ready());
    }

    fn broken(self: Box<Self>, _: &BodyError) {}
}
