//! Who is calling: the address that limits and fairness go by.
//!
//! The caller is the TCP peer, unless the peer is a trusted proxy: then the one configured header is walked right to left
//! over all its lines, past trusted hops, to the first that is not. Whatever stands left of that is the caller's own
//! claim. A hop that does not parse ends the walk at the last trusted one: an attacker who garbles the header counts as
//! the proxy that passed it on, never as somebody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use ipnet::IpNet;

/// The caller's address, canonical: IPv4-mapped IPv6 is IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientIp(IpAddr);

impl ClientIp {
    /// From an address as a socket or header gave it.
    pub fn new(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        self.0
    }

    /// What is counted together: an IPv4 address, or an IPv6 prefix of `ipv6_prefix` bits (at most 64).
    pub fn key(self, ipv6_prefix: u8) -> ClientKey {
        match self.0 {
            IpAddr::V4(ip) => ClientKey(u64::from(ip.to_bits())),
            IpAddr::V6(ip) => {
                let high = u64::try_from(ip.to_bits() >> 64).unwrap_or_default();
                ClientKey(high & u64::MAX.checked_shl(64 - u32::from(ipv6_prefix.min(64))).unwrap_or(0))
            }
        }
    }
}

/// A packed client address. IPv4 lies in `::/32` of the IPv6 space, where no client lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(pub u64);

impl ClientKey {
    /// The wider networks this client is folded into when too many are tracked, nearest first: IPv4 /16; IPv6 /32, then
    /// /16. So there are never more than some 130,000 networks beside the clients.
    pub fn networks(self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.wider(), |network| network.wider())
    }

    /// Networks lie in `0:1::/32` to `0:3::/32`, where no client lives either.
    fn wider(self) -> Option<Self> {
        match self.0 >> 32 {
            0 => Some(Self((self.0 & 0xffff_0000) | 1 << 32)),
            2 => Some(Self((self.0 & 0xffff_0000) | 3 << 32)),
            1 | 3 => None,
            high => Some(Self(high | 2 << 32)),
        }
    }
}

/// `X-Forwarded-For`
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Finds the caller.
///
/// `header` is the one header believed from `trusted` peers: [`X_FORWARDED_FOR`] or [`FORWARDED`] (RFC 7239).
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, header: &HeaderName, trusted: &[IpNet]) -> ClientIp {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|network| network.contains(ip));
    let mut client = peer.to_canonical();
    if !is_trusted(&client) {
        return ClientIp(client);
    }
    let lines: Vec<&[u8]> = headers.get_all(header).iter().map(|value| value.as_bytes()).collect();
    for line in lines.into_iter().rev() {
        for hop in line.rsplit(|byte| *byte == b',') {
            let hop = std::str::from_utf8(hop).ok().map(str::trim);
            let ip = hop.and_then(|hop| if header == FORWARDED { forwarded_for(hop) } else { address(hop) });
            let Some(ip) = ip else { return ClientIp(client) };
            client = ip;
            if !is_trusted(&client) {
                return ClientIp(client);
            }
        }
    }
    ClientIp(client)
}

/// The `for` of one forwarded-element (RFC 7239 §4). What has a comma within quotes was cut there and is not read: whoever
/// chose it, as a caller chooses the `host`, must not choose what looks like an element of its own.
fn forwarded_for(mut element: &str) -> Option<IpAddr> {
    let mut found = None;
    loop {
        let (name, rest) = element.split_once('=')?;
        let (value, rest) = parameter(rest)?;
        if name.trim().eq_ignore_ascii_case("for") && found.replace(address(value)?).is_some() {
            return None;
        }
        let rest = rest.trim_start();
        if rest.is_empty() {
            return found;
        }
        element = rest.strip_prefix(';')?;
    }
}

