//! Deadlines of connections, without a timer per request.
//!
//! A timer armed for each request head costs more than a tenth of a cache hit. So a connection only writes down what it is
//! doing and since when, in coarse ticks, and one sweep per worker ends those that have been at it for too long. The head
//! has a deadline, not an idle timer: a client that trickles bytes does not push it back. Nor does one that takes an answer
//! byte by byte: while the socket is full, so much has to be taken in each span of time.

use std::cell::{Cell, RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;

mod attention;

use attention::Attention;

use super::wire::Heads;
use crate::time::{Timestamp, turn};

/// How often the sweep looks, and so how late a deadline may be.
pub const TICK: Duration = Duration::from_millis(250);

/// With more connections on a worker, none keeps for its next request what it needed for the last one. The caches hold less than
/// all of them would keep, and what one gives back serves the next while it is still there: with 1,000 to 10,000 connections a
/// hit costs 0.9 of what it does else, with 600 0.96; with 300 it would cost 1.02, and with 10 1.05.
const CROWD: usize = 512;

/// While the socket is full, a peer has to take [`LEAST`] bytes …
const LEAST: u64 = 8 * 1024;
/// … in each such span.
const SPAN: Duration = Duration::from_secs(30);

/// How long whoever has closed its side is answered: it may be gone, and what is done for it is then done for nobody. An
/// answer on its way is worth so long a wait; who is gone is found out by its next piece.
const LINGER: Duration = Duration::from_secs(1);

/// How long a peer may go on taking what was sent before we closed our side.
pub const FAREWELL: Duration = Duration::from_secs(30);

/// How long each phase may last.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first byte (or the accept) to the end of a request's head.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Without any of an answer being taken.
    pub silence: Duration,
}

/// The connections of one worker.
#[derive(Debug)]
pub struct Deadlines {
    worker: Rc<Worker>,
    watched: RefCell<Vec<Rc<Watch>>>,
}

/// What all connections of a worker go by.
#[derive(Debug, Default)]
struct Worker {
    clock: Cell<u64>,
    draining: Cell<bool>,
    crowded: Cell<bool>,
}

impl Worker {
    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn is_draining(&self) -> bool {
        self.draining.get()
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        let worker = Worker { clock: Cell::new(Timestamp::now().0), ..Worker::default() };
        Self { worker: Rc::new(worker), watched: RefCell::default() }
    }
}

impl Deadlines {
    /// Watches a connection that was just accepted and has to keep to `limits`, until the returned value is dropped.
    pub fn watch(&self, limits: Limits) -> Rc<Watch> {
        let now = self.worker.now();
        let watch = Rc::new(Watch {
            worker: self.worker.clone(),
            full_since: Cell::new(0),
            waiting_for_head: Cell::new(now),
            half_closed_since: Cell::new(0),
            moved: Cell::new(0),
            served: Cell::new(0),
            multiplexed: Cell::new(false),
            listens: Cell::new(false),
            rests: Cell::new(false),
            began: Cell::new(false),
            heads: Heads::default(),
            attention: Attention::default(),
            idle_since: Cell::new(now),
            sent: Cell::new(0),
            sent_before: Cell::new(0),
            held_until: Cell::new(0),
            closed_since: Cell::new(0),
            heard: Cell::new(0),
            ends_by_closing: Cell::new(false),
            answers: RefCell::default(),
            first: Notify::new(),
            limits,
        });
        if self.worker.is_draining() {
            watch.attention.call();
        }
        let mut watched = self.watched.borrow_mut();
        watched.push(watch.clone());
        self.count(watched.len());
        watch
    }

    /// All connections are to finish what is in flight, and close; those that are made from now on too.
    pub fn drain(&self) {
        self.worker.draining.set(true);
        self.watched.borrow().iter().for_each(|watch| watch.attention.call());
    }

