//! What is wrong with our own certificate although it can be served: callers will refuse it, so the operator should know.

use std::net::IpAddr;

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// What callers will find wrong with the first certificate of `chain` at `now`, each as a sentence; `hosts` are the names they
/// come by, where configuration lists them.
pub(super) fn doubts(chain: &[CertificateDer<'_>], hosts: &[String], now: UnixTime) -> Vec<String> {
    let Some(certificate) = chain.first().and_then(|der| ParsedCertificate::try_from(der).ok()) else {
        return vec!["cannot be read as X.509".to_owned()];
    };
    let dates = dates(&certificate, now).map(str::to_owned);
    let covered = |host: &&String| {
        ServerName::try_from(host.trim_matches(['[', ']']))
            .is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    };
    let missing = hosts.iter().filter(|host| !is_loopback(host) && !covered(host));
    let missing: Vec<&str> = missing.map(String::as_str).collect();
    let names = (!missing.is_empty()).then(|| format!("is not for {}", missing.join(", ")));
    dates.into_iter().chain(names).collect()
}

/// The names of this machine for itself are listed by default and for the admin port too, and no certificate has them all.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn dates(certificate: &ParsedCertificate<'_>, now: UnixTime) -> Option<&'static str> {
    // Who issued it is for callers to say, and so are its dates; but those are looked at first, whatever the roots.
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let algorithms = default_provider().signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(certificate, &roots, &[], now, algorithms) {
        Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Some("has expired"),
        Err(Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => Some("is not valid yet"),
        Ok(()) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn dates_and_names_that_callers_will_not_accept_are_told_and_an_unknown_issuer_is_not() {
        let key = KeyPair::generate().expect("a key");
        let names = ["api.example".to_owned(), "*.wild.example".to_owned(), "192.0.2.1".to_owned()];
        let mut parameters = CertificateParams::new(names).expect("parameters");
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(2030, 1, 1);
        let chain = [parameters.self_signed(&key).expect("signed").der().clone()];
        let at = |year: u64| UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_557_600));
        let doubts = |hosts: &[&str], year| {
            doubts(&chain, &hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>(), at(year))
        };
        assert!(doubts(&[], 2025).is_empty());
        assert!(
            doubts(&["api.example", "a.wild.example", "192.0.2.1", "localhost", "[::1]"], 2025).is_empty()
        );
        assert_eq!(doubts(&[], 2031), ["has expired"]);
        assert_eq!(doubts(&[], 2019), ["is not valid yet"]);
        assert_eq!(
            doubts(&["other.example", "api.example", "10.0.0.1"], 2031),
            ["has expired", "is not for other.example, 10.0.0.1"]
        );
        let nonsense = super::doubts(&[CertificateDer::from(vec![1, 2, 3])], &[], at(2025));
        assert_eq!(nonsense, ["cannot be read as X.509"]);
    }
}
