//! Finds the injected secret in what comes back: raw, percent-encoded, and in base64 and base64url at all three alignments.
//!
//! An upstream that echoes a request (a debug route, an error page, a 401 that quotes the `Authorization` field) would
//! hand our secret to a browser. A [`Scan`] reads a body as it streams and holds back only the bytes that may still become
//! a match, so that not one byte of a match has left when it is found.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::dfa::DFA;
use aho_corasick::{Anchored, packed};
use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;
use memchr::memmem::Finder;
use memchr::{memchr, memchr_iter};

mod grams;

use grams::Grams;

/// The secret was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretFound;

/// What to look for: secrets in all their forms. Cheap to clone.
#[derive(Clone)]
pub struct SecretGuard(Arc<Patterns>);

struct Patterns {
    automaton: DFA,
    start: StateID,
    /// How many bytes of a pattern lie behind each state.
    depth: HashMap<StateID, usize, RandomState>,
    /// Finds the first bytes of a pattern many times faster than the automaton walks; `None` where the CPU cannot.
    candidates: Option<packed::Searcher>,
    /// Finds most of what holds no pattern by a tenth of it; `None` where a pattern is short.
    grams: Option<Grams>,
    /// What to look for in the name of a field, which is in lower case.
    names: Vec<Finder<'static>>,
    /// Bytes of the shortest pattern.
    shortest: usize,
}

/// How many first bytes of a pattern make a candidate.
const CANDIDATE: usize = 4;
/// How many bytes an escape has.
const ESCAPE: usize = 3;
/// Few fields are longer.
const FIELD: usize = 256;
/// How many bytes are searched for candidates and escapes in turn.
const PIECE: usize = 1024;

impl SecretGuard {
    /// Prepares the search for any of `secrets`.
    ///
    /// # Errors
    /// The automaton's own, for a secret beyond any real length.
    pub fn new<'s>(secrets: impl IntoIterator<Item = &'s str>) -> Result<Self, aho_corasick::BuildError> {
        let patterns: BTreeSet<Vec<u8>> =
            secrets.into_iter().flat_map(|secret| forms(secret.as_bytes())).collect();
        let automaton = DFA::new(&patterns)?;
        // The start state of an unanchored search always exists.
        let start = automaton.start_state(Anchored::No).unwrap_or_default();
        let mut depth = HashMap::default();
        for pattern in &patterns {
            let mut state = start;
            for (at, byte) in pattern.iter().enumerate() {
                state = automaton.next_state(Anchored::No, state, *byte);
                depth.insert(state, at + 1);
            }
        }
        // Secrets begin alike: a second one costs the search nothing.
        let beginnings: BTreeSet<&[u8]> =
            patterns.iter().map(|pattern| &pattern[..CANDIDATE.min(pattern.len())]).collect();
        let candidates = packed::Searcher::new(beginnings);
        let grams = Grams::of(&patterns);
        let names =
            patterns.iter().map(|form| Finder::new(&form.to_ascii_lowercase()).into_owned()).collect();
        let shortest = patterns.iter().map(Vec::len).min().unwrap_or(0);
        Ok(Self(Arc::new(Patterns { automaton, start, depth, candidates, grams, names, shortest })))
    }

    /// Whether `text` holds one of them.
    pub fn found_in(&self, text: &[u8]) -> bool {
        // Escapes only make a form longer.
        if text.len() < self.0.shortest {
            return false;
        }
        // Most fields hold neither the beginning of a form nor an escape, which is seen at once: a tenth of what a search costs.
        // A search of what is longer has faster ways to see it.
        let begins = |candidates: &packed::Searcher| text.len() > FIELD || candidates.find(text).is_some();
        let begins = self.0.candidates.as_ref().is_none_or(begins);
        (begins || memchr(b'%', text).is_some()) && Search::of(&*self.0).read(text).is_err()
    }

    /// Whether the name of a field, in lower case as all are kept, holds one of them in lower case.
    pub fn found_in_name(&self, name: &str) -> bool {
        name.len() >= self.0.shortest && self.0.names.iter().any(|form| form.find(name.as_bytes()).is_some())
    }

    /// Begins to read a body.
    pub fn scan(&self) -> Scan {
        Scan { search: Search::of(self.0.clone()), held: BytesMut::new() }
    }
}

impl fmt::Debug for SecretGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretGuard(…)")
    }
}

