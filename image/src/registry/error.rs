//! What can go wrong between this machine and a registry, in words: what was asked of which repository, what came
//! back, and what the user can do about it.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::config::ConfigError;
use super::credentials::CredentialError;
use crate::digest::Digest;

/// A request to a registry that failed.
#[derive(Debug, Error)]
#[error("{subject}: {kind}")]
pub struct RegistryError {
    /// What was wanted: `manifest latest of localhost:5000/tool`.
    pub subject: String,
    /// What is wrong with it.
    #[source]
    pub kind: Box<ErrorKind>,
}

/// Kinds of failure.
#[derive(Debug, Error)]
pub enum ErrorKind {
    /// No connection, or none that held.
    #[error("cannot reach {host}: {reason}")]
    Connect {
        /// Host and port.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// The server is not who it says, or speaks no TLS.
    #[error("cannot trust {host}: {reason}")]
    Tls {
        /// Host and port.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The server speaks no TLS.
    #[error("{host} answers http, not https")]
    NoTls {
        /// Host and port.
        host: String,
    },
    /// 404.
    #[error("not found{}", detail(.0))]
    NotFound(String),
    /// 401 or 403.
    #[error("access denied by {host}{}", detail(.reason))]
    Denied {
        /// Whose answer; credentials are kept by this name.
        host: String,
        /// Whether credentials were sent.
        authenticated: bool,
        /// The registry's words.
        reason: String,
    },
    /// 429 until patience ended.
    #[error("{host} refuses more requests for now{}", wait(.retry_after))]
    TooManyRequests {
        /// Host and port.
        host: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Any other status that is no success.
    #[error("{host} answered {status}{}", detail(.reason))]
    Status {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's words.
        reason: String,
    },
    /// An answer that the protocol does not have.
    #[error("{host} answered nonsense: {reason}")]
    Protocol {
        /// Host and port.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration forbids this registry.
    #[error("registry {0} is blocked by registries.conf")]
    Blocked(String),
    /// Docker's first manifest format.
    #[error("the manifest has schema 1, which is obsolete and is not supported")]
    Schema1,
    /// A manifest that claims to be what it is not.
    #[error("{0}")]
    Manifest(String),
    /// Larger than it may be.
    #[error("more than the {limit} bytes that it may have")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// The content is not what its digest says.
    #[error("{host} sent content with digest {found}, not {expected}")]
    WrongDigest {
        /// Host and port.
        host: String,
        /// What was asked for.
        expected: Box<Digest>,
        /// What came.
        found: Box<Digest>,
    },
    /// The content has not the length that its descriptor says.
    #[error("{host} sent {found} bytes, not {expected}")]
    WrongLength {
        /// Host and port.
        host: String,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes that came, or were announced.
        found: u64,
    },
    /// No platform of an image index fits.
    #[error("no matching manifest for {wanted} in the manifest list; it has {available}")]
    NoPlatform {
        /// As `os/arch/variant`.
        wanted: String,
        /// What there is, comma-separated.
        available: String,
    },
    /// Credentials that could not be read or kept.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Configuration that could not be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What should be sent could not be read on this machine.
    #[error("read what is to be uploaded: {0}")]
    Source(io::Error),
}

impl RegistryError {
    pub(crate) fn new(subject: impl Into<String>, kind: ErrorKind) -> Self {
        Self { subject: subject.into(), kind: Box::new(kind) }
    }

    /// What the user can do about it, where something is known.
    pub fn hint(&self) -> Option<String> {
        match &*self.kind {
            ErrorKind::Denied { host, authenticated: false, .. } => {
                Some(format!("the repository may be private or not exist: layerfs login {host}"))
            }
            ErrorKind::Denied { host, authenticated: true, .. } => Some(format!(
                "the account has not this right, or the credentials are old: layerfs login {host}"
            )),
            ErrorKind::Tls { host, .. } => Some(format!(
                "put the authority's certificate into /etc/containers/certs.d/{host}/ca.crt, or declare the registry \
                 insecure in registries.conf"
            )),
            ErrorKind::NoTls { host } => Some(format!(
                "if that is as it should be: --insecure-registry {host}, or insecure = true in registries.conf"
            )),
            ErrorKind::Connect { .. } => {
                Some("is the name right, the registry up, and a proxy needed (HTTPS_PROXY)?".to_owned())
            }
            ErrorKind::TooManyRequests { host, .. } => {
                Some(format!("wait, or raise the limit by an account: layerfs login {host}"))
            }
            ErrorKind::Schema1 => Some("push the image again with a docker of 2017 or later".to_owned()),
            ErrorKind::WrongDigest { .. } | ErrorKind::WrongLength { .. } => {
                Some("the registry, or a proxy or mirror before it, has damaged content".to_owned())
            }
            ErrorKind::NoPlatform { .. } => Some("choose one of them with --platform".to_owned()),
            _ => None,
        }
    }

    /// True when the registry says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(*self.kind, ErrorKind::NotFound(_))
    }

    /// True when the registry wants other credentials, or some.
    pub fn is_denied(&self) -> bool {
        matches!(*self.kind, ErrorKind::Denied { .. })
    }
}

/// Content streams as `io::Read`: there the error travels inside an [`io::Error`] and is found by downcast.
impl From<RegistryError> for io::Error {
    fn from(error: RegistryError) -> Self {
        let kind = match *error.kind {
            ErrorKind::WrongDigest { .. } | ErrorKind::WrongLength { .. } => io::ErrorKind::InvalidData,
            ErrorKind::NotFound(_) => io::ErrorKind::NotFound,
            ErrorKind::Denied { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

fn detail(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

fn wait(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |time| format!(", for another {} s", time.as_secs()))
}
