//! A worker: one thread, one runtime, its own sockets, pipeline and upstream pool.
//!
//! A connection stays on the thread that accepted it, so nothing on a request's way crosses cores but the shared counts
//! and pages.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::yield_now;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Admitted};
use super::deadlines::{Deadlines, TICK};
use super::in_force::{Current, Place, Terms};
use super::notify::Beat;
use super::outbox::{Outbox, Socket};
use super::proxy_protocol;
use crate::telemetry::gauge::Level;
use crate::telemetry::labels::RefusedConnection;
use crate::telemetry::metrics::Metrics;
use crate::time::{sleep, timeout};

/// The kernel is asked for so much of what is ready at once, and again once that is seen to: what was touched to wake a task is
/// still in the caches when its turn comes. With 10,000 busy connections this and how [`Watch`](super::deadlines::Watch) lies in
/// memory have a hit cost 0.96 of what it does else.
const EVENTS: usize = 128;
/// So many turns are taken before it is asked in between: more than so many events make.
const POLLS: u32 = 512;

/// What a worker is made of.
pub struct Worker {
    /// Its sockets.
    pub listeners: Vec<StdListener>,
    /// What serves its connections and their requests.
    pub current: Arc<Current>,
    /// How many connections there may be, over all workers.
    pub admission: Arc<Admission>,
    /// Connections open.
    pub open: Level,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Tells that it moves.
    pub beat: Beat,
    /// Fills and other work that outlives its request.
    pub tasks: TaskTracker,
    /// Stop accepting; finish what is in flight.
    pub drain: CancellationToken,
    /// Stop at once.
    pub cut: CancellationToken,
}

impl Worker {
    /// Runs it on a thread of its own; the thread ends with how many connections were cut.
    ///
    /// # Errors
    /// The kernel gave no thread, or nothing to wait with.
    pub fn spawn(self, index: usize) -> io::Result<JoinHandle<usize>> {
        let (told, begun) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            // Nothing of it may leave its thread, so it is made there.
            let built = Builder::new_current_thread()
                .enable_all()
                .max_io_events_per_tick(EVENTS)
                .event_interval(POLLS)
                .build_local(LocalOptions::default());
            let (runtime, begins) = match built {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            told.send(begins).ok();
            let Some(runtime) = runtime else { return 0 };
            let cut = runtime.block_on(self.run(index));
            // A name being looked up on its blocking thread is not waited for.
            runtime.shutdown_background();
            cut
        })?;
        begun.recv().unwrap_or_else(|_| Err(io::Error::other("it ended at once")))?;
        Ok(thread)
    }

    async fn run(self, index: usize) -> usize {
        let connections = TaskTracker::new();
        let accepting = TaskTracker::new();
        let (deadlines, outbox) = (Rc::new(Deadlines::default()), Outbox::default());
        let place = Place::new(self.current, index, outbox.clone());
        let shared = Rc::new(Shared {
            place: place.clone(),
            deadlines: deadlines.clone(),
            admission: self.admission,
            open: self.open,
            metrics: self.metrics,
            outbox: outbox.clone(),
            connections: connections.clone(),
            drain: self.drain.clone(),
        });
        // It ends with the runtime, after all that it sends for.
        TaskTracker::new().spawn_local(outbox.run());
        for listener in self.listeners {
            match TcpListener::from_std(listener) {
                Ok(listener) => drop(accepting.spawn_local(accept(shared.clone(), listener))),
                Err(error) => tracing::error!(%error, "a listener was lost"),
            }
        }
        drop(shared);
        let mut draining = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        accepting.close();
        let finished = async {
            accepting.wait().await;
            connections.close();
            connections.wait().await;
            self.tasks.close();
            self.tasks.wait().await;
        };
        let drained = async {
            self.drain.cancelled().await;
            heard(connections.len()).await;
            deadlines.drain();
        };
        tokio::pin!(finished, drained);
        loop {
            tokio::select! {
                () = &mut finished => return 0,
                () = self.cut.cancelled() => return connections.len(),
                () = &mut drained, if !draining => draining = true,
                _ = tick.tick() => {
                    self.beat.fetch_add(1, Ordering::Relaxed);
                    deadlines.sweep();
                    place.now().lane.upstream.close_idle();
                }
            }
        }
    }
}

