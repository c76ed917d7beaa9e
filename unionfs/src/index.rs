//! The layer index: one file beside an immutable layer that answers lookup, getattr, readdir, readlink and
//! getxattr of every entry without a system call.
//!
//! The file is mapped and read in place. It is a replica of the directory's metadata as it is on disk: whiteouts,
//! `.wh.` names and overlay xattrs are stored like everything else, and what they mean is the engine's business.
//! The format is in `docs/layer-index.md`; `format` is the only module that knows it, and the only one that
//! names `bincode`.
//!
//! What must hold:
//! - opening costs the same for ten entries as for ten million;
//! - an index gives the answer that the directory gave when it was built, or an error, whatever bytes it is made of;
//! - an index file is never changed in place, only replaced by rename: readers have it mapped.

mod builder;
mod compare;
mod error;
mod format;
mod metadata;
mod reader;
mod view;
mod walk;
mod writer;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

pub use builder::{IndexBuilder, IndexSummary, build_index};
pub use compare::{Difference, DifferenceKind};
pub use error::IndexError;
pub use metadata::{IndexedStat, ObjectMetadata, Timestamp};
pub use reader::{Child, Children, Entry, LayerIndex, Xattrs};
pub(crate) use view::View;

/// What the index of a tree called NAME is called: `NAME.layerfs-index`.
pub const INDEX_SUFFIX: &str = ".layerfs-index";

/// One entry of a [`LayerIndex`]: one name in one directory (hard links of one object are several entries).
///
/// Numbers are dense, the root is 0, a directory's number is lower than its children's, and the children of
/// one directory are consecutive in the byte order of their names. They mean nothing in another index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct EntryId(u32);

impl EntryId {
    /// The number itself, for use as a key.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Where the index of `tree` is unless said otherwise: beside it, `PARENT/NAME.layerfs-index`, symlinks in `tree`
/// resolved. The root of the machine has no place beside it; its answer lies within and `build_index` refuses it.
pub fn default_index_path(tree: &Path) -> PathBuf {
    beside(&fs::canonicalize(tree).unwrap_or_else(|_| tree.to_path_buf()))
}

/// As [`default_index_path`], for a path without symlinks.
pub(crate) fn beside(resolved: &Path) -> PathBuf {
    let mut name = resolved.file_name().map_or_else(OsString::new, OsString::from);
    name.push(INDEX_SUFFIX);
    match resolved.file_name() {
        Some(_) => resolved.with_file_name(name),
        None => resolved.join(name),
    }
}
