//! How many connections there may be: in all, and from one address.
//!
//! Counted before the TLS handshake, because that is where an attacker makes us pay.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use parking_lot::Mutex;

use crate::domain::client_ip::{ClientIp, ClientKey};
use crate::telemetry::labels::RefusedConnection;

/// The open connections of all workers.
#[derive(Debug)]
pub struct Admission {
    bounds: ArcSwap<Bounds>,
    open: AtomicUsize,
    /// Somebody was turned away, and there has been no room to speak of since.
    full: AtomicBool,
    ipv6_prefix: u8,
    per_client: Mutex<HashMap<ClientKey, usize>>,
}

/// How many there may be.
#[derive(Debug)]
pub struct Bounds {
    /// In all.
    pub max: usize,
    /// From one client.
    pub max_per_ip: usize,
    /// Networks that count in all only.
    pub exempt: Vec<IpNet>,
}

impl Admission {
    /// A client is an IPv6 prefix, as it is for the limits.
    pub fn new(bounds: Bounds, ipv6_prefix: u8) -> Self {
        let bounds = ArcSwap::from_pointee(bounds);
        let (open, full) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { bounds, open, full, ipv6_prefix, per_client: Mutex::default() }
    }

    /// Other bounds from now on. Those that are open stay.
    pub fn bound(&self, bounds: Bounds) {
        self.bounds.store(Arc::new(bounds));
    }

    /// Counts a connection from `ip` until the returned value is dropped.
    ///
    /// # Errors
    /// There are too many.
    pub fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<Admitted, RefusedConnection> {
        let ip = ip.to_canonical();
        let max = self.bounds.load().max;
        if self.open.fetch_add(1, Ordering::Relaxed) >= max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            if !self.full.swap(true, Ordering::Relaxed) {
                tracing::warn!(open = max, "as many connections as may be: new ones are closed");
            }
            return Err(RefusedConnection::TooMany);
        }
        let client = self.client(ip);
        self.count(Admitted { admission: self.clone(), client })
    }

    /// Counts it for its client too.
    fn count(&self, admitted: Admitted) -> Result<Admitted, RefusedConnection> {
        if let Some(client) = admitted.client {
            let mut per_client = self.per_client.lock();
            let open = per_client.entry(client).or_default();
            *open += 1;
            if *open > self.bounds.load().max_per_ip {
                drop(per_client);
                return Err(RefusedConnection::TooManyFromIp);
            }
        }
        Ok(admitted)
    }

    fn closed(&self) {
        let open = self.open.fetch_sub(1, Ordering::Relaxed) - 1;
        // Not at the first that goes: at the edge each would be news.
        if self.full.load(Ordering::Relaxed)
            && open <= self.bounds.load().max / 2
            && self.full.swap(false, Ordering::Relaxed)
        {
            tracing::info!(open, "there is room for connections again");
        }
    }

    fn client(&self, ip: IpAddr) -> Option<ClientKey> {
        let exempt = self.bounds.load().exempt.iter().any(|network| network.contains(&ip));
        (!exempt).then(|| ClientIp::new(ip).key(self.ipv6_prefix))
    }
}

/// A connection that counts.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    client: Option<ClientKey>,
}

impl Admitted {
    /// The same connection, once it is known that a trusted proxy made it for `ip`, which it counts for from now on.
    ///
    /// # Errors
    /// That address has too many.
    pub fn on_behalf_of(mut self, ip: IpAddr) -> Result<Self, RefusedConnection> {
        let admission = self.admission.clone();
        if self.client.is_none() {
            self.client = admission.client(ip.to_canonical());
            return admission.count(self);
        }
        Ok(self)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.closed();
        let Some(client) = self.client else { return };
        let mut per_client = self.admission.per_client.lock();
        if let Some(open) = per_client.get_mut(&client) {
            *open -= 1;
            if *open == 0 {
                per_client.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_in_all_and_per_address() {
        let trusted = vec!["10.0.0.0/8".parse().expect("a network")];
        let admission = Arc::new(Admission::new(Bounds { max: 5, max_per_ip: 2, exempt: trusted }, 64));
        let admit = |ip: &str| admission.admit(ip.parse().expect("an address"));
        let first = admit("192.0.2.1").expect("one");
        let second = admit("::ffff:192.0.2.1").expect("two");
        assert_eq!(admit("192.0.2.1").map(|_| ()), Err(RefusedConnection::TooManyFromIp));
        drop(first);
        let again = admit("192.0.2.1").expect("one has gone");
        drop((again, second));
        let _prefix = [admit("2001:db8::1").expect("one"), admit("2001:db8::2").expect("two")];
        assert_eq!(
            admit("2001:db8::3").map(|_| ()),
            Err(RefusedConnection::TooManyFromIp),
            "a prefix is one client"
        );
        let _trusted: Vec<Admitted> = (0..3).map(|_| admit("10.1.1.1").expect("exempt")).collect();
        assert_eq!(admit("192.0.2.9").map(|_| ()), Err(RefusedConnection::TooMany));
    }

    #[test]
    fn a_connection_of_a_trusted_proxy_counts_for_the_client_it_names() {
        let trusted = vec!["10.0.0.0/8".parse().expect("a network")];
        let admission = Arc::new(Admission::new(Bounds { max: 4, max_per_ip: 1, exempt: trusted }, 64));
        let admit = |ip: &str| {
            let proxy = admission.admit("10.1.1.1".parse().expect("an address"))?;
            proxy.on_behalf_of(ip.parse().expect("an address"))
        };
        let first = admit("192.0.2.1").expect("one");
        assert_eq!(admit("::ffff:192.0.2.1").map(|_| ()), Err(RefusedConnection::TooManyFromIp));
        let other = admit("192.0.2.2").expect("another client");
        let _exempt = [admit("10.2.2.2").expect("a proxy"), admit("10.2.2.2").expect("a proxy")];
        assert_eq!(admit("192.0.2.3").map(|_| ()), Err(RefusedConnection::TooMany));
        drop((first, other));
        assert!(admit("192.0.2.1").is_ok(), "and what has gone counts no more");
    }
}
