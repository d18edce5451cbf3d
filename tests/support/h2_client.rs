//! A caller who writes frames of HTTP/2 as it likes (RFC 9113), and fields as literals (RFC 7541 §6.2.2).

use std::net::SocketAddr;
use std::time::Duration;

use metorial_proxy::time::timeout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer takes longer, here.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as a block.
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, 0, 7, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// RFC 7541 §5.1.
pub(crate) fn integer(into: &mut Vec<u8>, first: u8, bits: u8, mut value: usize) {
    let most = (1usize << bits) - 1;
    if value < most {
        into.push(first | u8::try_from(value).expect("small"));
        return;
    }
    into.push(first | u8::try_from(most).expect("small"));
    value -= most;
    while value >= 128 {
        into.push(u8::try_from(value % 128).expect("small") | 0x80);
        value /= 128;
    }
    into.push(u8::try_from(value).expect("small"));
}

#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// What became of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Came {
    /// An answer, and whether it ended as it should.
    Answer { status: u16, body: String, whole: bool },
    /// The stream was reset.
    Reset(u32),
    /// The connection was ended, with this reason where one was told.
    Ended(Option<u32>),
    /// Nothing came in time.
    Nothing,
}

pub(crate) struct H2Client {
    tcp: TcpStream,
    buffer: Vec<u8>,
    pub(crate) next_stream: u32,
}

impl H2Client {
    /// Says hello with `settings`; it takes fields without the table that a block adds to.
    pub(crate) async fn connect(address: SocketAddr, settings: &[u8]) -> Self {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        tcp.set_nodelay(true).expect("an option");
        let mut client = Self { tcp, buffer: Vec::new(), next_stream: 1 };
        let settings = [&[0, 1, 0, 0, 0, 0], settings].concat();
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()).await;
        loop {
            let frame = client.frame().await.expect("settings");
            if frame.kind == SETTINGS && frame.flags & ACK != 0 {
                return client;
            }
            if frame.kind == SETTINGS {
                client.send(&self::frame(SETTINGS, ACK, 0, &[])).await;
            }
        }
    }

    /// The other side may have had enough.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.tcp.write_all(bytes).await.is_ok()
    }

    /// The number of a new stream.
    pub(crate) fn open(&mut self) -> u32 {
        self.next_stream += 2;
        self.next_stream - 2
    }

    /// The next frame; `None`: the connection has ended.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let [a, b, c, kind, flags, stream @ ..] = &self.buffer[..] {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if self.buffer.len() >= 9 + length {
                    let stream = u32::from_be_bytes(stream[..4].try_into().expect("four"));
                    let (kind, flags) = (*kind, *flags);
                    let payload = self.buffer.drain(..9 + length).skip(9).collect();
                    return Some(Frame { kind, flags, stream, payload });
                }
            }
            match self.tcp.read_buf(&mut self.buffer).await {
                Ok(count) if count > 0 => {}
                _ => return None,
            }
        }
    }

    /// What becomes of `stream`; other streams are not looked at.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Came {
        timeout(PATIENCE, self.follow(stream)).await.unwrap_or(Came::Nothing)
    }

    /// Whether the connection ends, whatever comes before.
    pub(crate) async fn is_ended(&mut self) -> bool {
        timeout(PATIENCE, async { while self.frame().await.is_some() {} }).await.is_ok()
    }

    async fn follow(&mut self, wanted: u32) -> Came {
        let (mut status, mut body, mut reason) = (None, Vec::new(), None);
        loop {
            let Some(Frame { kind, flags, stream, payload }) = self.frame().await else {
                return match status {
                    Some(status) => Came::Answer { status, body: text(&body), whole: false },
                    None => Came::Ended(reason),
                };
            };
            match kind {
                GOAWAY => reason = Some(number(&payload[4..8])),
                PING if flags & ACK == 0 => drop(self.send(&frame(PING, ACK, 0, &payload)).await),
                RST_STREAM if stream == wanted => {
                    return match status {
                        Some(status) => Came::Answer { status, body: text(&body), whole: false },
                        None => Came::Reset(number(&payload)),
                    };
                }
                HEADERS if stream == wanted => status = status.or(Some(self::status(&payload))),
                DATA if stream == wanted => body.extend_from_slice(&payload),
                _ => continue,
            }
            let ends = matches!(kind, HEADERS | DATA) && stream == wanted && flags & END_STREAM != 0;
            if let Some(status) = status.filter(|_| ends) {
                return Came::Answer { status, body: text(&body), whole: true };
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

/// `:status`, which stands first: from the static table, or behind its index (RFC 7541, appendix A).
fn status(block: &[u8]) -> u16 {
    let mut block = block;
    // The table's size is told to be what we asked for.
    while let [0x20..=0x3f, rest @ ..] = block {
        block = rest;
    }
    match block {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        [0x08 | 0x18 | 0x48, length, rest @ ..] if length & 0x80 == 0 => {
            text(&rest[..usize::from(*length)]).parse().expect("a status")
        }
        [0x08 | 0x18 | 0x48, length, rest @ ..] => digits(&rest[..usize::from(length & 0x7f)]),
        other => panic!("no status in {other:x?}"),
    }
}

/// Digits in Huffman's code (RFC 7541, appendix B): five bits up to 2, six from 3 on.
fn digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u16> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1))).collect();
    let value = |bits: &[u16]| bits.iter().fold(0, |value, bit| value << 1 | bit);
    let (mut at, mut number) = (0, 0);
    while at + 5 <= bits.len() {
        let (digit, length) = match value(&bits[at..at + 5]) {
            short @ 0..=2 => (short, 5),
            31 => break,
            _ => (value(&bits[at..at + 6]) - 0b01_1001 + 3, 6),
        };
        number = number * 10 + digit;
        at += length;
    }
    number
}
