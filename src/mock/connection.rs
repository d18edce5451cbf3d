//! One connection of the stand-in: HTTP/1.1 or HTTP/2 by its preface, and a socket that can be cut on purpose.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::mock::answer::Answer;
use crate::mock::control;
use crate::mock::faults::{Fault, Reset};
use crate::mock::service::State;
use crate::time;

/// Serves `tcp` until its peer is done, a fault cuts it, or `stop` lets it finish what is in flight.
pub(crate) async fn serve(state: Arc<State>, tcp: TcpStream, peer: IpAddr, stop: CancellationToken) {
    // Without it small answers wait for acknowledgements; a socket that refuses it still serves.
    tcp.set_nodelay(true).ok();
    let line = Arc::new(Line::default());
    let socket = Socket { io: TokioIo::new(tcp), line: line.clone() };
    let service = {
        let line = line.clone();
        service_fn(move |request| respond(state.clone(), line.clone(), peer, request))
    };
    let builder = Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection(socket, service));
    let mut finishing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection of the stand-in ended early");
                }
                return;
            }
            () = line.cut.cancelled() => return,
            () = stop.cancelled(), if !finishing => {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn respond(
    state: Arc<State>,
    line: Arc<Line>,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let head_only = request.method() == Method::HEAD;
    let (answer, fault) = if request.uri().path().starts_with(control::PREFIX) {
        (control::answer(&state, request).await, None)
    } else {
        state.answer(peer, request).await
    };
    let cut = fault.as_ref().and_then(|fault| cut_at(fault, &answer));
    if fault.is_some_and(|fault| fault.reset == Some(Reset::Before)) {
        line.reset();
        // The connection is dropped before this is asked again.
        return std::future::pending().await;
    }
    let Answer { status, mut headers, body } = answer;
    if head_only && !body.is_empty() {
        // A HEAD's answer tells the length that the body of a GET would have.
        headers.entry(CONTENT_LENGTH).or_insert_with(|| body.len().into());
    }
    let declared = if head_only { 0 } else { body.len() as u64 };
    let data = match cut {
        _ if head_only => Bytes::new(),
        Some(at) => body.slice(..at.min(body.len())),
        None => body,
    };
    let cut = cut.is_some().then(|| Cut { line, pause: Box::pin(time::sleep(FLUSH)) });
    let mut response = Response::new(AnswerBody { declared, data: Some(data), cut });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// After how many bytes of the body the connection is cut.
fn cut_at(fault: &Fault, answer: &Answer) -> Option<usize> {
    let half = (fault.reset == Some(Reset::AfterHead)).then_some(answer.body.len() / 2);
    half.or(fault.truncate.filter(|bytes| *bytes < answer.body.len()))
}

/// How long the bytes before a cut have to leave.
const FLUSH: Duration = Duration::from_millis(10);

/// Cuts a connection from within one of its requests.
#[derive(Debug, Default)]
struct Line {
    cut: CancellationToken,
    reset: AtomicBool,
}

impl Line {
    /// Ends the connection as if the process had died.
    fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        self.cut.cancel();
    }
}

/// A socket that is reset instead of closed where its line says so.
#[derive(Debug)]
struct Socket {
    io: TokioIo<TcpStream>,
    line: Arc<Line>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.line.reset.load(Ordering::Relaxed) {
            // Without lingering, closing sends RST. Should that fail, the peer sees FIN: cut off all the same.
            socket2::SockRef::from(self.io.inner()).set_linger(Some(Duration::ZERO)).ok();
        }
    }
}

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }
}

/// A body that declares its length, and may be cut before it has kept its word.
struct AnswerBody {
    declared: u64,
    data: Option<Bytes>,
    cut: Option<Cut>,
}

struct Cut {
    line: Arc<Line>,
    pause: Pin<Box<tokio::time::Sleep>>,
}

/// The body was cut on purpose.
#[derive(Debug, thiserror::Error)]
#[error("cut on purpose")]
struct CutOff;

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        if let Some(data) = self.data.take().filter(|data| !data.is_empty()) {
            self.declared = self.declared.saturating_sub(data.len() as u64);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(cut) = &mut self.cut else { return Poll::Ready(None) };
        ready!(cut.pause.as_mut().poll(context));
        cut.line.cut.cancel();
        Poll::Ready(Some(Err(CutOff)))
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() && self.data.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.declared)
    }
}
