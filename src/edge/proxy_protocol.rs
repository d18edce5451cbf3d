//! The PROXY protocol (HAProxy's specification, versions 1 and 2): who really called, told by the balancer in front.
//!
//! It stands before everything else on a connection, TLS included, and claims any address it likes. So it is believed from
//! trusted peers only, it is mandatory where it is switched on (guessing whether it is there would let a caller write
//! one), and it is bounded in bytes here and in time by whoever awaits it.

use std::io;
use std::net::IpAddr;

use proxy_header::{Error, ParseConfig, Protocol, ProxiedAddress, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Bytes of the longest header that is taken: addresses, and what balancers add to them.
const LONGEST: usize = 2048;
/// Bytes of the longest header of version 1, by the specification.
const LONGEST_V1: usize = 107;

/// What version 2 begins with where the command is `LOCAL`.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20";
/// Where version 2 names the family and the transport, and that of datagrams over a Unix socket.
const FAMILY: usize = 13;
const UNIX_DATAGRAM: u8 = 0x32;

const CONFIG: ParseConfig = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Before the header was whole.
    #[error("the connection ended")]
    Ended(#[from] io::Error),
    /// It is none, or too long.
    #[error("there is no valid PROXY header")]
    Invalid,
}

/// Reads the header off `stream`, and not a byte more. `None`: it names nobody, and the caller is the peer itself. Either the
/// balancer calls on its own behalf, to see whether we live (`LOCAL`), or for somebody who has no IP address or none that it
/// knows (`UNKNOWN`, an unspecified family, a Unix socket). The specification has the connection's real endpoints stand in
/// for both. It lets a receiver refuse the second, which would turn away balancers that probe with `UNKNOWN`, as its first
/// edition had it, and the processes of the balancer's own host.
///
/// # Errors
/// There is no valid header.
pub(super) async fn read(stream: &mut TcpStream) -> Result<Option<IpAddr>, Fault> {
    let mut header = Vec::new();
    let mut peeked = vec![0; LONGEST];
    loop {
        let before = header.len();
        let count = stream.peek(&mut peeked[..LONGEST - before]).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        header.extend_from_slice(&peeked[..count]);
        match parse(&header) {
            Parsed::Whole { source, length } => {
                stream.read_exact(&mut peeked[..length.saturating_sub(before)]).await?;
                return Ok(source);
            }
            // As long as it is not whole, all of it is header.
            Parsed::Partial if header.len() < LONGEST => {
                stream.read_exact(&mut peeked[..count]).await?;
            }
            Parsed::Partial | Parsed::Invalid => return Err(Fault::Invalid),
        }
    }
}

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A header.
    Whole {
        /// Whom it names.
        source: Option<IpAddr>,
        /// Bytes of it.
        length: usize,
    },
    /// The beginning of one.
    Partial,
    /// None.
    Invalid,
}

/// Looks for a header at the beginning of what a connection has brought.
pub fn parse(header: &[u8]) -> Parsed {
    let v1 = header.first() == Some(&b'P');
    // The library does not look at the character behind the word.
    if v1 && !header.starts_with(&b"PROXY "[..header.len().min(6)]) {
        return Parsed::Invalid;
    }
    // Its family and addresses are to be ignored, whatever they are; the library wants them to make sense.
    if let Some(length) = declared(header).filter(|_| header.starts_with(LOCAL)) {
        return if header.len() < length { Parsed::Partial } else { Parsed::Whole { source: None, length } };
    }
    match ProxyHeader::parse(header, CONFIG) {
        Ok((_, length)) if v1 && length > LONGEST_V1 => Parsed::Invalid,
        // What comes over a connection is no datagram, whoever sent it.
        Ok(_) if !v1 && header[FAMILY] == UNIX_DATAGRAM => Parsed::Invalid,
        Ok((parsed, length)) => match parsed.proxied_address() {
            Some(ProxiedAddress { protocol: Protocol::Datagram, .. }) => Parsed::Invalid,
            address => {
                Parsed::Whole { source: address.map(|address| address.source.ip().to_canonical()), length }
            }
        },
        // No byte that follows could make a header of version 2 longer than it says it is.
        Err(Error::BufferTooShort) if declared(header).is_some_and(|length| header.len() >= length) => {
            Parsed::Invalid
        }
        Err(Error::BufferTooShort) => Parsed::Partial,
        Err(_) => Parsed::Invalid,
    }
}

