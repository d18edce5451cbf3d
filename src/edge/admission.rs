//! How many connections there may be: in all, and from one address.
//!
//! Counted before the TLS handshake, because that is where an attacker makes us pay.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use crate::telemetry::labels::RefusedConnection;

/// The open connections of all workers.
#[derive(Debug)]
pub struct Admission {
    max: usize,
    max_per_ip: usize,
    exempt: Vec<IpNet>,
    open: AtomicUsize,
    per_ip: Mutex<HashMap<IpAddr, usize>>,
}

impl Admission {
    /// At most `max` connections, `max_per_ip` from one address; `exempt` networks count in all only.
    pub fn new(max: usize, max_per_ip: usize, exempt: Vec<IpNet>) -> Self {
        Self { max, max_per_ip, exempt, open: AtomicUsize::new(0), per_ip: Mutex::default() }
    }

    /// Counts a connection from `ip` until the returned value is dropped.
    ///
    /// # Errors
    /// There are too many.
    pub fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<Admitted, RefusedConnection> {
        let ip = ip.to_canonical();
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(RefusedConnection::TooMany);
        }
        let ip = (!self.exempt.iter().any(|network| network.contains(&ip))).then_some(ip);
        let admitted = Admitted { admission: self.clone(), ip };
        if let Some(ip) = ip {
            let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
            let open = per_ip.entry(ip).or_default();
            *open += 1;
            if *open > self.max_per_ip {
                drop(per_ip);
                return Err(RefusedConnection::TooManyFromIp);
            }
        }
        Ok(admitted)
    }
}

/// A connection that counts.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    ip: Option<IpAddr>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
        let Some(ip) = self.ip else { return };
        let mut per_ip = self.admission.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = per_ip.get_mut(&ip) {
            *open -= 1;
            if *open == 0 {
                per_ip.remove(&ip);
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
        let admission = Arc::new(Admission::new(5, 2, trusted));
        let admit = |ip: &str| admission.admit(ip.parse().expect("an address"));
        let first = admit("192.0.2.1").expect("one");
        let _second = admit("::ffff:192.0.2.1").expect("two");
        assert_eq!(admit("192.0.2.1").map(|_| ()), Err(RefusedConnection::TooManyFromIp));
        drop(first);
        let _again = admit("192.0.2.1").expect("one has gone");
        let _trusted: Vec<Admitted> = (0..3).map(|_| admit("10.1.1.1").expect("exempt")).collect();
        assert_eq!(admit("192.0.2.9").map(|_| ()), Err(RefusedConnection::TooMany));
    }
}
