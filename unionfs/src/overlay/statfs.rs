//! Space and limits of the filesystem that takes the writes.

use std::os::fd::AsFd;

use super::Overlay;
use crate::error::{Errno, OpResult};

/// As statvfs(3).
#[derive(Debug, Clone, Copy)]
pub struct StatFs {
    /// Blocks of `frsize` bytes.
    pub blocks: u64,
    /// Free ones.
    pub bfree: u64,
    /// Free ones for ordinary users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free ones.
    pub ffree: u64,
    /// Preferred size of I/O in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Size of a block in bytes.
    pub frsize: u32,
}

/// `OVERLAYFS_SUPER_MAGIC` of linux/magic.h.
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

impl Overlay {
    /// The upper is itself on a stacked filesystem.
    pub fn upper_is_stacked(&self) -> bool {
        let Some(upper) = &self.layers.upper else { return false };
        rustix::fs::fstatfs(upper.work()).is_ok_and(|st| st.f_type as u64 == OVERLAYFS_MAGIC)
    }

    /// The upper's filesystem, or the top lower's of a read-only mount.
    ///
    /// # Errors
    /// What statfs(2) lists.
    pub fn statfs(&self) -> OpResult<StatFs> {
        let parts = self.root.parts();
        let dir = parts.upper.as_ref().or(parts.lowers.first()).ok_or(Errno::STALE)?;
        let st = rustix::fs::fstatvfs(self.fd(dir)?.as_fd())?;
        Ok(StatFs {
            blocks: st.f_blocks,
            bfree: st.f_bfree,
            bavail: st.f_bavail,
            files: st.f_files,
            ffree: st.f_ffree,
            bsize: st.f_bsize as u32,
            namelen: st.f_namemax as u32,
            frsize: st.f_frsize as u32,
        })
    }
}
