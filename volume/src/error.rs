//! What can go wrong with volumes. Where docker has words for it, they are docker's.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Any failure of this crate.
#[derive(Debug, Error)]
pub enum Error {
    /// The disk.
    #[error("{operation} {path:?}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// A document that cannot be understood.
    #[error("{path:?} is not a document of this program")]
    Json {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// There is no volume of this name.
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    /// Containers use it.
    #[error("remove {name}: volume is in use - [{}]", users.join(", "))]
    InUse {
        /// The volume.
        name: String,
        /// Ids of containers.
        users: Vec<String>,
    },
    /// What was asked for has no meaning, or contradicts itself.
    #[error("{0}")]
    Invalid(String),
}

/// The result of most functions here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: source.into() }
    }
}