/// A token or a quoted string (RFC 9110 §5.6), without its quotes, and what stands behind it.
fn parameter(text: &str) -> Option<(&str, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([';', ' ', '\t']).unwrap_or(text.len()));
        return (!value.contains('"')).then_some((value, rest));
    };
    let mut escaped = false;
    let end = quoted.find(|character| {
        let ends = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        ends
    })?;
    Some((&quoted[..end], &quoted[end + 1..]))
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`. Zone ids are refused.
fn address(text: &str) -> Option<IpAddr> {
    let is_port = |port: &str| !port.is_empty() && port.parse::<u16>().is_ok();
    let ip = if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        if !after.is_empty() && !after.strip_prefix(':').is_some_and(is_port) {
            return None;
        }
        IpAddr::V6(inside.parse::<Ipv6Addr>().ok()?)
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        ip
    } else {
        let (host, port) = text.split_once(':')?;
        if !is_port(port) {
            return None;
        }
        IpAddr::V4(host.parse::<Ipv4Addr>().ok()?)
    };
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(peer: &str, header: HeaderName, lines: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header.clone(), line.parse().expect("a value"));
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().expect("a network")).collect();
        client_ip(peer.parse().expect("an address"), &headers, &header, &trusted).ip().to_string()
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_claims() {
        assert_eq!(find("203.0.113.9", X_FORWARDED_FOR, &["10.0.0.1"], &["10.0.0.0/8"]), "203.0.113.9");
        assert_eq!(find("::ffff:203.0.113.9", X_FORWARDED_FOR, &["1.1.1.1"], &[]), "203.0.113.9");
    }

    #[test]
    fn a_trusted_chain_is_walked_right_to_left_over_all_lines() {
        let trusted = &["10.0.0.0/8", "2001:db8:1::/48"];
        for (lines, expected) in [
            (&["198.51.100.7"] as &[&str], "198.51.100.7"),
            (&["6.6.6.6, 198.51.100.7, 10.1.1.1"], "198.51.100.7"),
            (&["6.6.6.6", "198.51.100.7", "10.1.1.1"], "198.51.100.7"),
            (&["198.51.100.7:4711,10.2.2.2"], "198.51.100.7"),
            (&["[2001:db8::9]:80"], "2001:db8::9"),
            (&["::ffff:198.51.100.7"], "198.51.100.7"),
            (&["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
            (&["198.51.100.7, garbage, 10.2.2.2"], "10.2.2.2"),
            (&["fe80::1%eth0"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&[], "10.0.0.1"),
        ] {
            assert_eq!(find("10.0.0.1", X_FORWARDED_FOR, lines, trusted), expected, "{lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (lines, expected) in [
            (&["for=198.51.100.7;proto=https"] as &[&str], "198.51.100.7"),
            (&["For=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
            (&["for=6.6.6.6, for=198.51.100.7;by=10.0.0.1"], "198.51.100.7"),
            (&["for=unknown"], "10.0.0.1"),
            (&["for=_hidden"], "10.0.0.1"),
            (&["for=1.2.3.4;for=5.6.7.8"], "10.0.0.1"),
            (&["nonsense"], "10.0.0.1"),
            (&["for=198.51.100.7; proto=https ;host=\"a;for=6.6.6.6\""], "198.51.100.7"),
            (&["for=198.51.100.7;host=\"a\\\";for=6.6.6.6\""], "198.51.100.7"),
            (&["host=\"a\", for=198.51.100.7"], "198.51.100.7"),
        ] {
            assert_eq!(find("10.0.0.1", FORWARDED, lines, &["10.0.0.0/8"]), expected, "{lines:?}");
        }
    }

    #[test]
    fn who_chooses_a_quoted_value_chooses_no_address() {
        for line in [
            "for=198.51.100.7;host=\"a,for=6.6.6.6;q=\"",
            "for=198.51.100.7;host=\"a,for=6.6.6.6\"",
            "a=\", for=198.51.100.7;host=\";for=6.6.6.6;z=\"\"",
            "for=\"198.51.100.7\"x",
            "for=\"198.51.100.7",
            "for=198.51.100.7\"",
        ] {
            assert_eq!(find("10.0.0.1", FORWARDED, &[line], &["10.0.0.0/8"]), "10.0.0.1", "{line}");
        }
    }

    #[test]
    fn ipv6_clients_are_counted_by_prefix_and_never_meet_ipv4() {
        let key = |text: &str| ClientIp::new(text.parse().expect("an address")).key(64);
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        let wide = |text: &str| ClientIp::new(text.parse().expect("an address")).key(48);
        assert_eq!(wide("2001:db8:1:1::1"), wide("2001:db8:1:2::1"));
    }

    #[test]
    fn clients_are_folded_into_ever_wider_networks_that_are_nobody_elses() {
        let key = |text: &str| ClientIp::new(text.parse().expect("an address")).key(64);
        let networks = |text: &str| key(text).networks().collect::<Vec<_>>();
        assert_eq!(networks("192.0.2.1"), networks("192.0.99.1"));
        assert_ne!(networks("192.0.2.1"), networks("192.1.2.1"));
        assert_eq!(networks("2001:db8::1"), networks("2001:db8:7:1::"));
        let (near, far) = (networks("2001:db8::"), networks("2001:db9::"));
        assert_eq!((near.len(), near[0] == far[0], near[1] == far[1]), (2, false, true));
        for text in ["192.0.2.1", "192.0.0.0", "2001:db8::1", "2001::"] {
            let mut all = networks(text);
            all.push(key(text));
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), networks(text).len() + 1, "{text}");
        }
    }
}
