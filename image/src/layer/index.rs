//! What a layer index is made of, for whoever makes it (see docs/decisions/0010).
//!
//! The format of the index belongs to the union filesystem, of which this crate knows nothing. The program
//! passes an implementation of [`LayerIndexer`] in.

use std::fmt;
use std::path::Path;

use rustix::fs::Statx;

use crate::tar::Timestamp;

/// Why an index could not be made, or does not fit its tree.
pub type IndexFailure = Box<dyn std::error::Error + Send + Sync>;

/// What statx(2) said of an object when it was complete. Sizes in bytes, `blocks` in units of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct ObjectStat {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of devices, else zeros.
    pub device: (u32, u32),
    pub size: u64,
    pub blocks: u64,
    pub blksize: u32,
    pub nlink: u32,
    pub ino: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Time of creation, where the filesystem keeps one.
    pub birth: Option<Timestamp>,
}

impl ObjectStat {
    pub(super) fn of(st: &Statx) -> Self {
        let has_birth = st.stx_mask & rustix::fs::StatxFlags::BTIME.bits() != 0;
        let mode = u32::from(st.stx_mode);
        let kind = rustix::fs::FileType::from_raw_mode(mode);
        let is_device = kind.is_char_device() || kind.is_block_device();
        Self {
            mode,
            uid: st.stx_uid,
            gid: st.stx_gid,
            device: if is_device { (st.stx_rdev_major, st.stx_rdev_minor) } else { (0, 0) },
            size: st.stx_size,
            blocks: st.stx_blocks,
            blksize: st.stx_blksize,
            nlink: st.stx_nlink,
            ino: st.stx_ino,
            atime: (st.stx_atime.tv_sec, st.stx_atime.tv_nsec),
            mtime: (st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec),
            ctime: (st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec),
            birth: has_birth.then_some((st.stx_btime.tv_sec, st.stx_btime.tv_nsec)),
        }
    }
}

/// One object as it is on disk, marks and all.
#[derive(Debug, Clone, Copy)]
pub struct IndexedObject<'a> {
    /// Its attributes.
    pub stat: &'a ObjectStat,
    /// Target of a symlink.
    pub symlink: Option<&'a [u8]>,
    /// Names and values of all xattrs.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Makes and checks layer indexes.
pub trait LayerIndexer: fmt::Debug + Send + Sync {
    /// Begins the index of a tree whose root directory is `root`.
    ///
    /// # Errors
    /// Whatever keeps an index from being made here.
    fn begin(&self, root: IndexedObject<'_>) -> Result<Box<dyn LayerIndexBuilder>, IndexFailure>;

    /// Makes the index of `tree` by reading all of it.
    ///
    /// # Errors
    /// As above.
    fn build(&self, tree: &Path, index: &Path) -> Result<(), IndexFailure>;

    /// As [`build`](Self::build), for a tree that is not yet in its place: nothing needs to be synced.
    ///
    /// # Errors
    /// As above.
    fn build_staged(&self, tree: &Path, index: &Path) -> Result<(), IndexFailure> {
        self.build(tree, index)
    }

    /// Compares the index with the whole tree.
    ///
    /// # Errors
    /// When it is damaged, of another tree, or differs from it; the words say how.
    fn check(&self, tree: &Path, index: &Path) -> Result<(), IndexFailure>;
}

/// An index in the making.
pub trait LayerIndexBuilder {
    /// Adds the object at `path`, names from the root on; parents come before their children.
    ///
    /// # Errors
    /// When it cannot be kept.
    fn insert(&mut self, path: &[&[u8]], object: IndexedObject<'_>) -> Result<(), IndexFailure>;

    /// Puts the index at `out`. It is not yet in its place: nothing needs to be synced.
    ///
    /// # Errors
    /// Those of writing.
    fn finish(self: Box<Self>, out: &Path) -> Result<(), IndexFailure>;
}

/// Makes no index: mounts read the directories then.
#[derive(Debug, Clone, Copy, Default)]
pub struct WithoutIndex;

impl LayerIndexer for WithoutIndex {
    fn begin(&self, _root: IndexedObject<'_>) -> Result<Box<dyn LayerIndexBuilder>, IndexFailure> {
        Ok(Box::new(Self))
    }

    fn build(&self, _tree: &Path, _index: &Path) -> Result<(), IndexFailure> {
        Ok(())
    }

    fn check(&self, _tree: &Path, _index: &Path) -> Result<(), IndexFailure> {
        Ok(())
    }
}

impl LayerIndexBuilder for WithoutIndex {
    fn insert(&mut self, _path: &[&[u8]], _object: IndexedObject<'_>) -> Result<(), IndexFailure> {
        Ok(())
    }

    fn finish(self: Box<Self>, _out: &Path) -> Result<(), IndexFailure> {
        Ok(())
    }
}