/// The forms in which `secret` may stand in a text. Percent-encoding is undone while reading, so it is not among them.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = BTreeSet::from([secret.to_vec()]);
    for alphabet in [STANDARD, URL_SAFE] {
        for alignment in 0..3 {
            let mut text = vec![0; alignment];
            text.extend_from_slice(secret);
            let encoded = base64(&text, alphabet);
            // Characters that also hold bits of what stands before or behind are left out.
            let first = (alignment * 8).div_ceil(6);
            let last = text.len() * 8 / 6;
            forms.insert(encoded[first..last].to_vec());
        }
    }
    forms.into_iter().filter(|form| !form.is_empty()).collect()
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn base64(bytes: &[u8], alphabet: &[u8; 64]) -> Vec<u8> {
    let bits = bytes.len() * 8;
    let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
    let sextet = |from: usize| (from..from + 6).fold(0, |value, at| value << 1 | usize::from(bit(at)));
    (0..bits).step_by(6).map(|from| alphabet[sextet(from)]).collect()
}

/// A body being read.
pub struct Scan {
    search: Search<Arc<Patterns>>,
    /// Bytes that may still become a match.
    held: BytesMut,
}

/// A search under way, by patterns of its own or lent ones.
struct Search<P> {
    patterns: P,
    /// Where the text as it is stands in the automaton.
    raw: StateID,
    /// The same for the text with `%XX` undone, where that differs.
    decoded: Option<Decoded>,
}

#[derive(Clone, Copy)]
struct Decoded {
    state: StateID,
    /// Raw bytes behind `state`.
    raw_len: usize,
    /// An escape that is not complete.
    escape: Escape,
}

#[derive(Clone, Copy)]
enum Escape {
    None,
    Percent,
    Digit(u8),
}

impl Scan {
    /// Reads on; what comes back can be passed on.
    ///
    /// # Errors
    /// The secret is in there: nothing of it was returned before.
    pub fn push(&mut self, data: Bytes) -> Result<Bytes, SecretFound> {
        self.search.read(&data)?;
        let live = self.search.live();
        if live == 0 && self.held.is_empty() {
            return Ok(data);
        }
        if self.held.is_empty() {
            let pass = data.len() - live.min(data.len());
            self.held.extend_from_slice(&data[pass..]);
            return Ok(data.slice(..pass));
        }
        self.held.extend_from_slice(&data);
        let pass = self.held.len() - live.min(self.held.len());
        Ok(self.held.split_to(pass).freeze())
    }

    /// The text has ended: what was held back is no match.
    pub fn finish(self) -> Bytes {
        self.held.freeze()
    }
}

impl<P: Deref<Target = Patterns>> Search<P> {
    fn of(patterns: P) -> Self {
        Self { raw: patterns.start, decoded: None, patterns }
    }

    fn read(&mut self, data: &[u8]) -> Result<(), SecretFound> {
        let (mut at, mut sure) = (0, 0);
        while at < data.len() {
            if at >= sure && self.live() == 0 {
                (at, sure) = self.skip(data, at);
                if at == data.len() {
                    break;
                }
            }
            self.step(data[at])?;
            at += 1;
        }
        Ok(())
    }

    /// From where on the automaton has to walk, and how far at least: to the next candidate, through the next escape that
    /// may stand for a byte of a pattern, or to the last bytes that might begin either.
    fn skip(&self, data: &[u8], from: usize) -> (usize, usize) {
        let Some(candidates) = &self.patterns.candidates else { return (from, from) };
        let tail = data.len().saturating_sub(CANDIDATE - 1).max(from);
        let mut at = from;
        // Piece by piece: neither search runs far ahead of the other, or a text full of either would be read many times.
        while at < tail {
            // The last piece goes to the end: an escape there may have a beginning that the tail does not reach back to.
            let piece = if at + PIECE < tail { at + PIECE } else { data.len() };
            // What begins in this piece, and how long it is at least.
            let reach = data.len().min(piece + self.patterns.shortest);
            let mut escapes = memchr_iter(b'%', &data[at..reach]).map(|escape| at + escape).peekable();
            let plain = escapes.peek().copied().unwrap_or(reach);
            let mut escapes = escapes.take_while(|escape| *escape < piece);
            let escape = escapes.find(|escape| self.may_go_on(data, from, *escape));
            let end = escape.unwrap_or(piece);
            if let Some(start) = self.candidate(candidates, data, at..end, plain) {
                return (start, start);
            }
            if let Some(escape) = escape {
                return (before(from, escape), escape + ESCAPE);
            }
            at = end;
        }
        // The last bytes may begin a candidate.
        (tail, tail)
    }

