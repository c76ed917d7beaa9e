//! The mark that tells which lower object, in which state, a copy in the upper came from (`layerfs.lower`).
//!
//! Written only when asked for ([`crate::config::Config::record_lower`]): when changes are to be written down to the lower
//! later, and nothing may be lost that somebody else changed there meanwhile.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Statx, StatxFlags};

use crate::error::Errno;
use crate::sys::xattr::{self, Target};

/// Name of the mark, without the prefix of the marks.
pub const MARK: &str = "layerfs.lower";

/// What the mark says. Encoded little endian, in the order of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LowerState {
    /// Inode number.
    pub ino: u64,
    /// Seconds: of a directory the time of its creation, else of the last change of attributes or data.
    pub sec: i64,
    /// Nanoseconds; as above.
    pub nsec: u32,
    /// `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Inode number of the directory that it was in; 0 for the root.
    pub parent: u64,
    /// [`name_hash`] of its name there; 0 for the root.
    pub name: u64,
}

/// Length of the value.
const LENGTH: usize = 48;

impl LowerState {
    /// As statx(2) has it now; `place` is the directory it is in and its name.
    pub fn of(stat: &Statx, place: Option<(u64, &[u8])>) -> Self {
        let mode = u32::from(stat.stx_mode);
        let is_directory = mode & libc::S_IFMT == libc::S_IFDIR;
        let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let (sec, nsec) = match (is_directory, has_birth) {
            (true, true) => (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
            (true, false) => (0, 0),
            (false, _) => (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        };
        Self {
            ino: stat.stx_ino,
            sec,
            nsec,
            mode,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            parent: place.map_or(0, |(parent, _)| parent),
            name: place.map_or(0, |(_, name)| name_hash(name)),
        }
    }

    /// The value on disk.
    pub fn to_bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0..8].copy_from_slice(&self.ino.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sec.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.nsec.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.mode.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.uid.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.gid.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.parent.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.name.to_le_bytes());
        bytes
    }
}

/// FNV-1a, 64 bits: it must mean the same in every version.
pub fn name_hash(name: &[u8]) -> u64 {
    name.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What is asked of the kernel.
pub(crate) const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// The object `name` in `dir`, or `dir` itself.
pub(crate) fn look(dir: impl AsFd, name: Option<&[u8]>) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match name {
        Some(name) => rustix::fs::statx(dir, name, flags, WANTED),
        None => rustix::fs::statx(dir, c"", flags | AtFlags::EMPTY_PATH, WANTED),
    }
}

/// Writes the mark. Without it (symlinks and devices have no user xattrs) less is known later, and more refused.
pub(crate) fn write(prefix: &str, target: Target<'_>, state: LowerState) {
    let Ok(name) = CString::new(format!("{prefix}{MARK}")) else { return };
    if let Err(error) = xattr::set(target, &name, &state.to_bytes(), 0) {
        tracing::debug!(%error, "mark where a copy came from");
    }
}
