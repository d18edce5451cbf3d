//! TLS on both sides: rustls with aws-lc-rs, TLS 1.2 and 1.3, AEAD suites only.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::certificate;
use crate::config::{Http2, TlsFiles};
use crate::time::unix_now;

const H2: &[u8] = b"h2";
const HTTP_11: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What callers are served with.
///
/// # Errors
/// A sentence that names the file: unreadable, no certificate in it, or a key that does not belong to it.
pub fn server(files: &TlsFiles) -> Result<Arc<ServerConfig>, String> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.private_key)
        .map_err(|error| format!("{}: no private key in PEM form ({error})", files.private_key.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| {
            format!("{} and {} do not fit: {error}", files.certificate.display(), files.private_key.display())
        })?;
    config.alpn_protocols = vec![H2.to_vec(), HTTP_11.to_vec()];
    // Whichever worker a caller comes back to resumes its session, and none is kept here.
    config.ticketer = Ticketer::new().map_err(|error| error.to_string())?;
    Ok(Arc::new(config))
}

/// What callers will refuse about a certificate that can be served all the same: one sentence for each fault.
pub fn doubts(files: &TlsFiles, hosts: &[String]) -> Vec<String> {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(unix_now()));
    let doubts = certificates(&files.certificate).map(|chain| certificate::doubts(&chain, hosts, now));
    let path = files.certificate.display();
    let sentence = |doubt| format!("the certificate in {path} {doubt}: callers will refuse it");
    // What cannot be read is a fault and told as one.
    doubts.unwrap_or_default().into_iter().map(sentence).collect()
}

/// How the API is called.
///
/// # Errors
/// A sentence that names the file.
pub fn client(http2: Http2, extra: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut config = verifying(extra)?;
    config.alpn_protocols = match http2 {
        Http2::Auto => vec![H2.to_vec(), HTTP_11.to_vec()],
        Http2::Never => vec![HTTP_11.to_vec()],
        Http2::Always => vec![H2.to_vec()],
    };
    Ok(Arc::new(config))
}

/// How the shared store is called, which negotiates no protocol.
///
/// # Errors
/// A sentence that names the file.
pub fn store(extra: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    verifying(extra).map(Arc::new)
}

/// The built-in roots, and those of `extra`; the certificate is always checked.
fn verifying(extra: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = extra {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect::<Result<_, _>>());
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(format!("{}: no certificate in PEM form", path.display()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