    /// Where the first candidate begins that may begin a pattern, if before the end of `range`. Up to `plain` there is no escape.
    fn candidate(
        &self,
        candidates: &packed::Searcher,
        data: &[u8],
        range: Range<usize>,
        plain: usize,
    ) -> Option<usize> {
        let (mut at, end, plain) = (range.start, range.end, &data[..plain]);
        let grams = self.patterns.grams.as_ref();
        loop {
            at = grams.map_or(at, |grams| grams.skip(plain, at));
            if at >= end {
                return None;
            }
            let near = grams.and_then(|grams| grams.near(plain, at)).map_or(end, |near| near.min(end));
            // A candidate that begins before that may reach beyond it.
            if let Some(found) = candidates.find(&data[at..data.len().min(near + CANDIDATE - 1)]) {
                return Some(near.min(at + found.start()));
            }
            at = near;
        }
    }

    /// Whether the escape at `at`, with what stands before it, may be the beginning of a pattern. What is too short for a
    /// candidate is no more than [`CANDIDATE`] less one byte.
    fn may_go_on(&self, data: &[u8], from: usize, at: usize) -> bool {
        let digit = |at: usize| data.get(at).and_then(|byte| hex(*byte));
        match (digit(at + 1), digit(at + 2)) {
            (Some(high), Some(low)) => {
                let plain = data[before(from, at)..at].iter().copied().chain([high * 16 + low]);
                let walk = |state, byte| self.patterns.automaton.next_state(Anchored::No, state, byte);
                plain.fold(self.patterns.start, walk) != self.patterns.start
            }
            // It is none, unless its digits are still to come.
            _ => at + ESCAPE > data.len(),
        }
    }

    /// Raw bytes at the end of what was read that may still become a match.
    fn live(&self) -> usize {
        let raw = self.depth(self.raw);
        let decoded = self.decoded.map_or(0, |decoded| decoded.raw_len);
        raw.max(decoded)
    }

    fn depth(&self, state: StateID) -> usize {
        if state == self.patterns.start { 0 } else { self.patterns.depth.get(&state).copied().unwrap_or(0) }
    }

    fn step(&mut self, byte: u8) -> Result<(), SecretFound> {
        let before = self.raw;
        self.raw = self.walk(before, byte)?;
        if byte == b'%' && self.decoded.is_none() {
            self.decoded = Some(Decoded { state: before, raw_len: self.depth(before), escape: Escape::None });
        }
        if let Some(decoded) = self.decoded {
            self.decoded = self.step_decoded(decoded, byte)?;
            // The `%` that breaks one escape may begin the next.
            if self.decoded.is_none() && byte == b'%' {
                let again = Decoded { state: before, raw_len: self.depth(before), escape: Escape::None };
                self.decoded = self.step_decoded(again, byte)?;
            }
        }
        Ok(())
    }

    fn step_decoded(&self, mut decoded: Decoded, byte: u8) -> Result<Option<Decoded>, SecretFound> {
        let hex = hex(byte);
        decoded.raw_len += 1;
        let meant = match (decoded.escape, hex) {
            (Escape::None, _) if byte == b'%' => {
                decoded.escape = Escape::Percent;
                return Ok(Some(decoded));
            }
            (Escape::Percent, Some(digit)) => {
                decoded.escape = Escape::Digit(digit);
                return Ok(Some(decoded));
            }
            (Escape::Digit(high), Some(low)) => high * 16 + low,
            (Escape::None, _) => byte,
            // No escape after all: such text is no encoding of anything, so the decoded reading ends here.
            (Escape::Percent | Escape::Digit(_), None) => return Ok(None),
        };
        decoded.escape = Escape::None;
        decoded.state = self.walk(decoded.state, meant)?;
        match self.depth(decoded.state) {
            0 => Ok(None),
            // One decoded byte takes at most three raw ones.
            depth => Ok(Some(Decoded { raw_len: decoded.raw_len.min(depth * 3), ..decoded })),
        }
    }

    fn walk(&self, state: StateID, byte: u8) -> Result<StateID, SecretFound> {
        let state = self.patterns.automaton.next_state(Anchored::No, state, byte);
        if self.patterns.automaton.is_special(state) && self.patterns.automaton.is_match(state) {
            return Err(SecretFound);
        }
        Ok(state)
    }
}

/// Where what stands before an escape at `at` and is no candidate may begin.
fn before(from: usize, at: usize) -> usize {
    at.saturating_sub(CANDIDATE - 1).max(from)
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scan(…)")
    }
}

#[cfg(test)]
mod tests;
