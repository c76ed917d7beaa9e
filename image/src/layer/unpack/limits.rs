//! What one layer may ask for, and why one was not unpacked.

use rustix::io::Errno;
use thiserror::Error;

use crate::layer::index::IndexFailure;
use crate::tar::{TarError, TarLimits};

/// What one layer may ask for before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the archive, and directories that it does not have but needs.
    pub entries: u64,
    /// Bytes of file data, holes not counted.
    pub bytes: u64,
    /// Size of one file, holes counted: whoever copies it elsewhere may have to write them.
    pub file_size: u64,
    /// Device nodes.
    pub devices: u64,
    /// Bytes of names and values of extended attributes.
    pub xattr_bytes: u64,
    /// Of the archive's form.
    pub tar: TarLimits,
}

impl Limits {
    /// Bytes that an uncompressed archive within the limits may have.
    pub fn stream(&self) -> u64 {
        self.bytes.saturating_add(self.entries.saturating_mul(1024))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            bytes: 1 << 40,
            file_size: 1 << 44,
            devices: 4096,
            xattr_bytes: 256 << 20,
            tar: TarLimits::default(),
        }
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The archive is not in order.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that no layer may have.
    #[error("entry {path:?}: {what}")]
    Refused {
        /// Name of the entry.
        path: String,
        /// Why.
        what: &'static str,
    },
    /// More than what is allowed.
    #[error("the layer has more than {limit} {what}; it is refused")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The disk.
    #[error("{operation} {path:?}")]
    Disk {
        /// What was attempted.
        operation: &'static str,
        /// Name within the layer.
        path: String,
        /// What came of it.
        source: Errno,
    },
    /// The index could not be made.
    #[error("make the layer's index")]
    Index(#[source] IndexFailure),
}
