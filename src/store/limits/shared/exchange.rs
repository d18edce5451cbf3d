//! The one task that speaks to the server: when, what with, and what becomes of the answer.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::ledger::{News as Told, Promised};
use super::message::{self, Done, Drawn, Reply, Words};
use super::{Inner, Nanos, Pending, SharedLimits, State, hold, nanos};
use crate::store::limits::{Charge, EGRESS};
use crate::store::link::{Link, Lost, News, Script};
use crate::time::{Timestamp, sleep_until, timeout};

static EXCHANGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("exchange.lua")));

/// All budgets are heard of so often, or oftener where a window is short.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the first connection is waited for; less than callers wait to be told what was spent before.
const FIRST: Duration = Duration::from_millis(500);

/// A message, and what is needed to make sense of its answer.
struct Message {
    keys: Vec<String>,
    words: Vec<Vec<u8>>,
    /// Budgets it speaks of, their sub-windows, and what it tells of each.
    ledgers: Vec<usize>,
    sub_windows: Vec<Nanos>,
    told: Vec<Told>,
    /// What each was promised before the message bound it.
    promised: Vec<Promised>,
    draws: Vec<Pending>,
}

impl<L: Link> SharedLimits<L> {
    /// Speaks to the server until `stop`; from then on this replica is on its own.
    pub async fn run(self, stop: CancellationToken) {
        self.speak(stop).await;
        let mut state = self.lock();
        state.cut_off.get_or_insert_with(Timestamp::now);
        state.pending.clear();
    }