    /// Looks at every connection once; to be called every [`TICK`]. Where HTTP/1 is served for longer than that, the peer is
    /// listened to from then on: it may leave.
    pub fn sweep(&self) {
        let now = Timestamp::now();
        self.worker.clock.set(now.0);
        let mut watched = self.watched.borrow_mut();
        watched.retain(|watch| Rc::strong_count(watch) > 1);
        self.count(watched.len());
        for watch in watched.iter() {
            if watch.passed(now).is_some() || watch.begins_to_listen() {
                watch.attention.call();
            }
        }
        if watched.capacity() > 64 && watched.capacity() > watched.len() * 4 {
            watched.shrink_to_fit();
        }
    }

    fn count(&self, connections: usize) {
        self.worker.crowded.set(connections > CROWD);
    }
}

/// What one connection is doing, and since when. In the order in which it is written here: what each request asks for comes
/// first, in two lines of the caches. With 10,000 busy connections each line is fetched anew for each request, and each is a
/// two-hundredth of what a hit costs.
#[derive(Debug)]
#[repr(C)]
pub struct Watch {
    worker: Rc<Worker>,
    /// Since when the socket has been full; 0: it is not.
    full_since: Cell<u64>,
    /// Since when a head is under way; 0: none is.
    waiting_for_head: Cell<u64>,
    /// Since when the peer sends no more, although an answer is due; 0: it may send more.
    half_closed_since: Cell<u64>,
    /// When the answer under way last moved; 0: there is none. Not when the socket did: a peer that takes nothing can still
    /// send pings.
    moved: Cell<u64>,
    /// Requests being served.
    served: Cell<u32>,
    /// HTTP/2: heads are read while others are served.
    multiplexed: Cell<bool>,
    /// HTTP/1: whether the peer is listened to although a request of it is served.
    listens: Cell<bool>,
    /// HTTP/1, among a crowd: all that came has been answered.
    rests: Cell<bool>,
    /// A request came.
    began: Cell<bool>,
    /// What is wrong with its requests.
    pub(super) heads: Heads,
    attention: Attention,
    idle_since: Cell<u64>,
    /// Bytes that the kernel has taken of what was written.
    sent: Cell<u64>,
    /// The same when it was last full.
    sent_before: Cell<u64>,
    /// Until when answers are held that the peer gives no window for; 0: there are not many.
    held_until: Cell<u64>,
    /// Since when our side is closed, and when the peer last sent something; 0: it is open.
    closed_since: Cell<u64>,
    heard: Cell<u64>,
    /// An answer is under way, or not all sent, whose end only that of the connection tells.
    ends_by_closing: Cell<bool>,
    /// HTTP/2: when each answer last moved.
    answers: RefCell<Vec<Rc<Cell<u64>>>>,
    first: Notify,
    limits: Limits,
}

/// Why a connection is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// It has been at something for too long.
    Overdue(Overdue),
    /// It is to finish what is in flight, and close.
    Drain,
}

impl Watch {
    /// Its first request is waited for from now on: what came before, like a handshake, had a deadline of its own.
    pub fn opens(&self) {
        let now = self.worker.now();
        self.waiting_for_head.set(now);
        self.idle_since.set(now);
    }

    /// The kernel has taken so many bytes more of what was written.
    pub fn add_sent(&self, count: u64) {
        self.sent.set(self.sent() + count);
    }

    /// How many it has taken.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Bytes came in: whether a head has ended with them, and whether one is under way now.
    pub fn head(&self, ended: bool, under_way: bool) {
        if ended {
            self.waiting_for_head.set(0);
        }
        if under_way && self.waiting_for_head.get() == 0 {
            self.waiting_for_head.set(self.worker.now());
        }
    }

    /// It is HTTP/2: heads come while others are served.
    pub fn multiplexes(&self) {
        self.multiplexed.set(true);
    }

    /// The socket is full.
    pub fn stalled(&self) {
        let (sent, before) = (self.sent(), self.sent_before.get());
        if self.full_since.get() == 0 || sent - before >= LEAST {
            self.sent_before.set(sent);
            self.full_since.set(self.worker.now());
        }
    }

