//! Certificates made for a test, and who shows and checks them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SignatureAlgorithm, date_time_ymd,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, DEFAULT_VERSIONS, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::connect;
use crate::harness::{Proxy, scratch};

/// A certificate authority and what it has signed, as PEM.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

pub(crate) struct Signed {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key")).expect("signed"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn sign(&self, name: &str) -> Signed {
        self.sign_between(name, (1975, 4096))
    }

    /// Valid from the beginning of one year to that of another.
    pub(crate) fn sign_between(&self, name: &str, years: (i32, i32)) -> Signed {
        self.certify(name, years, KeyPair::generate().expect("a key"))
    }

    /// With a key of this kind.
    pub(crate) fn sign_with(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Signed {
        self.certify(name, (1975, 4096), KeyPair::generate_for(algorithm).expect("a key"))
    }

    fn certify(&self, name: &str, (from, to): (i32, i32), key: KeyPair) -> Signed {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        parameters.not_before = date_time_ymd(from, 1, 1);
        parameters.not_after = date_time_ymd(to, 1, 1);
        let certificate = parameters.signed_by(&key, &self.0).expect("signed");
        Signed { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// What proves nothing but itself.
    pub(crate) fn self_signed(name: &str) -> Signed {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = parameters.self_signed(&key).expect("signed");
        Signed { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A caller that offers these protocols.
    pub(crate) fn client(&self, protocols: &[&str]) -> TlsConnector {
        Arc::new(self.client_of(protocols, DEFAULT_VERSIONS)).into()
    }

    /// One that speaks these versions of TLS only.
    pub(crate) fn client_of(
        &self,
        protocols: &[&str],
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_protocol_versions(versions).expect("versions");
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

impl Signed {
    /// `server.tls` with these files, which are removed with the returned value.
    pub(crate) fn files(&self, name: &str) -> Files {
        let (certificate, key) =
            (write(&format!("{name}.pem"), &self.certificate), write(&format!("{name}.key"), &self.key));
        Files {
            toml: format!("server.tls = {{ certificate = {certificate:?}, private_key = {key:?} }}"),
            certificate,
            key,
        }
    }

    /// As an upstream shows it.
    pub(crate) fn server(&self, protocols: &[&str]) -> Arc<ServerConfig> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions");
        let config = config.with_no_client_auth().with_single_cert(vec![certificate], key);
        let mut config = config.expect("they fit");
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

pub(crate) fn write(name: &str, text: &str) -> PathBuf {
    let file = scratch(&format!("{}-{name}", std::process::id()));
    fs::write(&file, text).expect("written");
    file
}

pub(crate) async fn handshake(proxy: &Proxy, client: &TlsConnector) -> TlsStream<TcpStream> {
    let name = ServerName::try_from("proxy.test").expect("a name");
    client.connect(name, connect(proxy.address).await).await.expect("a handshake")
}

/// A certificate and its key as files.
pub(crate) struct Files {
    pub(crate) toml: String,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in [&self.certificate, &self.key] {
            fs::remove_file(file).ok();
        }
    }
}