/// Waits until the runtime has heard of all that the kernel has taken by now for so many connections and for as many to
/// upstream: those that drain end once there is nothing to read for them, as far as it knows.
async fn heard(connections: usize) {
    for _ in 0..=connections * 2 / EVENTS {
        yield_now().await;
    }
}

struct Shared {
    place: Place,
    deadlines: Rc<Deadlines>,
    admission: Arc<Admission>,
    open: Level,
    metrics: Arc<Metrics>,
    outbox: Outbox,
    connections: TaskTracker,
    drain: CancellationToken,
}

async fn accept(shared: Rc<Shared>, listener: TcpListener) {
    let mut paused = false;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = shared.drain.cancelled() => return accept_rest(&shared, listener),
        };
        match accepted {
            Ok((stream, peer)) => {
                if std::mem::take(&mut paused) {
                    tracing::info!("accepting again");
                }
                admit(&shared, stream, peer);
            }
            // Of the connection, not of the listener: the next one may be fine.
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                // Out of file descriptors or memory: trying at once would only burn the core, and saying so each time the log.
                if !std::mem::replace(&mut paused, true) {
                    tracing::warn!(%error, "accepting paused: new connections wait");
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What the kernel has taken for us already, also what the runtime has not heard of yet: closing the socket would reset it.
fn accept_rest(shared: &Rc<Shared>, listener: TcpListener) {
    let Ok(listener) = listener.into_std() else { return };
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if is_of_connection(&error) => continue,
            Err(_) => return,
        };
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            admit(shared, stream, peer);
        }
    }
}

fn admit(shared: &Rc<Shared>, stream: TcpStream, peer: SocketAddr) {
    match shared.admission.admit(peer.ip()) {
        Ok(admitted) => {
            shared.connections.spawn_local(connection(shared.clone(), stream, peer, admitted));
        }
        Err(reason) => shared.metrics.connection_refused(reason),
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

impl Terms {
    /// How long a handshake may take: as long as the head of a request.
    fn handshake(&self) -> Duration {
        self.server.deadlines().head
    }

    /// Who is at the other end, and the connection's place: the peer itself, or whom it speaks for.
    async fn caller(
        &self,
        stream: &mut TcpStream,
        peer: IpAddr,
        admitted: Admitted,
    ) -> Result<(IpAddr, Admitted), RefusedConnection> {
        let Some(trusted) = &self.proxy_protocol else { return Ok((peer, admitted)) };
        if !trusted.iter().any(|network| network.contains(&peer.to_canonical())) {
            return Err(RefusedConnection::UntrustedProxy);
        }
        match timeout(self.handshake(), proxy_protocol::read(stream)).await {
            Ok(Ok(Some(source))) => Ok((source, admitted.on_behalf_of(source)?)),
            Ok(Ok(None)) => Ok((peer, admitted)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection without a PROXY header was closed");
                Err(RefusedConnection::ProxyProtocol)
            }
            Err(_) => Err(RefusedConnection::ProxyProtocol),
        }
    }
}

async fn connection(shared: Rc<Shared>, mut stream: TcpStream, peer: SocketAddr, admitted: Admitted) {
    let _open = shared.open.hold();
    stream.set_nodelay(true).ok();
    let terms = shared.place.now().in_force.terms.clone();
    // Boxed, like all that is over before the connection idles: what waits for the next request is the smaller for it.
    let (ip, _admitted) = match Box::pin(terms.caller(&mut stream, peer.ip(), admitted)).await {
        Ok(caller) => caller,
        Err(reason) => return shared.metrics.connection_refused(reason),
    };
    let watch = shared.deadlines.watch(terms.server.deadlines());
    let socket = Socket::new(stream, shared.outbox.clone(), Some(watch.clone()));
    let place = shared.place.clone();
    let Some(tls) = &terms.tls else {
        return terms.server.serve(socket, ip, place, watch).await;
    };
    match Box::pin(timeout(terms.handshake(), tls.accept(socket))).await {
        Ok(Ok(stream)) => {
            watch.opens();
            Box::pin(terms.server.serve(stream, ip, place, watch)).await;
        }
        Ok(Err(error)) => {
            shared.metrics.connection_refused(RefusedConnection::Tls);
            tracing::debug!(%error, "a TLS handshake failed");
        }
        Err(_) => shared.metrics.connection_refused(RefusedConnection::HeaderTimeout),
    }
}
