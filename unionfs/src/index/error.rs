//! What can go wrong with a layer index, in words and as an errno.

use std::path::PathBuf;

use rustix::io::Errno;

use super::EntryId;

/// Why an index cannot be built, opened or believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The index file itself could not be opened, read or written.
    #[error("{operation} layer index {path:?}")]
    File {
        /// What was attempted.
        operation: &'static str,
        /// The index file, or the temporary file beside it.
        path: PathBuf,
        /// The system's answer.
        source: Errno,
    },
    /// An object of the tree could not be read.
    #[error("{operation} {path:?} in the layer")]
    Tree {
        /// What was attempted.
        operation: &'static str,
        /// Relative to the tree's root, empty for the root itself.
        path: PathBuf,
        /// The system's answer.
        source: Errno,
    },
    /// This process could not find out how it sees ids and xattrs.
    #[error("find out this process's user namespace ({what})")]
    Namespace {
        /// What was read.
        what: &'static str,
        /// The system's answer.
        source: Errno,
    },
    /// The file does not begin as a layer index does.
    #[error("not a layer index")]
    NotAnIndex,
    /// Made by another version of the format.
    #[error("layer index of format version {found}, this program reads version {supported}: build it anew")]
    Version {
        /// The file's version.
        found: u32,
        /// The version that can be read.
        supported: u32,
    },
    /// Cut short, overwritten, or bad storage.
    #[error("layer index is damaged at byte {offset} ({what}): build it anew")]
    Damaged {
        /// Which part.
        what: &'static str,
        /// Where in the file.
        offset: u64,
    },
    /// The tree is not, or no longer, the one that was indexed.
    #[error(
        "layer index does not belong to this directory or is older than it ({what} differs): build it anew"
    )]
    Stale {
        /// What differs.
        what: &'static str,
    },
    /// Ids or xattrs look different to this process than to the one that built the index.
    #[error("layer index was built where {what}: build it as the user and in the namespace that mounts")]
    Foreign {
        /// What is different.
        what: &'static str,
    },
    /// The tree was changed while it was read.
    #[error(
        "{path:?} changed while the layer was being indexed: build the index when nothing writes to the layer"
    )]
    Changed {
        /// Relative to the tree's root.
        path: PathBuf,
    },
    /// An object of another filesystem, or of another mount, is in the tree.
    #[error(
        "{path:?} is on another filesystem or mount than the layer's root: a layer index covers one filesystem"
    )]
    CrossesFilesystem {
        /// Relative to the tree's root.
        path: PathBuf,
    },
    /// The index would become part of what it describes.
    #[error("layer index {path:?} would lie within the layer: name a place outside of it")]
    WithinTree {
        /// The place asked for.
        path: PathBuf,
    },
    /// More than the format can hold.
    #[error("layer has too many {what} for a layer index")]
    TooLarge {
        /// Of what there are too many.
        what: &'static str,
    },
    /// A path given to the builder leads nowhere.
    #[error("{path:?} cannot be added to a layer index ({why})")]
    BadPath {
        /// The path, relative to the root.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The entry is no directory, so nothing can be looked up in it.
    #[error("entry {} of the layer index is not a directory", .0.get())]
    NotADirectory(EntryId),
    /// The number is none of this index.
    #[error("layer index has no entry {}", .0.get())]
    NoSuchEntry(EntryId),
}

impl IndexError {
    /// The errno for a caller of the filesystem whose request met this error.
    pub fn errno(&self) -> Errno {
        match self {
            Self::File { source, .. } | Self::Tree { source, .. } | Self::Namespace { source, .. } => *source,
            Self::NotADirectory(_) => Errno::NOTDIR,
            Self::BadPath { .. } | Self::WithinTree { .. } => Errno::INVAL,
            Self::CrossesFilesystem { .. } => Errno::XDEV,
            Self::TooLarge { .. } => Errno::FBIG,
            // The tree or the index is not what it was: the same family as NFS's stale handles.
            Self::Stale { .. } | Self::Changed { .. } | Self::Foreign { .. } => Errno::STALE,
            Self::NotAnIndex | Self::Version { .. } | Self::Damaged { .. } | Self::NoSuchEntry(_) => {
                Errno::IO
            }
        }
    }

    pub(super) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |e| Self::File { operation, path, source: Errno::from_io_error(&e).unwrap_or(Errno::IO) }
    }
}