    /// It has taken all there was.
    pub fn drained(&self) {
        if self.full_since.get() == 0 {
            return;
        }
        self.full_since.set(0);
        let now = self.worker.now();
        self.idle_since.set(now);
        if self.waiting_for_head.get() > 0 && !self.multiplexed.get() {
            // Until now nothing was read on.
            self.waiting_for_head.set(now);
        }
    }

    /// A request is being served.
    pub fn is_serving(&self) -> bool {
        self.served.get() > 0
    }

    /// HTTP/1: whether the peer is to be listened to while a request of it is served. The library would listen in any case, and
    /// most requests are answered before there is anything to hear: a pass-through would take 650 instructions more, and
    /// another 8 KiB to read into.
    pub fn listens(&self) -> bool {
        self.listens.get()
    }

    /// Whether there are so many connections that each gives back what it needs for requests alone when it rests.
    pub fn is_crowded(&self) -> bool {
        self.worker.crowded.get()
    }

    /// HTTP/1: whether nothing that came is under way any more, nor anything that is to be sent.
    pub fn rests(&self, rests: bool) {
        self.rests.set(rests);
    }

    /// What [`rests`](Self::rests) was last told.
    pub fn is_resting(&self) -> bool {
        self.rests.get()
    }

    fn begins_to_listen(&self) -> bool {
        let begins = self.is_serving() && !self.listens() && !self.multiplexed.get();
        if begins {
            self.listens.set(true);
        }
        begins
    }

    /// HTTP/1: the peer sends no more while the last of its requests is being served.
    pub fn half_closes(&self) {
        self.half_closed_since.set(self.worker.now());
    }

    /// Our side is closed, with all that it had to say, and the peer has sent something since, or not yet.
    pub fn closes(&self) {
        let now = self.worker.now();
        self.heard.set(now);
        self.ends_by_closing.set(false);
        if self.closed_since.get() == 0 {
            self.closed_since.set(now);
        }
    }

    fn is_half_closed(&self) -> bool {
        self.half_closed_since.get() > 0
    }

    /// Whether the connection, ended now, has to be reset: closed, it would pass a part of an answer off as the whole
    /// (RFC 9112 §8).
    pub fn is_cut_short(&self) -> bool {
        self.ends_by_closing.get()
    }

    /// Answers are held for the peer, for no longer than `patience`; from now on, where some of them `moves`.
    pub fn held(&self, patience: Option<Duration>, moves: bool) {
        let Some(patience) = patience else { return self.held_until.set(0) };
        let until = (Timestamp(self.worker.now()) + patience).0;
        let before = self.held_until.get();
        if before == 0 || until < before || moves {
            self.held_until.set(until);
        }
    }

    /// A head is complete; the request is served until the returned value is dropped.
    pub fn serve(self: &Rc<Self>) -> Serving {
        if !self.has_begun() {
            self.began.set(true);
            self.first.notify_one();
        }
        self.served.update(|served| served + 1);
        Serving { watch: self.clone(), moved: None }
    }

    /// Whether a request has come over this connection yet.
    pub fn has_begun(&self) -> bool {
        self.began.get()
    }

    /// Waits for the first request.
    pub async fn first(&self) {
        self.first.notified().await;
    }

