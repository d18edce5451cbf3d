//! `[server]`

use std::net::SocketAddr;
use std::num::NonZero;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use secrecy::SecretString;

use super::{base_path, choice};
use crate::config::fault::Wrong;
use crate::config::reader::{DAY, MOMENT, Reader};
use crate::config::value::Field;
use crate::config::{ClientIpHeader, Drain, Server, TlsFiles, raw, secret};

const MANY: usize = 10_000_000;
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

pub(super) fn compile(mut at: Reader<'_, '_>, raw: raw::Server) -> Server {
    let secs = Duration::from_secs;
    let (listen, admin) = addresses(&mut at, raw.listen, raw.admin);
    let tls = at.table("tls", raw.tls);
    let tls = tls.and_then(|tls| tls_files(at.at("tls"), tls));
    let drain = at.section("drain", raw.drain);
    let header =
        [("x-forwarded-for", ClientIpHeader::XForwardedFor), ("forwarded", ClientIpHeader::Forwarded)];
    let workers = at.count("workers", raw.workers, 0_usize, 0..=1024);
    Server {
        listen,
        admin,
        base_path: at.checked("base_path", raw.base_path, |path| base_path(&path)).unwrap_or_default(),
        workers: if workers > 0 {
            workers
        } else {
            std::thread::available_parallelism().map_or(1, NonZero::get)
        },
        tls,
        proxy_protocol: proxy_protocol(&mut at, raw.proxy_protocol, &raw.trusted_proxies),
        trusted_proxies: trusted_proxies(&mut at, raw.trusted_proxies),
        client_ip_header: at
            .checked("client_ip_header", raw.client_ip_header, |text| choice(&text, &header))
            .unwrap_or_default(),
        hosts: at.list("hosts", raw.hosts, |text| host(&text)).unwrap_or_default(),
        max_connections: at.count("max_connections", raw.max_connections, 20_000, 1..=MANY),
        max_connections_per_ip: at.count(
            "max_connections_per_ip",
            raw.max_connections_per_ip,
            1000,
            1..=MANY,
        ),
        // The parser takes no target of 64 KiB and more.
        max_uri: at.length("max_uri", raw.max_uri, 8 * KIB, 63 * KIB),
        max_header_bytes: at.length("max_header_bytes", raw.max_header_bytes, 32 * KIB, 256 * KIB),
        max_request_body: at.size("max_request_body", raw.max_request_body, 8 * MIB, 1024 * MIB),
        max_in_flight: at.count("max_in_flight", raw.max_in_flight, 4096, 1..=MANY),
        header_read_timeout: at.duration(
            "header_read_timeout",
            raw.header_read_timeout,
            secs(10),
            MOMENT..=secs(300),
        ),
        idle_timeout: at.duration("idle_timeout", raw.idle_timeout, secs(75), MOMENT..=DAY),
        request_timeout: at.duration("request_timeout", raw.request_timeout, secs(20), MOMENT..=secs(3600)),
        body_idle_timeout: at.duration("body_idle_timeout", raw.body_idle_timeout, secs(60), MOMENT..=DAY),
        drain: drain_times(at.at("drain"), drain),
        admin_token: admin_token(&mut at, raw.admin_token),
    }
}

fn addresses(
    at: &mut Reader<'_, '_>,
    listen: raw::List<String>,
    admin: Field<String>,
) -> (Vec<SocketAddr>, SocketAddr) {
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let mut taken: Vec<SocketAddr> = Vec::new();
    let mut free = |text: String| {
        let address = address(&text)?;
        if let Some(other) = taken.iter().find(|other| overlap(other, &address)) {
            return Err(Wrong::new(format!("{address} is taken by {other}"), "write an address of its own"));
        }
        taken.push(address);
        Ok(address)
    };
    let absent = matches!(&listen, Field::Absent);
    let empty = matches!(&listen, Field::Set(addresses) if addresses.is_empty());
    let listen = at.list("listen", listen, &mut free);
    if empty {
        at.refuse("listen", Wrong::new("is empty: nobody could connect", "write at least one address"));
    }
    let listen = listen.unwrap_or_else(|| vec![local(8080)]);
    if absent {
        // A default is taken, too.
        free(local(8080).to_string()).ok();
    }
    let (admin, given) = match admin {
        Field::Absent => (Field::Set(local(9090).to_string()), false),
        given => (given, true),
    };
    let admin = at.checked("admin", admin, |text| {
        free(text).map_err(|wrong| {
            if given {
                wrong
            } else {
                Wrong::new("is missing, and its default is taken", "write an address of its own")
            }
        })
    });
    (listen, admin.unwrap_or_else(|| local(9090)))
}

