//! Errors of the engine, and the one total function that turns each into an errno.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

pub use rustix::io::Errno;

/// What an operation of the [`crate::overlay::Overlay`] failed with. The errno is for the caller; the words are
/// for the log.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The answer POSIX prescribes, or what a layer's filesystem said.
    #[error("{0}")]
    Errno(#[from] Errno),
    /// Making a lower object present in the upper failed; the lower object is untouched.
    #[error("copy-up of {name:?}: {step}: {source}")]
    CopyUp {
        /// Name of the object in its directory.
        name: OsString,
        /// What was being done.
        step: &'static str,
        /// What it failed with.
        source: Errno,
    },
    /// A mark in a layer does not make sense; following it could lead anywhere.
    #[error("corrupt {mark} mark on {name:?} in layer {layer}")]
    CorruptMark {
        /// The mark.
        mark: &'static str,
        /// Name of the object that carries it.
        name: OsString,
        /// Which layer: 0 is the top lower, -1 the upper.
        layer: i32,
    },
    /// A metadata-only copy whose data is in no layer below.
    #[error("data of the metadata-only copy {name:?} is in no layer below")]
    NoData {
        /// Name of the copy.
        name: OsString,
    },
}

impl OpError {
    /// The number the kernel is told.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Errno(e) => *e,
            Self::CopyUp { source, .. } => *source,
            Self::CorruptMark { .. } | Self::NoData { .. } => Errno::IO,
        }
    }

    /// True for errors that are everyday answers, false for those somebody should read about.
    pub fn is_expected(&self) -> bool {
        match self {
            Self::Errno(e) => !matches!(*e, Errno::IO | Errno::NFILE | Errno::MFILE | Errno::UCLEAN),
            Self::CopyUp { .. } | Self::CorruptMark { .. } | Self::NoData { .. } => false,
        }
    }
}

/// Result of an engine operation.
pub type OpResult<T> = Result<T, OpError>;

/// A name as it goes into messages.
pub(crate) fn os_name(name: &[u8]) -> OsString {
    OsString::from_vec(name.to_vec())
}
