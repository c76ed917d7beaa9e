//! Whether two objects are the same, and whether a lower is still what a copy of it was made from.

use std::fs::File;
use std::io;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::super::copy::same_data;
use super::super::index::ObjectStat;
use super::super::merged::{MergedObject, Stack};

/// Owner, mode, device numbers, link target and xattrs are the same; of objects of one kind.
pub(in crate::layer) fn same_attributes(
    (stack, now): (&Stack, &MergedObject),
    (lowers, was): (&Stack, &MergedObject),
) -> Result<bool, Errno> {
    let (a, b) = (now.stat(), was.stat());
    Ok((a.mode, a.uid, a.gid, a.device) == (b.mode, b.uid, b.gid, b.device)
        && now.xattrs(stack)? == was.xattrs(lowers)?)
}

/// The same content: that of a directory is not looked at.
pub(in crate::layer) fn same_content(
    (stack, now): (&Stack, &MergedObject),
    (lowers, was): (&Stack, &MergedObject),
) -> Result<bool, Errno> {
    if now.kind() != was.kind() {
        return Ok(false);
    }
    match now.kind() {
        FileType::RegularFile => {
            if now.stat().size != was.stat().size {
                return Ok(false);
            }
            let (new, old) = (now.open(stack)?, was.open(lowers)?);
            let (a, b) = (rustix::fs::fstat(&new)?, rustix::fs::fstat(&old)?);
            if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) {
                return Ok(true);
            }
            same_data(&mut File::from(new), &mut File::from(old)).map_err(errno)
        }
        FileType::Symlink => Ok(now.link_target()? == was.link_target()?),
        _ => Ok(now.stat().device == was.stat().device),
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Name of the mark that the union filesystem leaves on copies (docs/on-disk.md).
const MARK: &str = "layerfs.lower";

/// Which lower object, in which state, a copy came from. See docs/on-disk.md for the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layer) struct LowerState {
    ino: u64,
    time: (i64, u32),
    mode: u32,
    uid: u32,
    gid: u32,
    parent: u64,
    name: u64,
}

impl LowerState {
    /// The mark of an object of the topmost layer; `None` where there is none.
    pub(in crate::layer) fn of(stack: &Stack, object: &MergedObject) -> Result<Option<Self>, Errno> {
        if !object.is_top() {
            return Ok(None);
        }
        Ok(object.mark(stack, MARK)?.as_deref().and_then(Self::parse))
    }

    pub(in crate::layer) fn of_root(stack: &Stack) -> Result<Option<Self>, Errno> {
        Ok(stack.root_mark(MARK)?.as_deref().and_then(Self::parse))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            ino: word(0)?,
            time: (word(8)?.cast_signed(), half(16)?),
            mode: half(20)?,
            uid: half(24)?,
            gid: half(28)?,
            parent: word(32)?,
            name: word(40)?,
        })
    }

    /// The copy was made at the place with this name in the directory with this inode number.
    pub(in crate::layer) fn is_of_place(&self, parent: u64, name: &[u8]) -> bool {
        self.parent == parent && self.name == name_hash(name)
    }

    /// It is the same directory.
    pub(in crate::layer) fn is_directory(&self, stat: &ObjectStat) -> bool {
        self.ino == stat.ino && (self.time == (0, 0) || stat.birth.is_none_or(|birth| birth == self.time))
    }

    /// The same directory, of the same owner and mode.
    pub(in crate::layer) fn is_directory_unchanged(&self, stat: &ObjectStat) -> bool {
        self.is_directory(stat) && (self.mode, self.uid, self.gid) == (stat.mode, stat.uid, stat.gid)
    }

    /// The same object, in which nothing has changed.
    pub(in crate::layer) fn is_unchanged(&self, stat: &ObjectStat) -> bool {
        self.ino == stat.ino && self.time == stat.ctime
    }
}

/// FNV-1a, 64 bits.
fn name_hash(name: &[u8]) -> u64 {
    name.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