    async fn speak(&self, stop: CancellationToken) {
        let mut news = self.0.link.news();
        if !self.0.link.is_connected() {
            let connected = async { while news.recv().await.is_ok_and(|news| news != News::Connected) {} };
            tokio::select! {
                () = stop.cancelled() => return,
                _ = timeout(FIRST, connected) => {}
            }
        }
        loop {
            // However much there is to say, what others say is heard in between.
            while let Ok(heard) = news.try_recv() {
                self.hear(&heard);
            }
            if stop.is_cancelled() {
                return;
            }
            if self.exchange(false).await {
                continue;
            }
            let due = self.lock().due;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.0.wake.notified() => {}
                () = sleep_until(due.to_instant()) => {}
                heard = news.recv() => match heard {
                    Ok(news) => self.hear(&news),
                    // Whatever was missed, the next exchange tells.
                    Err(RecvError::Lagged(_)) => self.lock().due = Timestamp::default(),
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    /// Tells what is left to tell, and that this replica is no more: others need not keep anything for it.
    pub async fn leave(&self) {
        self.exchange(true).await;
    }

    fn hear(&self, news: &News) {
        let mut state = self.lock();
        match news {
            News::Connected => state.due = Timestamp::default(),
            News::Disconnected => self.0.lost(&mut state, &Lost::Unreachable),
            News::Message { channel, payload } if *channel == self.0.names.budgets() => {
                let text = String::from_utf8_lossy(payload);
                let Some((key, free)) = text.rsplit_once(' ') else { return };
                let (Ok(free), Some(at)) = (free.parse(), self.0.position(&state, key)) else { return };
                state.ledgers[at].recalled = Some(free);
                state.urgent = true;
            }
            News::Message { .. } => {}
        }
    }

    /// One message and its answer; whether another should follow at once.
    async fn exchange(&self, leaving: bool) -> bool {
        let _turn = self.0.speaking.lock().await;
        let composed = {
            let mut state = self.lock();
            if !self.0.link.is_connected() {
                self.0.lost(&mut state, &Lost::Unreachable);
                state.due = Timestamp::now() + HEARTBEAT;
                return false;
            }
            self.0.compose(&mut state, leaving)
        };
        let Some(message) = composed else { return false };
        let Message { keys, words, ledgers, sub_windows, told, promised, draws } = message;
        let answer = self.0.link.run(&EXCHANGE, &keys, words).await;
        // Then it surely was not done. Of an answer that makes no sense nobody can say so.
        let undone = matches!(answer, Err(Lost::Refused(_)));
        let mut state = self.lock();
        let heard = answer.and_then(|value| understood(value, &sub_windows, draws.len()));
        match heard {
            Ok((server, reply)) => {
                if !state.clock.is_known() {
                    state.due = Timestamp::default();
                }
                let jump = state.clock.hear(Timestamp::now(), server);
                if jump != 0 {
                    state.ledgers.iter_mut().for_each(|ledger| ledger.shift(jump));
                }
                match reply {
                    Reply::Done(done) => self.0.done(&mut state, server, done, &ledgers, draws),
                    Reply::Late | Reply::Lost => {
                        // Those who wait for it go on with what was promised.
                        drop(draws);
                        state.not_heard(&ledgers, told);
                        state.restoring = matches!(reply, Reply::Lost);
                        state.due = Timestamp::default();
                    }
                }
                true
            }
            Err(lost) => {
                drop(draws);
                state.not_heard(&ledgers, told);
                if undone {
                    for (at, promised) in ledgers.iter().zip(promised) {
                        state.ledgers[*at].unbind(promised);
                    }
                }
                self.0.lost(&mut state, &lost);
                false
            }
        }
    }
}

fn understood(value: Value, sub_windows: &[Nanos], draws: usize) -> Result<(Nanos, Reply), Lost> {
    let nonsense = || Lost::Refused("an answer that makes no sense".to_owned());
    message::read(value, sub_windows, draws).ok_or_else(nonsense)
}

impl State {
    fn not_heard(&mut self, ledgers: &[usize], told: Vec<Told>) {
        for (at, told) in ledgers.iter().zip(told) {
            self.ledgers[*at].not_heard(told);
        }
    }
}

impl<L> Inner<L> {
    /// What is to be said now, if anything.
    fn compose(&self, state: &mut State, leaving: bool) -> Option<Message> {
        if state.left {
            return None;
        }
        state.left = leaving;
        let local = Timestamp::now();
        // Nobody waits for an answer any more: not worth a charge.
        state.pending.retain(|pending| !pending.answer.is_closed());
        let all = state.due <= local || state.restoring || leaving;
        if !all && !std::mem::take(&mut state.urgent) && state.pending.is_empty() {
            return None;
        }
        if all {
            state.due = local + self.heartbeat(state);
            state.urgent = false;
        }
        // Before the server's time is known, nothing can be told of when anything was.
        let known = state.clock.is_known();
        let now = state.now();
        let draws = std::mem::take(&mut state.pending);
        let places: Vec<[usize; 2]> =
            draws.iter().map(|pending| pending.draw.budgets.map(|id| state.place(id))).collect();
        let concerned = |at: &usize| {
            let ledger = &state.ledgers[*at];
            let drawn = places.iter().any(|places| places.contains(at));
            all || drawn || ledger.recalled.is_some() || ledger.recount || !ledger.news.is_empty()
        };
        let ledgers: Vec<usize> = (0..state.ledgers.len()).filter(concerned).collect();
        if ledgers.is_empty() {
            return None;
        }
        let late = self.settings.timeout.saturating_mul(2).max(Duration::from_millis(100));
        let mut words = Words::default();
        words.word(&state.epoch);
        words.word(&self.replica);
        words.word(&self.names.budgets());
        if known {
            words.time(now)
        } else {
            words.number(0)
        }
        words.time(nanos(late));
        let heartbeat = nanos(self.heartbeat(state));
        words.time(heartbeat.saturating_mul(5) / 2);
        words.number(u8::from(state.restoring));
        words.time(heartbeat.saturating_mul(2));
        words.number(state.ledgers.iter().map(|ledger| ledger.replicas).max().unwrap_or(1));
        words.number(self.settings.min_replicas);
        words.number(u8::from(leaving));
        words.number(ledgers.len());
        ledgers.iter().for_each(|at| words.number(state.ledgers[*at].version));
        let mut keys = vec![self.names.of("epoch")];
        let (mut sub_windows, mut told, mut promised) = (Vec::new(), Vec::new(), Vec::new());
        for at in &ledgers {
            let n = places.iter().filter(|places| places.contains(at)).count();
            let ledger = &mut state.ledgers[*at];
            let key = self.key(&ledger.name);
            keys.extend(["", ":spent", ":replicas"].map(|part| format!("{key}{part}")));
            words.word(&key);
            let plan = ledger.mirror.plan();
            words.plan(plan, hold(&ledger.name, plan).map(nanos));
            if state.restoring {
                ledger.recall_gate(now);
            }
            let snapshot = match (state.restoring, ledger.recount) {
                (true, _) if known => ledger.last_account(now),
                (false, true) if known => ledger.account(now),
                _ => Vec::new(),
            };
            promised.push(ledger.promised());
            let (claim, share) = ledger.bind(now, n as u64, nanos(late));
            words.number(claim);
            words.number(share);
            words.number(ledger.in_flight);
            words.number(u8::from(all));
            words.spent(&snapshot);
            let blind: Vec<_> = if known { ledger.blind.tell().collect() } else { Vec::new() };
            words.number(blind.len());
            for entry in blind {
                words.number(entry.serial);
                words.time(entry.at);
                words.number(entry.n);
            }
            let news = if known { ledger.tell(now) } else { Told::default() };
            words.news(now, &news);
            sub_windows.push(ledger.blind.sub_window);
            told.push(news);
        }
        words.number(draws.len());
        for (pending, places) in draws.iter().zip(places) {
            let place = |wanted: usize| ledgers.iter().position(|at| *at == wanted).unwrap_or_default();
            words.draw(places.map(place), &pending.draw);
        }
        Some(Message { keys, words: words.0, ledgers, sub_windows, told, promised, draws })
    }

    fn done(&self, state: &mut State, server: Nanos, done: Done, ledgers: &[usize], draws: Vec<Pending>) {
        if state.cut_off.take().is_some() {
            tracing::info!("the shared store knows again what was spent: budgets are shared");
        }
        (state.epoch, state.restoring) = (done.epoch, false);
        let at = state.local(server).min(Timestamp::now());
        let drawn: Vec<Drawn> = done.draws;
        for (pending, drawn) in draws.iter().zip(&drawn) {
            if *drawn == Drawn::Yes {
                pending.draw.budgets.into_iter().for_each(|id| state.ledger(id).spend(server));
            }
        }
        for (index, account) in ledgers.iter().zip(done.accounts) {
            state.ledgers[*index].learn(server, account);
        }
        for (pending, drawn) in draws.into_iter().zip(drawn) {
            let budgets = pending.draw.budgets;
            let charge = Charge { budgets, at, mark: server };
            if pending.answer.send((drawn, charge)).is_err() && drawn == Drawn::Yes {
                budgets.into_iter().for_each(|id| state.ledger(id).refund(server, false));
                state.urgent = true;
            }
        }
    }

    /// There is no word of the server.
    fn lost(&self, state: &mut State, lost: &Lost) {
        // A single answer that comes too late is no outage: the link says when it is one.
        if *lost == Lost::Late {
            return;
        }
        if state.cut_off.is_none() {
            state.cut_off = Some(Timestamp::now());
            tracing::warn!(reason = %lost, "the shared store is lost: this replica goes on with its share of each budget");
        }
        state.pending.clear();
    }

    fn heartbeat(&self, state: &State) -> Duration {
        let windows = state.ledgers.iter().map(|ledger| ledger.mirror.plan().quota.window);
        let shortest = windows.min().unwrap_or(HEARTBEAT);
        (shortest / 8).clamp(Duration::from_millis(50), HEARTBEAT)
    }

    fn key(&self, name: &str) -> String {
        match name == EGRESS {
            true => self.names.of(&format!("budget:egress:{}", self.settings.egress_group)),
            false => self.names.of(&format!("budget:{name}")),
        }
    }

    fn position(&self, state: &State, key: &str) -> Option<usize> {
        state.ledgers.iter().position(|ledger| self.key(&ledger.name) == key)
    }
}
