//! Which certificates are trusted, and which are shown: the system's authorities and those of the registry's
//! directory.
//!
//! Source: containers-certs.d(5), docker's "Verify repository client with certificates": `*.crt` are authorities,
//! `NAME.cert` with `NAME.key` is a certificate of this client.

mod connector;
mod verifier;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};

use super::config::ConfigError;
pub(super) use connector::TlsConnector;

/// How TLS is done with a host.
#[derive(Debug)]
pub(super) enum Tls {
    /// By the HTTP client alone.
    Plain(Box<TlsConfig>),
    /// With certificates that are trusted as they are.
    Own(TlsConnector),
}

/// TLS for `host` (`HOST[:PORT]`), with what is below `dirs` for it.
pub(super) fn config(dirs: &[PathBuf], host: &str, insecure: bool) -> Result<Tls, ConfigError> {
    let mut extra = Vec::new();
    let mut client = None;
    for dir in dirs {
        let dir = dir.join(host);
        for path in files(&dir)? {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => extra.extend(certificates(&path)?),
                Some("cert") if client.is_none() => {
                    client = Some(client_certificate(&path, &path.with_extension("key"))?);
                }
                _ => {}
            }
        }
    }
    let native = native_roots();
    let trusted = native.iter().chain(&extra).map(|c| CertificateDer::from(c.der().to_vec()));
    let trusted: Vec<CertificateDer<'static>> = trusted.collect();
    if insecure || trusted.is_empty() {
        // A system without a bundle of its own, such as a bare container, has the built-in one.
        let client = client.map(|client| client.for_http);
        let config = TlsConfig::builder().root_certs(RootCerts::WebPki).client_cert(client);
        return Ok(Tls::Plain(Box::new(config.disable_verification(insecure).build())));
    }
    let fail = |reason: String| ConfigError::Certificate { path: PathBuf::from(host), reason };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| fail(error.to_string()))?;
    let verifier = verifier::Verifier { inner, trusted: Arc::new(trusted) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(error.to_string()))?
        // Not dangerous: see the verifier.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(client) => builder
            .with_client_auth_cert(client.chain, client.key)
            .map_err(|error| fail(error.to_string()))?,
    };
    Ok(Tls::Own(TlsConnector(Arc::new(config))))
}

/// The system's authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or the distribution's bundle), read once.
fn native_roots() -> &'static [Certificate<'static>] {
    static ROOTS: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "a part of the system's certificates is not readable");
        }
        found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
    })
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let fail = |source| ConfigError::Read { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(fail(source)),
    };
    let mut paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>().map_err(fail)?;
    paths.sort();
    Ok(paths)
}

fn pem(path: &Path) -> Result<Vec<PemItem<'static>>, ConfigError> {
    let text = fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    ureq::tls::parse_pem(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| ConfigError::Certificate { path: path.to_owned(), reason: error.to_string() })
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, ConfigError> {
    let items = pem(path)?.into_iter();
    let found: Vec<_> = items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        let reason = "no PEM certificate is in it".to_owned();
        return Err(ConfigError::Certificate { path: path.to_owned(), reason });
    }
    Ok(found)
}

/// A certificate of this client with its key, as either side wants it.
struct Client {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    for_http: ClientCert,
}

fn client_certificate(chain_path: &Path, key_path: &Path) -> Result<Client, ConfigError> {
    let chain = certificates(chain_path)?;
    let fail = |reason: String| ConfigError::Certificate { path: key_path.to_owned(), reason };
    let key = pem(key_path)?.into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    let key: PrivateKey<'static> =
        key.ok_or_else(|| fail("no PEM private key without a passphrase is in it".to_owned()))?;
    // The connector takes for granted that the two belong together.
    let der = PrivateKeyDer::from_pem_file(key_path).map_err(|error| fail(error.to_string()))?;
    let ders: Vec<CertificateDer<'static>> =
        chain.iter().map(|certificate| CertificateDer::from(certificate.der().to_vec())).collect();
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(ders.clone(), der.clone_key(), &provider)
        .map_err(|error| fail(format!("does not fit {chain_path:?}: {error}")))?;
    Ok(Client { chain: ders, key: der, for_http: ClientCert::new_with_certs(&chain, key) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_told_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("a.b:5000");
        fs::create_dir(&host).unwrap();
        assert!(config(&[dir.path().to_owned()], "other", false).is_ok());
        assert!(config(&[dir.path().to_owned()], "a.b:5000", false).is_ok());
        fs::write(host.join("ca.crt"), "nothing").unwrap();
        let error = config(&[dir.path().to_owned()], "a.b:5000", false).unwrap_err();
        assert!(error.to_string().contains("ca.crt"), "{error}");
    }
}
