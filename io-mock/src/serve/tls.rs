//! The certificate that servers show: read from files, or made and written there.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, CertifiedKey, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

/// The certificate in a directory, which a client trusts that is to believe the servers.
const CERTIFICATE: &str = "cert.pem";
/// Its private key.
const PRIVATE_KEY: &str = "key.pem";
/// What a certificate made here is good for.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// What is needed to accept encrypted connections.
#[derive(Clone)]
pub(super) struct Tls(pub(super) TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// What is needed to accept connections with the certificate of a directory. If there is none, one
/// is made that signs itself.
pub(super) fn acceptor(directory: &Path) -> io::Result<Tls> {
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(PRIVATE_KEY));
    if !certificate.exists() && !key.exists() {
        std::fs::create_dir_all(directory)?;
        let made = self_signed().map_err(io::Error::other)?;
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect)
        .map_err(|error| invalid(&certificate, error))?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| invalid(&key, error))?;
    let provider = Arc::new(crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid(&certificate, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Tls(TlsAcceptor::from(Arc::new(config))))
}

fn self_signed() -> Result<CertifiedKey<KeyPair>, rcgen::Error> {
    let params = CertificateParams::new(NAMES.map(str::to_owned))?;
    let signing_key = KeyPair::generate()?;
    let cert = params.self_signed(&signing_key)?;
    Ok(CertifiedKey { cert, signing_key })
}

fn invalid(file: &Path, error: impl std::fmt::Display) -> io::Error {
    let message = format!("{}: {error}", file.display());
    io::Error::new(io::ErrorKind::InvalidData, message)
}
