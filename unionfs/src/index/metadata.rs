//! The metadata of one object, as the kernel gives it and as the index keeps it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;

use crate::sys::xattr::{self, Target};

/// Seconds since 1970 (negative before) and nanoseconds within the second (0 to 999,999,999).
pub type Timestamp = (i64, u32);

/// What statx(2) says of an object. Sizes in bytes, `blocks` in units of 512 bytes.
///
/// `atime`, `blocks` and `blksize` are what they were when the index was built; the filesystem may change them
/// afterwards without a change of the object (reading, late allocation), so they take part in no comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct IndexedStat {
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of character and block devices, else 0.
    pub rdev_major: u32,
    pub rdev_minor: u32,
    pub size: u64,
    pub blocks: u64,
    pub blksize: u32,
    /// As on disk: names outside of the layer count too.
    pub nlink: u32,
    pub ino: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl IndexedStat {
    /// Takes over what the kernel says.
    pub fn from_statx(st: &Statx) -> Self {
        let mode = u32::from(st.stx_mode);
        let device =
            matches!(FileType::from_raw_mode(mode), FileType::CharacterDevice | FileType::BlockDevice);
        Self {
            mode,
            uid: st.stx_uid,
            gid: st.stx_gid,
            rdev_major: if device { st.stx_rdev_major } else { 0 },
            rdev_minor: if device { st.stx_rdev_minor } else { 0 },
            size: st.stx_size,
            blocks: st.stx_blocks,
            blksize: st.stx_blksize,
            nlink: st.stx_nlink,
            ino: st.stx_ino,
            atime: (st.stx_atime.tv_sec, st.stx_atime.tv_nsec),
            mtime: (st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec),
            ctime: (st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec),
        }
    }

    /// The object's type.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Whether `st`, as just read from the layer, is this object unchanged since it was indexed: number, type and
    /// mode, owner, device, size (of what is no directory), mtime and ctime. Every change of an object, its data or
    /// its xattrs moves its ctime.
    ///
    /// Not for the root of a tree: its ctime moves when the tree is renamed, and [`super::LayerIndex::open`] has
    /// compared it in its own way.
    pub fn same_object(&self, st: &Statx) -> bool {
        self.first_difference(&Self::from_statx(st), true).is_none()
    }

    /// The name of the first attribute in which the two differ in a way that matters.
    pub(super) fn first_difference(&self, other: &Self, with_ctime: bool) -> Option<&'static str> {
        [
            ("inode number", self.ino == other.ino),
            ("type", self.file_type() == other.file_type()),
            ("mode", self.mode == other.mode),
            ("owner", (self.uid, self.gid) == (other.uid, other.gid)),
            ("device number", (self.rdev_major, self.rdev_minor) == (other.rdev_major, other.rdev_minor)),
            ("size", self.is_dir() || self.size == other.size),
            ("mtime", self.mtime == other.mtime),
            ("ctime", !with_ctime || self.ctime == other.ctime),
        ]
        .into_iter()
        .find_map(|(what, same)| (!same).then_some(what))
    }
}

/// Everything that an index keeps of one object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectMetadata {
    /// Its attributes.
    pub stat: IndexedStat,
    /// Time of creation, where the filesystem keeps one; it matters for the root only.
    pub birth: Option<Timestamp>,
    /// Target of a symlink, else `None`.
    pub symlink: Option<Vec<u8>>,
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl ObjectMetadata {
    /// Reads the object called `name` in the directory `dir` (the directory itself when `name` is empty); a symlink
    /// is not followed.
    ///
    /// # Errors
    /// What statx(2), readlinkat(2) and getxattr(2) list.
    pub fn read(dir: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        let mut read = Self::default();
        read.refill(dir.as_fd(), name, &mut Buffers::default()).map_err(|(_, e)| e)?;
        Ok(read)
    }

    /// As [`read`](Self::read) into memory that is there already. Gives the device and attributes too, and with
    /// an error the name of what failed.
    pub(super) fn refill(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        buffers: &mut Buffers,
    ) -> Result<Statx, (&'static str, Errno)> {
        let st = stat_at(dir, name).map_err(|e| ("read attributes of", e))?;
        self.stat = IndexedStat::from_statx(&st);
        self.birth = birth_of(&st);
        self.symlink = match self.stat.file_type() {
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(dir, name, Vec::new()).map_err(|e| ("read symlink", e))?;
                Some(target.into_bytes())
            }
            _ => None,
        };
        let target = if name.is_empty() { Target::Fd(dir) } else { Target::Name(dir, name) };
        self.xattrs.clear();
        read_xattrs(target, buffers, &mut self.xattrs).map_err(|e| ("read xattrs of", e))?;
        Ok(st)
    }
}

/// Memory used again for every object.
#[derive(Debug)]
pub(super) struct Buffers {
    names: Vec<u8>,
    value: Vec<u8>,
}

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of linux/limits.h: with this much, one call always suffices.
const XATTR_MAX: usize = 65536;

impl Default for Buffers {
    fn default() -> Self {
        Self { names: vec![0; XATTR_MAX], value: vec![0; XATTR_MAX] }
    }
}

/// Attributes of `name` in `dir`, or of `dir` itself when the name is empty. Follows nothing, mounts nothing.
pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx, Errno> {
    let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    if name.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

pub(super) fn birth_of(st: &Statx) -> Option<Timestamp> {
    let known = st.stx_mask & StatxFlags::BTIME.bits() != 0;
    known.then_some((st.stx_btime.tv_sec, st.stx_btime.tv_nsec))
}

/// All xattrs of `target` into `found`, sorted by name.
pub(super) fn read_xattrs(
    target: Target<'_>,
    buffers: &mut Buffers,
    found: &mut Vec<(Vec<u8>, Vec<u8>)>,
) -> Result<(), Errno> {
    let len = match xattr::list(target, &mut buffers.names) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    for name in buffers.names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
        match xattr::get(target, &c_name, &mut buffers.value) {
            Ok(len) => found.push((name.to_vec(), buffers.value[..len].to_vec())),
            // Security modules and some filesystems list names that have no value for anybody.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort_unstable();
    Ok(())
}