fn address(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        let cure = "write an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080";
        Wrong::new(format!("{text:?} is no address"), cure)
    })
}

/// Whether two sockets cannot be bound together: the same port of the same address, or of all addresses of its family.
fn overlap(a: &SocketAddr, b: &SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    let same_ip = a.ip() == b.ip() || (same_family && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() != 0 && a.port() == b.port() && same_ip
}

fn trusted_proxies(at: &mut Reader<'_, '_>, field: raw::List<String>) -> Vec<IpNet> {
    let network = |text: String| {
        let network = text.parse::<IpNet>().or_else(|_| text.parse().map(|ip: std::net::IpAddr| ip.into()));
        let cure = "write a CIDR or an IP address, such as 10.0.0.0/8 or 192.0.2.7";
        network
            .map(|network| canonical(network.trunc()))
            .map_err(|_| Wrong::new(format!("{text:?} is no network"), cure))
    };
    let networks = at.list("trusted_proxies", field, network).unwrap_or_default();
    if networks.iter().any(|network| network.prefix_len() == 0) {
        at.warn(
            "trusted_proxies",
            Wrong::new(
                "trusts every address: callers can write any client IP they like",
                "list the networks of the proxies in front alone",
            ),
        );
    }
    networks
}

/// A network of IPv4 addresses mapped into IPv6 as what it is: the addresses it is compared with are never mapped.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else { return network };
    let prefix = mapped.prefix_len().checked_sub(96);
    let plain = mapped.addr().to_ipv4_mapped().zip(prefix);
    plain.and_then(|(ip, prefix)| Ipv4Net::new(ip, prefix).ok()).map_or(network, IpNet::V4)
}

fn proxy_protocol(at: &mut Reader<'_, '_>, field: Field<bool>, trusted: &raw::List<String>) -> bool {
    let on = at.value("proxy_protocol", field, false);
    let nobody = match trusted {
        Field::Absent => true,
        Field::Set(networks) => networks.is_empty(),
        Field::Wrong(_) => false,
    };
    if on && nobody {
        at.refuse(
            "proxy_protocol",
            Wrong::new(
                "is believed from trusted_proxies alone, and there are none: nobody could connect",
                "list the balancers' networks in trusted_proxies",
            ),
        );
    }
    on
}

/// A `Host` value as it is compared: lower case, without a port.
fn host(text: &str) -> Result<String, Wrong> {
    let cure = "write a host name without a port, such as \"api.example.com\", or an IP address";
    let wrong = || Wrong::new(format!("{text:?} is no host"), cure);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{ip}]"));
    }
    let authority: http::uri::Authority = text.parse().map_err(|_| wrong())?;
    let named = authority.host() == text && !text.contains(['*', '[', '@']);
    if named { Ok(text.to_ascii_lowercase()) } else { Err(wrong()) }
}

fn tls_files(mut at: Reader<'_, '_>, raw: raw::Tls) -> Option<TlsFiles> {
    let cure = "write both: { certificate = \"tls.crt\", private_key = \"tls.key\" }";
    at.present("certificate", &raw.certificate, cure);
    at.present("private_key", &raw.private_key, cure);
    let certificate = at.checked("certificate", raw.certificate, secret::existing_file);
    let private_key = at.checked("private_key", raw.private_key, secret::existing_file);
    Some(TlsFiles { certificate: certificate?, private_key: private_key? })
}

fn drain_times(mut at: Reader<'_, '_>, raw: raw::Drain) -> Drain {
    let hour = Duration::from_secs(3600);
    let deadline = at.duration("deadline", raw.deadline, Duration::from_secs(27), MOMENT..=hour);
    // Where nothing is said, it ends with a deadline that is shorter.
    let five = Duration::from_secs(5).min(deadline);
    let settle = at.duration("settle", raw.settle, five, Duration::ZERO..=hour);
    if settle > deadline {
        at.refuse("settle", Wrong::new("is longer than deadline", "shorten it, or lengthen deadline"));
    }
    Drain { settle, deadline }
}

fn admin_token(at: &mut Reader<'_, '_>, field: Field<secret::Secret>) -> Option<SecretString> {
    let text = secret::read(at, "admin_token", field)?;
    let token = text.strip_suffix('\n').unwrap_or(&text);
    let token = token.strip_suffix('\r').unwrap_or(token);
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(SecretString::from(token));
    }
    let wrong = "holds a character that no bearer token has (white space, a control character or non-ASCII)";
    at.refuse("admin_token", Wrong::new(wrong, "write one line of visible ASCII"));
    None
}
