//! What can go wrong with images, in words for people.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::digest::{Digest, DigestError};
use crate::layer::{IndexFailure, PackError, UnpackError};
use crate::registry::RegistryError;
use crate::tar::TarError;

/// Content that differs from its name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} has digest {found}, not {expected}")]
pub struct WrongDigest {
    /// Which content.
    pub what: String,
    /// What it should have.
    pub expected: Digest,
    /// What it has.
    pub found: Digest,
}

/// Any failure of this crate's store and archives.
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
    /// The bytes of an image or archive could not be had, or are not what they should be.
    #[error("read {what}")]
    Read {
        /// What was read.
        what: String,
        /// What came of it.
        source: io::Error,
    },
    /// Output could not be written.
    #[error("write {what}")]
    Write {
        /// What was written.
        what: &'static str,
        /// What came of it.
        source: io::Error,
    },
    /// A document that is no JSON, or not the JSON that it should be.
    #[error("{what} cannot be understood")]
    Json {
        /// Which document.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A document that contradicts itself or another.
    #[error("{what}: {why}")]
    Document {
        /// Which document.
        what: String,
        /// Why.
        why: String,
    },
    /// A name or id that means nothing here. The words are docker's.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// An id prefix of several images.
    #[error("image id {prefix:?} is ambiguous: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// What it could mean.
        candidates: Vec<String>,
    },
    /// A text that is no image name.
    #[error("invalid image name {name:?}: {why}")]
    Name {
        /// The text.
        name: String,
        /// Why.
        why: String,
    },
    /// A text that is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A blob that should be there and is not.
    #[error("blob {0} is missing in the store; pull or load the image again")]
    MissingBlob(Digest),
    /// Content that differs from its name.
    #[error(transparent)]
    WrongDigest(#[from] Box<WrongDigest>),
    /// A layer was refused.
    #[error("layer {layer}")]
    Unpack {
        /// Which one.
        layer: String,
        /// Why.
        source: UnpackError,
    },
    /// A tree could not be packed.
    #[error("pack the layer")]
    Pack(#[from] PackError),
    /// An archive that is not in order.
    #[error("archive")]
    Archive(#[from] TarError),
    /// A registry.
    #[error(transparent)]
    Registry(#[from] Box<RegistryError>),
    /// Something that this program does not do.
    #[error("{0}")]
    Unsupported(String),
    /// An index could not be made.
    #[error("layer index of {path:?}")]
    Index {
        /// The layer's tree.
        path: PathBuf,
        /// Why.
        source: IndexFailure,
    },
}

impl Error {
    /// A failure of the disk, for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source: source.into() }
    }

    /// A failure to read, for `map_err`.
    pub(crate) fn read(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Read { what, source }
    }

    /// A document that is no JSON, for `map_err`.
    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let what = what.into();
        move |source| Self::Json { what, source }
    }

    /// Content that differs from its name.
    pub(crate) fn wrong_digest(what: impl Into<String>, expected: Digest, found: Digest) -> Self {
        Self::WrongDigest(Box::new(WrongDigest { what: what.into(), expected, found }))
    }

    /// A document that makes no sense.
    pub(crate) fn document(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Document { what: what.into(), why: why.into() }
    }
}

impl From<RegistryError> for Error {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}