/// How long a header of version 2 says it is; version 1 ends with its line.
fn declared(header: &[u8]) -> Option<usize> {
    const FIXED: usize = 16;
    let length = header.get(FIXED - 2..FIXED).filter(|_| header[0] == b'\r')?;
    Some(FIXED + usize::from(u16::from_be_bytes([length[0], length[1]])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    /// Command and family, the addresses, and what follows them.
    fn v2(command: u8, family: u8, addresses: &[u8], more: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len() + more.len()).expect("short").to_be_bytes();
        [SIGNATURE, &[command, family], &length, addresses, more].concat()
    }

    fn v4(source: [u8; 4]) -> Vec<u8> {
        [&source[..], &[10, 0, 0, 1], &4711u16.to_be_bytes(), &443u16.to_be_bytes()].concat()
    }

    fn whole(source: Option<&str>, length: usize) -> Parsed {
        Parsed::Whole { source: source.map(|ip| ip.parse().expect("an address")), length }
    }

    #[test]
    fn both_versions_are_read_to_their_end_and_no_further() {
        let mapped = [&[0; 10][..], &[0xff, 0xff, 203, 0, 113, 9], &[0; 16], &[0; 4]].concat();
        for (header, source) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\n".to_vec(), Some("203.0.113.9")),
            (b"PROXY TCP6 2001:db8::9 2001:db8::1 4711 443\r\n".to_vec(), Some("2001:db8::9")),
            (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 4711 443\r\n".to_vec(), Some("203.0.113.9")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4([203, 0, 113, 9]), b""), Some("203.0.113.9")),
            (v2(0x21, 0x11, &v4([203, 0, 113, 9]), &[0xee; 600]), Some("203.0.113.9")),
            (v2(0x21, 0x21, &mapped, b""), Some("203.0.113.9")),
            (v2(0x20, 0x11, &v4([203, 0, 113, 9]), b""), None),
            (v2(0x20, 0x00, b"", b""), None),
            (v2(0x20, 0x11, b"", b""), None),
            (v2(0x20, 0xff, b"anything", &[0xee; 600]), None),
            (v2(0x21, 0x00, b"", b""), None),
            (v2(0x21, 0x00, &v4([203, 0, 113, 9]), &[0xee; 600]), None),
            (v2(0x21, 0x31, &[b'/'; 216], b""), None),
        ] {
            let followed = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(&followed), whole(source, header.len()), "{header:?}");
            for cut in 1..header.len() {
                assert_eq!(parse(&header[..cut]), Parsed::Partial, "{header:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for text in [
            &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nhost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
            b"PROXY-TCP4 203.0.113.9 10.0.0.1 4711 443\r\n",
            b"PROXY TCP4 2001:db8::9 10.0.0.1 4711 443\r\n",
            b"PROXY TCP6 fe80::1%eth0 fe80::2 4711 443\r\n",
            b"PROXY TCP4 203.0.113.9 10.0.0.1 99999 443\r\n",
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\rx",
            b"PROXY UDP4 203.0.113.9 10.0.0.1 4711 443\r\n",
            long.as_bytes(),
            &v2(0x31, 0x11, &v4([203, 0, 113, 9]), b""),
            &v2(0x22, 0x11, &v4([203, 0, 113, 9]), b""),
            &v2(0x21, 0x12, &v4([203, 0, 113, 9]), b""),
            &v2(0x21, 0x11, b"short", b""),
            &v2(0x21, 0x41, &[0; 12], b""),
            &v2(0x21, 0x31, &[b'/'; 215], b""),
            &v2(0x21, 0x32, &[b'/'; 216], b""),
            &v2(0x21, 0x21, &v4([203, 0, 113, 9]), b""),
            &v2(0x10, 0x00, b"", b""),
        ] {
            assert_eq!(parse(text), Parsed::Invalid, "{}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_told_apart_without_a_panic(
            begin in prop_oneof![Just(SIGNATURE.to_vec()), Just(b"PROXY ".to_vec()), Just(b"PROXY TCP4 ".to_vec()), Just(Vec::new())],
            rest in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let header = [begin, rest].concat();
            if let Parsed::Whole { length, .. } = parse(&header) {
                prop_assert!(length <= header.len());
            }
        }
    }
}