    /// Polls `connection` to its end, or until this is called for another reason than `draining`, which is known; first the
    /// connection, always.
    pub async fn attend<F: Future>(
        &self,
        mut connection: Pin<&mut F>,
        draining: bool,
    ) -> Result<F::Output, Call> {
        let mut known = None;
        poll_fn(|cx| {
            if let Poll::Ready(ended) = turn(|| connection.as_mut().poll(cx)) {
                return Poll::Ready(Ok(ended));
            }
            while self.attention.poll(&mut known, cx).is_ready() {
                // Between the sweep and here a request may have come.
                if let Some(overdue) = self.passed(Timestamp(self.worker.now())) {
                    return Poll::Ready(Err(Call::Overdue(overdue)));
                }
                if !draining && self.worker.is_draining() {
                    return Poll::Ready(Err(Call::Drain));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn answers(&self) -> RefMut<'_, Vec<Rc<Cell<u64>>>> {
        self.answers.borrow_mut()
    }

    /// Whether that is so of when any answer last moved.
    fn any_answer(&self, is: impl Fn(&Cell<u64>) -> bool) -> bool {
        let alone = self.moved.get() > 0 && is(&self.moved);
        alone || self.answers().iter().any(|moved| is(moved))
    }

    /// Which deadline has passed.
    fn passed(&self, now: Timestamp) -> Option<Overdue> {
        let limits = &self.limits;
        let since = |at: &Cell<u64>| now.since(Timestamp(at.get()));
        let (busy, in_head) = (self.served.get() > 0, self.waiting_for_head.get() > 0);
        if self.closed_since.get() > 0 {
            let over = since(&self.heard) > LINGER || since(&self.closed_since) > FAREWELL;
            return over.then_some(Overdue::Gone);
        }
        let full = self.full_since.get() > 0;
        if full && since(&self.full_since) > SPAN {
            return Some(Overdue::Silent);
        }
        let held_until = self.held_until.get();
        if held_until > 0 && now.0 > held_until {
            return Some(Overdue::Held);
        }
        if self.is_half_closed() {
            let moves = self.any_answer(|moved| since(moved) <= LINGER);
            // Behind a full socket there may be an answer that is no longer served and not yet sent.
            let waits = full || busy && (moves || since(&self.half_closed_since) <= LINGER);
            return (!waits).then_some(Overdue::Gone);
        }
        let multiplexed = self.multiplexed.get();
        if full && !busy && !(multiplexed && in_head) {
            // Answers are on their way, so it is not idle, and over HTTP/1.1 it is we who do not read what may have come behind.
            return None;
        }
        // What HTTP/1.1 pipelines is not read on before it is its turn.
        let (overdue, phase) = if in_head && (!busy || multiplexed) {
            (since(&self.waiting_for_head) > limits.head, Overdue::Head)
        } else if busy {
            (self.any_answer(|moved| since(moved) > limits.silence), Overdue::Silent)
        } else {
            (since(&self.idle_since) > limits.idle, Overdue::Idle)
        };
        overdue.then_some(phase)
    }
}

/// What a connection has been at for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// Sending the head of a request.
    Head,
    /// Nothing, between two requests.
    Idle,
    /// Not taking any of an answer.
    Silent,
    /// Having closed its side.
    Gone,
    /// Asking for answers and giving them no window.
    Held,
}

/// A request that is being served.
#[derive(Debug)]
pub struct Serving {
    watch: Rc<Watch>,
    /// HTTP/2: when its answer last moved, once there is one; until then the request's own deadline counts.
    moved: Option<Rc<Cell<u64>>>,
}

impl Serving {
    /// Only the end of the connection will tell where its answer ends.
    pub fn ends_by_closing(&self) {
        self.watch.ends_by_closing.set(true);
    }

    /// Whether no other request comes behind it: the peer has closed its side.
    pub fn is_last(&self) -> bool {
        self.watch.is_half_closed()
    }

    /// The head of the answer, or some of its body, was handed over.
    pub fn moved(&mut self) {
        let now = self.watch.worker.now();
        if !self.watch.multiplexed.get() {
            return self.watch.moved.set(now);
        }
        match &self.moved {
            Some(moved) => moved.set(now),
            None => {
                let moved = Rc::new(Cell::new(now));
                self.watch.answers().push(moved.clone());
                self.moved = Some(moved);
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(moved) = self.moved.take() {
            self.watch.answers().retain(|other| !Rc::ptr_eq(other, &moved));
        }
        self.watch.moved.set(0);
        self.watch.listens.set(false);
        let now = self.watch.worker.now();
        if self.watch.waiting_for_head.get() > 0 && !self.watch.multiplexed.get() {
            self.watch.waiting_for_head.set(now);
        }
        self.watch.served.update(|served| served - 1);
        self.watch.idle_since.set(now);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::time::sleep;

    const LIMITS: Limits = Limits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        silence: Duration::from_secs(60),
    };

    /// A connection on which nothing more happens than that it is looked at twice.
    async fn ready_soon() {
        tokio::task::yield_now().await;
    }

    async fn ends_after(deadlines: &Deadlines, watch: &Watch, each_second: impl Fn(&Watch)) -> u64 {
        for second in 0..200 {
            sleep(Duration::from_secs(1)).await;
            each_second(watch);
            deadlines.sweep();
            if watch.attend(pin!(ready_soon()), false).await.is_err() {
                return second;
            }
        }
        u64::MAX
    }

    fn trickles_a_head(watch: &Watch) {
        watch.head(false, true);
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn trickled_bytes_do_not_push_the_deadline_of_a_head_back() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        assert!((10..=11).contains(&ends_after(&deadlines, &watch, trickles_a_head).await), "the first");
        watch.head(true, false);
        drop(watch.serve());
        assert!((10..=11).contains(&ends_after(&deadlines, &watch, trickles_a_head).await), "a later one");
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn the_first_head_has_its_time_from_the_end_of_the_handshake_on() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        sleep(Duration::from_secs(8)).await;
        deadlines.sweep();
        watch.opens();
        assert!((10..=11).contains(&ends_after(&deadlines, &watch, trickles_a_head).await));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_pipelined_head_has_its_time_from_its_turn_on() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        let serving = watch.serve();
        watch.head(true, true);
        assert_eq!(ends_after(&deadlines, &watch, |_| ()).await, u64::MAX, "it waits for another's answer");
        drop(serving);
        assert!((10..=11).contains(&ends_after(&deadlines, &watch, |_| ()).await));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_pipelined_head_is_not_late_while_the_answers_before_it_are_taken() {
        let deadlines = Deadlines::default();
        for (in_head, then) in [(true, 10..=11), (false, 75..=76)] {
            let watch = deadlines.watch(LIMITS);
            watch.head(true, in_head);
            drop(watch.serve());
            let takes = |watch: &Watch| {
                watch.add_sent(LEAST);
                watch.stalled();
            };
            assert_eq!(ends_after(&deadlines, &watch, takes).await, u64::MAX);
            watch.drained();
            let after = ends_after(&deadlines, &watch, |_| ()).await;
            assert!(then.contains(&after), "from when it was read on: {after}");
        }
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn over_http2_who_takes_answers_is_not_idle_but_its_heads_have_their_time() {
        let deadlines = Deadlines::default();
        for (in_head, ends) in [(false, u64::MAX..=u64::MAX), (true, 10..=11)] {
            let watch = deadlines.watch(LIMITS);
            watch.multiplexes();
            watch.head(true, in_head);
            drop(watch.serve());
            let takes = |watch: &Watch| {
                watch.add_sent(LEAST);
                watch.stalled();
            };
            let after = ends_after(&deadlines, &watch, takes).await;
            assert!(ends.contains(&after), "{in_head}: {after}");
            watch.head(true, false);
            watch.drained();
            assert!((75..=76).contains(&ends_after(&deadlines, &watch, |_| ()).await));
        }
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn over_http2_a_head_has_its_time_whatever_else_is_served() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        watch.multiplexes();
        watch.head(true, false);
        let serving = std::cell::RefCell::new(watch.serve());
        let trickle = |watch: &Watch| {
            serving.borrow_mut().moved();
            watch.head(false, true);
        };
        assert!((10..=11).contains(&ends_after(&deadlines, &watch, trickle).await));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn an_idle_connection_ends_later_than_a_slow_head() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        watch.head(true, false);
        drop(watch.serve());
        assert!((75..=76).contains(&ends_after(&deadlines, &watch, |_| ()).await));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn an_answer_may_take_its_time_as_long_as_it_moves_whatever_else_the_peer_sends() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        watch.multiplexes();
        let pings = |watch: &Watch| watch.head(true, false);
        let serving = std::cell::RefCell::new(watch.serve());
        assert_eq!(
            ends_after(&deadlines, &watch, pings).await,
            u64::MAX,
            "no answer yet: its own deadline counts"
        );
        assert_eq!(ends_after(&deadlines, &watch, |_| serving.borrow_mut().moved()).await, u64::MAX);
        assert!((59..=61).contains(&ends_after(&deadlines, &watch, pings).await), "pings are no progress");
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_peer_may_go_on_taking_what_it_was_sent_but_not_for_long() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        watch.closes();
        assert!((1..=2).contains(&ends_after(&deadlines, &watch, |_| ()).await), "it says nothing");
        let watch = deadlines.watch(LIMITS);
        watch.closes();
        assert!((30..=31).contains(&ends_after(&deadlines, &watch, Watch::closes).await));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_full_socket_has_to_empty_at_some_rate() {
        let deadlines = Deadlines::default();
        for (each_second, ends) in [(0, true), (1, true), (200, true), (300, false), (100_000, false)] {
            let watch = deadlines.watch(LIMITS);
            watch.head(true, false);
            let serving = std::cell::RefCell::new(watch.serve());
            let drips = |watch: &Watch| {
                serving.borrow_mut().moved();
                watch.add_sent(each_second);
                watch.stalled();
            };
            let after = ends_after(&deadlines, &watch, drips).await;
            assert_eq!((29..=32).contains(&after), ends, "{each_second} bytes a second: {after}");
        }
        // Once it has taken all there is, nothing is asked of it.
        let watch = deadlines.watch(LIMITS);
        watch.head(true, false);
        watch.stalled();
        watch.drained();
        assert!((75..=76).contains(&ends_after(&deadlines, &watch, |_| ()).await));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn who_has_closed_its_side_is_answered_for_a_moment_and_as_long_as_the_answer_moves() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        watch.head(true, false);
        let serving = std::cell::RefCell::new(watch.serve());
        watch.half_closes();
        assert!((1..=2).contains(&ends_after(&deadlines, &watch, |_| ()).await));
        assert_eq!(ends_after(&deadlines, &watch, |_| serving.borrow_mut().moved()).await, u64::MAX);
        assert!((0..=1).contains(&ends_after(&deadlines, &watch, |_| ()).await));
        drop(serving);
        watch.stalled();
        assert!((29..=31).contains(&ends_after(&deadlines, &watch, |_| ()).await), "it has not gone out");
        watch.drained();
        assert_eq!(ends_after(&deadlines, &watch, |_| ()).await, 0, "nothing more will come");
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn answers_are_held_from_when_the_last_of_them_moved_and_for_the_shortest_time_told() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        watch.multiplexes();
        watch.head(true, false);
        let _serving = watch.serve();
        let patience = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(ends_after(&deadlines, &watch, |watch| watch.held(patience(5), true)).await, u64::MAX);
        assert!(
            (4..=6).contains(&ends_after(&deadlines, &watch, |watch| watch.held(patience(5), false)).await)
        );
        watch.held(None, false);
        assert_eq!(ends_after(&deadlines, &watch, |_| ()).await, u64::MAX);
        watch.held(patience(50), false);
        assert!(
            (1..=3).contains(&ends_after(&deadlines, &watch, |watch| watch.held(patience(2), false)).await)
        );
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn what_is_dropped_is_no_longer_watched() {
        let deadlines = Deadlines::default();
        drop(deadlines.watch(LIMITS));
        deadlines.sweep();
        assert!(deadlines.watched.borrow().is_empty());
    }
}
