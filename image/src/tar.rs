//! Tar archives: a reader that takes what the world writes and refuses what would do harm, and a writer whose
//! output depends on nothing but the entries.
//!
//! Read: ustar, PAX (POSIX.1-2008), GNU long names, GNU and PAX sparse forms, base-256 numbers, version 7.
//! Written: ustar, with a PAX header where ustar does not suffice. Names are bytes.

mod header;
mod pax;
#[cfg(test)]
mod proptests;
mod read;
mod write;

pub use read::{TarLimits, TarReader};
pub use write::TarWriter;

use thiserror::Error;

/// Seconds since 1970 (negative before) and nanoseconds within the second.
pub type Timestamp = (i64, u32);

/// An extended attribute: its full name and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// A piece of a sparse file that has data: its offset and its length.
pub type Piece = (u64, u64);

/// All numbers in an archive are in units of this many bytes.
pub const BLOCK: usize = 512;

/// What an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file, whose data follows.
    File,
    /// Another name of an object that is called `link`.
    HardLink,
    /// A symbolic link to `link`.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry: an object of the tree as the archive describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name as it stands in the archive, from the archive's root; not checked in any way.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Target of links.
    pub link: Vec<u8>,
    /// Permission bits, with set-id and sticky bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes of the file, holes included; 0 for everything else.
    pub size: u64,
    /// Time of the last change of data.
    pub mtime: Timestamp,
    /// Time of the last access, where the archive tells it.
    pub atime: Option<Timestamp>,
    /// Major and minor number of devices.
    pub device: (u32, u32),
    /// Extended attributes: full names and values, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Of a sparse file: offset and length of each piece that has data, rising. The data of the entry is that
    /// of the pieces, one after the other.
    pub sparse: Option<Vec<Piece>>,
}

impl Entry {
    /// An entry with everything else at zero.
    pub fn new(path: impl Into<Vec<u8>>, kind: EntryKind) -> Self {
        Self {
            path: path.into(),
            kind,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: (0, 0),
            atime: None,
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        }
    }

    /// Bytes of data that follow in the archive.
    pub fn data_len(&self) -> u64 {
        match (&self.sparse, self.kind) {
            (Some(pieces), _) => pieces.iter().map(|(_, len)| len).sum(),
            (None, EntryKind::File) => self.size,
            _ => 0,
        }
    }
}

/// What is wrong with an archive.
#[derive(Debug, Error)]
pub enum TarError {
    /// The bytes could not be had.
    #[error("read the archive")]
    Read(#[source] std::io::Error),
    /// It ends in the middle of something.
    #[error("the archive ends in the middle of {0}")]
    Truncated(&'static str),
    /// A header whose checksum is wrong: this is no tar archive, or a damaged one.
    #[error("no tar header at byte {at}: the archive is damaged, or is none")]
    Checksum {
        /// Offset in the uncompressed archive.
        at: u64,
    },
    /// A field that has no meaning.
    #[error("entry {path:?}: {what}")]
    Field {
        /// Name of the entry, as far as it is known.
        path: String,
        /// Which field, and why.
        what: String,
    },
    /// A PAX header that cannot be read.
    #[error("PAX header at byte {at}: {what}")]
    Pax {
        /// Offset in the uncompressed archive.
        at: u64,
        /// Why.
        what: &'static str,
    },
    /// More than what is allowed.
    #[error("entry {path:?}: {what} exceeds the limit of {limit}")]
    Limit {
        /// Name of the entry.
        path: String,
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A type of entry that cannot be unpacked.
    #[error("entry {path:?} has type {kind:?}, which layers cannot have")]
    Kind {
        /// Name of the entry.
        path: String,
        /// The type flag.
        kind: char,
    },
}

/// A name for messages.
pub(crate) fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
