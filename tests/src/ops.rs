//! Operations that mean the same on any root: a mount under test and a plain directory.
//!
//! An operation as generated names its objects by [`Target`] (an index modulo what exists); resolved against a
//! listing it names paths, and is then applied to several roots whose outcomes must agree.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, Dev, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec,
    Timestamps, XattrFlags, openat,
};
use rustix::io::{Errno, Result};

use crate::layers::{binary_name, longest_name};
use crate::privilege::as_user;
use crate::snapshot::digest;

/// Number of descriptors that operations keep open across others.
pub const SLOTS: usize = 4;

/// What an operation works on, independent of what exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An existing object, the root included.
    Existing(u16),
    /// A name, existing or not, in an existing directory.
    Name(u16, u8),
    /// A name below any existing object, be it a directory or not.
    Below(u16, u8),
}

/// The objects of a tree, for [`Target::resolve`].
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Every path, the root as the empty one.
    pub all: Vec<PathBuf>,
    /// The directories.
    pub dirs: Vec<PathBuf>,
}

/// Number of names that [`name`] knows.
pub const NAMES: u8 = 8;

/// The names operations use: few, so that they meet.
#[must_use]
pub fn name(index: u8) -> OsString {
    match index % NAMES {
        5 => longest_name(),
        6 => binary_name(),
        7 => OsString::from("t".repeat(256)),
        short => OsString::from(["a", "b", "c", "d", "e"][usize::from(short)]),
    }
}

impl Target {
    /// The path it names in a tree with this listing.
    #[must_use]
    pub fn resolve(self, listing: &Listing) -> PathBuf {
        let pick = |from: &[PathBuf], index: u16| from[usize::from(index) % from.len()].clone();
        match self {
            Self::Existing(index) => pick(&listing.all, index),
            Self::Name(dir, index) => pick(&listing.dirs, dir).join(name(index)),
            Self::Below(parent, index) => pick(&listing.all, parent).join(name(index)),
        }
    }
}

/// On whose behalf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root with all capabilities.
    Root,
    /// Uid and gid of an ordinary user, without supplementary groups.
    User(u32, u32),
}

/// An operation with everything around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<T> {
    /// On whose behalf.
    pub who: Who,
    /// The process's file mode creation mask.
    pub umask: u32,
    /// What.
    pub op: Op<T>,
}

/// A time for `utimensat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Seconds, nanoseconds.
    At(i64, i64),
    /// `UTIME_NOW`
    Now,
    /// `UTIME_OMIT`
    Omit,
}

/// The operations. Sizes and offsets are in bytes; `fill` is repeated to make content.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the arguments of the system call of that name")]
pub enum Op<T> {
    Create {
        at: T,
        mode: u32,
        exclusive: bool,
    },
    Write {
        at: T,
        offset: u64,
        len: u32,
        fill: u8,
        append: bool,
        truncate: bool,
        create: bool,
    },
    Read {
        at: T,
    },
    Truncate {
        at: T,
        size: u64,
    },
    Mkdir {
        at: T,
        mode: u32,
    },
    Rmdir {
        at: T,
    },
    Unlink {
        at: T,
    },
    Symlink {
        at: T,
        text: String,
    },
    Link {
        from: T,
        to: T,
        follow: bool,
    },
    Rename {
        from: T,
        to: T,
        how: Renaming,
    },
    Chmod {
        at: T,
        mode: u32,
    },
    Chown {
        at: T,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    },
    Utimens {
        at: T,
        access: When,
        modification: When,
        follow: bool,
    },
    SetXattr {
        at: T,
        name: String,
        value: Vec<u8>,
        how: XattrHow,
    },
    RemoveXattr {
        at: T,
        name: String,
    },
    GetXattr {
        at: T,
        name: String,
    },
    Mknod {
        at: T,
        kind: Special,
        mode: u32,
    },
    Readdir {
        at: T,
    },
    Readlink {
        at: T,
    },
    Stat {
        at: T,
        follow: bool,
    },
    Access {
        at: T,
        mode: u8,
    },
    Fallocate {
        at: T,
        how: Allocation,
        offset: u64,
        len: u64,
    },
    CopyRange {
        from: T,
        to: T,
        from_offset: u64,
        to_offset: u64,
        len: u32,
    },
    Keep {
        slot: u8,
        at: T,
        how: Opening,
    },
    KeptRead {
        slot: u8,
        offset: u64,
        len: u32,
    },
    KeptWrite {
        slot: u8,
        offset: u64,
        len: u32,
        fill: u8,
    },
    KeptStat {
        slot: u8,
    },
    KeptTruncate {
        slot: u8,
        size: u64,
    },
    KeptChmod {
        slot: u8,
        mode: u32,
    },
    KeptSetXattr {
        slot: u8,
        name: String,
        value: Vec<u8>,
    },
    KeptList {
        slot: u8,
    },
    KeptCreate {
        slot: u8,
        name: u8,
    },
    KeptSync {
        slot: u8,
    },
    Close {
        slot: u8,
    },
    /// Unmount and mount; on a plain directory only the descriptors are closed.
    Remount,
}

/// Flags of `renameat2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the flags")]
pub enum Renaming {
    Plain,
    NoReplace,
    Exchange,
    Whiteout,
}

/// Flags of `setxattr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the flags")]
pub enum XattrHow {
    Any,
    Create,
    Replace,
}

/// What `mknod` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the types")]
pub enum Special {
    Fifo,
    Socket,
    Regular,
    /// 1:3
    CharNull,
    /// 0:0, which overlays use as whiteout
    CharZero,
    /// 259:4095, which does not exist
    Block,
}

/// Modes of `fallocate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the flags")]
pub enum Allocation {
    Plain,
    KeepSize,
    Punch,
    Zero,
    ZeroKeepSize,
}

/// How a kept descriptor is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the flags")]
pub enum Opening {
    Read,
    Write,
    Append,
    ReadWrite,
    Directory,
}

/// What is compared between roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing but success.
    Done,
    /// Bytes, targets, values (as [`digest`]).
    Text(String),
    /// A count of bytes.
    Count(u64),
    /// What stat tells. Sizes and link counts of directories are the filesystem's own business.
    Stat {
        /// Type and permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// 0 for directories.
        size: u64,
        /// 0 for directories.
        nlink: u64,
        /// Device numbers.
        rdev: u64,
    },
    /// Times set by `utimensat`, read back; `None` where the time is not known to the caller.
    Times(Option<(i64, i64)>, Option<(i64, i64)>),
    /// Names of a directory, sorted.
    Names(BTreeSet<OsString>),
}

/// Success with an answer, or an errno.
pub type Outcome = Result<Answer>;

/// A descriptor kept open across operations.
#[derive(Debug)]
pub struct KeptFile {
    fd: OwnedFd,
    /// How it was opened.
    pub how: Opening,
}

/// The descriptors that operations on one root keep open.
#[derive(Debug, Default)]
pub struct Kept {
    slots: [Option<KeptFile>; SLOTS],
}

impl Kept {
    /// What is in the slot.
    #[must_use]
    pub fn get(&self, slot: u8) -> Option<&KeptFile> {
        self.slots[usize::from(slot) % SLOTS].as_ref()
    }

    /// Closes everything.
    pub fn clear(&mut self) {
        self.slots = Default::default();
    }

    fn fd(&self, slot: u8) -> Result<&OwnedFd> {
        self.get(slot).map(|kept| &kept.fd).ok_or(Errno::BADF)
    }
}

impl<T> Op<T> {
    /// The same operation on other targets.
    #[allow(clippy::too_many_lines, reason = "one line per operation")]
    pub fn map<U>(&self, f: &mut impl FnMut(&T) -> U) -> Op<U> {
        match self {
            Self::Create { at, mode, exclusive } => {
                Op::Create { at: f(at), mode: *mode, exclusive: *exclusive }
            }
            Self::Write { at, offset, len, fill, append, truncate, create } => Op::Write {
                at: f(at),
                offset: *offset,
                len: *len,
                fill: *fill,
                append: *append,
                truncate: *truncate,
                create: *create,
            },
            Self::Read { at } => Op::Read { at: f(at) },
            Self::Truncate { at, size } => Op::Truncate { at: f(at), size: *size },
            Self::Mkdir { at, mode } => Op::Mkdir { at: f(at), mode: *mode },
            Self::Rmdir { at } => Op::Rmdir { at: f(at) },
            Self::Unlink { at } => Op::Unlink { at: f(at) },
            Self::Symlink { at, text } => Op::Symlink { at: f(at), text: text.clone() },
            Self::Link { from, to, follow } => Op::Link { from: f(from), to: f(to), follow: *follow },
            Self::Rename { from, to, how } => Op::Rename { from: f(from), to: f(to), how: *how },
            Self::Chmod { at, mode } => Op::Chmod { at: f(at), mode: *mode },
            Self::Chown { at, uid, gid, follow } => {
                Op::Chown { at: f(at), uid: *uid, gid: *gid, follow: *follow }
            }
            Self::Utimens { at, access, modification, follow } => {
                Op::Utimens { at: f(at), access: *access, modification: *modification, follow: *follow }
            }
            Self::SetXattr { at, name, value, how } => {
                Op::SetXattr { at: f(at), name: name.clone(), value: value.clone(), how: *how }
            }
            Self::RemoveXattr { at, name } => Op::RemoveXattr { at: f(at), name: name.clone() },
            Self::GetXattr { at, name } => Op::GetXattr { at: f(at), name: name.clone() },
            Self::Mknod { at, kind, mode } => Op::Mknod { at: f(at), kind: *kind, mode: *mode },
            Self::Readdir { at } => Op::Readdir { at: f(at) },
            Self::Readlink { at } => Op::Readlink { at: f(at) },
            Self::Stat { at, follow } => Op::Stat { at: f(at), follow: *follow },
            Self::Access { at, mode } => Op::Access { at: f(at), mode: *mode },
            Self::Fallocate { at, how, offset, len } => {
                Op::Fallocate { at: f(at), how: *how, offset: *offset, len: *len }
            }
            Self::CopyRange { from, to, from_offset, to_offset, len } => Op::CopyRange {
                from: f(from),
                to: f(to),
                from_offset: *from_offset,
                to_offset: *to_offset,
                len: *len,
            },
            Self::Keep { slot, at, how } => Op::Keep { slot: *slot, at: f(at), how: *how },
            Self::KeptRead { slot, offset, len } => Op::KeptRead { slot: *slot, offset: *offset, len: *len },
            Self::KeptWrite { slot, offset, len, fill } => {
                Op::KeptWrite { slot: *slot, offset: *offset, len: *len, fill: *fill }
            }
            Self::KeptStat { slot } => Op::KeptStat { slot: *slot },
            Self::KeptTruncate { slot, size } => Op::KeptTruncate { slot: *slot, size: *size },
            Self::KeptChmod { slot, mode } => Op::KeptChmod { slot: *slot, mode: *mode },
            Self::KeptSetXattr { slot, name, value } => {
                Op::KeptSetXattr { slot: *slot, name: name.clone(), value: value.clone() }
            }
            Self::KeptList { slot } => Op::KeptList { slot: *slot },
            Self::KeptCreate { slot, name } => Op::KeptCreate { slot: *slot, name: *name },
            Self::KeptSync { slot } => Op::KeptSync { slot: *slot },
            Self::Close { slot } => Op::Close { slot: *slot },
            Self::Remount => Op::Remount,
        }
    }
}

impl Step<Target> {
    /// The step with the paths it names in a tree with this listing.
    #[must_use]
    pub fn resolve(&self, listing: &Listing) -> Step<PathBuf> {
        Step { who: self.who, umask: self.umask, op: self.op.map(&mut |target| target.resolve(listing)) }
    }
}

impl Step<PathBuf> {
    /// Applies the step below `root`.
    pub fn apply(&self, root: &Path, kept: &mut Kept) -> Outcome {
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        let outcome = match self.who {
            Who::Root => apply(&self.op, root, kept),
            Who::User(uid, gid) => as_user(uid, gid, || apply(&self.op, root, kept)),
        };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        outcome
    }
}

/// Nothing waits for the other end of a FIFO.
const QUIET: OFlags = OFlags::NONBLOCK.union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

fn apply(op: &Op<PathBuf>, root: &Path, kept: &mut Kept) -> Outcome {
    match op {
        Op::Create { .. } | Op::Write { .. } | Op::Read { .. } | Op::Truncate { .. } => apply_data(op, root),
        Op::Fallocate { .. } | Op::CopyRange { .. } => apply_data(op, root),
        Op::Mkdir { .. } | Op::Rmdir { .. } | Op::Unlink { .. } | Op::Symlink { .. } => apply_name(op, root),
        Op::Link { .. } | Op::Rename { .. } | Op::Mknod { .. } | Op::Readdir { .. } => apply_name(op, root),
        Op::Chmod { .. } | Op::Chown { .. } | Op::Utimens { .. } | Op::SetXattr { .. } => {
            apply_meta(op, root)
        }
        Op::RemoveXattr { .. } | Op::GetXattr { .. } | Op::Readlink { .. } => apply_meta(op, root),
        Op::Stat { .. } | Op::Access { .. } => apply_meta(op, root),
        Op::Remount => {
            kept.clear();
            Ok(Answer::Done)
        }
        _ => apply_kept(op, root, kept),
    }
}

/// The path below a root; the empty one is the root itself, without a slash at its end.
fn below(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_path_buf() } else { root.join(path) }
}

/// True when an operation would remove, move or replace the root: a mountpoint and a directory differ in it.
#[must_use]
pub fn moves_the_root(op: &Op<PathBuf>) -> bool {
    let root = |path: &PathBuf| path.as_os_str().is_empty();
    match op {
        Op::Rmdir { at } | Op::Unlink { at } => root(at),
        Op::Rename { from, to, .. } => root(from) || root(to),
        _ => false,
    }
}

fn done(result: Result<()>) -> Outcome {
    result.map(|()| Answer::Done)
}

fn apply_data(op: &Op<PathBuf>, root: &Path) -> Outcome {
    match op {
        Op::Create { at, mode, exclusive } => {
            let more = if *exclusive { OFlags::EXCL } else { OFlags::empty() };
            let flags = OFlags::CREATE | OFlags::RDWR | more | QUIET;
            openat(CWD, below(root, at), flags, Mode::from_raw_mode(*mode)).map(|_fd| Answer::Done)
        }
        Op::Write { at, offset, len, fill, append, truncate, create } => {
            let mut flags = OFlags::WRONLY | QUIET;
            flags.set(OFlags::APPEND, *append);
            flags.set(OFlags::TRUNC, *truncate);
            flags.set(OFlags::CREATE, *create);
            let fd = openat(CWD, below(root, at), flags, Mode::from_raw_mode(0o666))?;
            write_all(&fd, *fill, *len, *offset)
        }
        Op::Read { at } => {
            let fd = openat(CWD, below(root, at), OFlags::RDONLY | QUIET, Mode::empty())?;
            let mut bytes = Vec::new();
            let mut chunk = vec![0; 1 << 16];
            loop {
                match rustix::io::read(&fd, chunk.as_mut_slice())? {
                    0 => return Ok(Answer::Text(digest(&bytes))),
                    count => bytes.extend_from_slice(&chunk[..count]),
                }
            }
        }
        Op::Truncate { at, size } => {
            // truncate(2) itself: checks permission by path, not by descriptor.
            let path = below(root, at);
            crate::sys::truncate(&path, *size).map(|()| Answer::Done)
        }
        Op::Fallocate { at, how, offset, len } => {
            let fd = openat(CWD, below(root, at), OFlags::RDWR | QUIET, Mode::empty())?;
            let mode = match how {
                Allocation::Plain => FallocateFlags::empty(),
                Allocation::KeepSize => FallocateFlags::KEEP_SIZE,
                Allocation::Punch => FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                Allocation::Zero => FallocateFlags::ZERO_RANGE,
                Allocation::ZeroKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            };
            done(rustix::fs::fallocate(&fd, mode, *offset, *len))
        }
        Op::CopyRange { from, to, from_offset, to_offset, len } => {
            let source = openat(CWD, below(root, from), OFlags::RDONLY | QUIET, Mode::empty())?;
            let target = openat(CWD, below(root, to), OFlags::WRONLY | QUIET, Mode::empty())?;
            let (mut read_at, mut write_at) = (*from_offset, *to_offset);
            let mut left = *len as usize;
            while left > 0 {
                let count = rustix::fs::copy_file_range(
                    &source,
                    Some(&mut read_at),
                    &target,
                    Some(&mut write_at),
                    left,
                )?;
                if count == 0 {
                    break;
                }
                left -= count;
            }
            Ok(Answer::Count(u64::from(*len) - left as u64))
        }
        other => unreachable!("{other:?} is no operation on data"),
    }
}

fn write_all(fd: &OwnedFd, fill: u8, len: u32, mut offset: u64) -> Outcome {
    let bytes = vec![fill; len as usize];
    let mut left = bytes.as_slice();
    while !left.is_empty() {
        let count = rustix::io::pwrite(fd, left, offset)?;
        left = &left[count..];
        offset += count as u64;
    }
    Ok(Answer::Count(u64::from(len)))
}

fn apply_name(op: &Op<PathBuf>, root: &Path) -> Outcome {
    match op {
        Op::Mkdir { at, mode } => done(rustix::fs::mkdirat(CWD, below(root, at), Mode::from_raw_mode(*mode))),
        Op::Rmdir { at } => done(rustix::fs::unlinkat(CWD, below(root, at), AtFlags::REMOVEDIR)),
        Op::Unlink { at } => done(rustix::fs::unlinkat(CWD, below(root, at), AtFlags::empty())),
        Op::Symlink { at, text } => done(rustix::fs::symlinkat(text.as_str(), CWD, below(root, at))),
        Op::Link { from, to, follow } => {
            let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
            done(rustix::fs::linkat(CWD, below(root, from), CWD, below(root, to), flags))
        }
        Op::Rename { from, to, how } => {
            let flags = match how {
                Renaming::Plain => RenameFlags::empty(),
                Renaming::NoReplace => RenameFlags::NOREPLACE,
                Renaming::Exchange => RenameFlags::EXCHANGE,
                Renaming::Whiteout => RenameFlags::WHITEOUT,
            };
            done(rustix::fs::renameat_with(CWD, below(root, from), CWD, below(root, to), flags))
        }
        Op::Mknod { at, kind, mode } => {
            let (kind, device): (_, Dev) = match kind {
                Special::Fifo => (FileType::Fifo, 0),
                Special::Socket => (FileType::Socket, 0),
                Special::Regular => (FileType::RegularFile, 0),
                Special::CharNull => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                Special::CharZero => (FileType::CharacterDevice, 0),
                Special::Block => (FileType::BlockDevice, rustix::fs::makedev(259, 4095)),
            };
            done(rustix::fs::mknodat(CWD, below(root, at), kind, Mode::from_raw_mode(*mode), device))
        }
        Op::Readdir { at } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            names(openat(CWD, below(root, at), flags, Mode::empty())?)
        }
        other => unreachable!("{other:?} is no operation on names"),
    }
}

fn names(fd: OwnedFd) -> Outcome {
    let mut names = BTreeSet::new();
    for entry in rustix::fs::Dir::new(fd)? {
        let name = std::ffi::OsStr::from_bytes(entry?.file_name().to_bytes()).to_os_string();
        if name == "." || name == ".." {
            continue;
        }
        // The same name twice must not go unnoticed.
        let mut name = name;
        while !names.insert(name.clone()) {
            name.push(" (again)");
        }
    }
    Ok(Answer::Names(names))
}

fn follow_flag(follow: bool) -> AtFlags {
    if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW }
}

fn apply_meta(op: &Op<PathBuf>, root: &Path) -> Outcome {
    match op {
        Op::Chmod { at, mode } => {
            done(rustix::fs::chmodat(CWD, below(root, at), Mode::from_raw_mode(*mode), AtFlags::empty()))
        }
        Op::Chown { at, uid, gid, follow } => {
            let uid = uid.map(rustix::fs::Uid::from_raw);
            let gid = gid.map(rustix::fs::Gid::from_raw);
            done(rustix::fs::chownat(CWD, below(root, at), uid, gid, follow_flag(*follow)))
        }
        Op::Utimens { at, access, modification, follow } => {
            let (path, flags) = (below(root, at), follow_flag(*follow));
            let times =
                Timestamps { last_access: timespec(*access), last_modification: timespec(*modification) };
            rustix::fs::utimensat(CWD, &path, &times, flags)?;
            let stat = rustix::fs::statat(CWD, &path, flags)?;
            let known = |when: When, seconds, nanos| matches!(when, When::At(..)).then_some((seconds, nanos));
            Ok(Answer::Times(
                known(*access, stat.st_atime, stat.st_atime_nsec as i64),
                known(*modification, stat.st_mtime, stat.st_mtime_nsec as i64),
            ))
        }
        Op::SetXattr { at, name, value, how } => {
            let flags = match how {
                XattrHow::Any => XattrFlags::empty(),
                XattrHow::Create => XattrFlags::CREATE,
                XattrHow::Replace => XattrFlags::REPLACE,
            };
            done(rustix::fs::lsetxattr(below(root, at), name.as_str(), value, flags))
        }
        Op::RemoveXattr { at, name } => done(rustix::fs::lremovexattr(below(root, at), name.as_str())),
        Op::GetXattr { at, name } => {
            let mut value = Vec::with_capacity(4096);
            let buffer = rustix::buffer::spare_capacity(&mut value);
            rustix::fs::lgetxattr(below(root, at), name.as_str(), buffer)?;
            Ok(Answer::Text(digest(&value)))
        }
        Op::Readlink { at } => {
            let text = rustix::fs::readlinkat(CWD, below(root, at), Vec::new())?;
            Ok(Answer::Text(text.to_string_lossy().into_owned()))
        }
        Op::Stat { at, follow } => {
            Ok(stat_answer(&rustix::fs::statat(CWD, below(root, at), follow_flag(*follow))?))
        }
        Op::Access { at, mode } => {
            let access = Access::from_bits_truncate(u32::from(*mode & 7));
            done(rustix::fs::accessat(CWD, below(root, at), access, AtFlags::EACCESS))
        }
        other => unreachable!("{other:?} is no operation on metadata"),
    }
}

fn timespec(when: When) -> Timespec {
    match when {
        When::At(tv_sec, tv_nsec) => Timespec { tv_sec, tv_nsec },
        When::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        When::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
    }
}

fn stat_answer(stat: &Stat) -> Answer {
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Answer::Stat {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if directory { 0 } else { stat.st_size as u64 },
        nlink: if directory { 0 } else { stat.st_nlink },
        rdev: stat.st_rdev,
    }
}

fn apply_kept(op: &Op<PathBuf>, root: &Path, kept: &mut Kept) -> Outcome {
    match op {
        Op::Keep { slot, at, how } => {
            let flags = match how {
                Opening::Read => OFlags::RDONLY,
                Opening::Write => OFlags::WRONLY,
                Opening::Append => OFlags::WRONLY | OFlags::APPEND,
                Opening::ReadWrite => OFlags::RDWR,
                Opening::Directory => OFlags::RDONLY | OFlags::DIRECTORY,
            };
            let place = &mut kept.slots[usize::from(*slot) % SLOTS];
            *place = None;
            let fd = openat(CWD, below(root, at), flags | QUIET, Mode::empty())?;
            *place = Some(KeptFile { fd, how: *how });
            Ok(Answer::Done)
        }
        Op::KeptRead { slot, offset, len } => {
            let mut bytes = vec![0; *len as usize];
            let mut filled = 0;
            while filled < bytes.len() {
                match rustix::io::pread(kept.fd(*slot)?, &mut bytes[filled..], *offset + filled as u64)? {
                    0 => break,
                    count => filled += count,
                }
            }
            Ok(Answer::Text(digest(&bytes[..filled])))
        }
        Op::KeptWrite { slot, offset, len, fill } => write_all(kept.fd(*slot)?, *fill, *len, *offset),
        Op::KeptStat { slot } => Ok(stat_answer(&rustix::fs::fstat(kept.fd(*slot)?)?)),
        Op::KeptTruncate { slot, size } => done(rustix::fs::ftruncate(kept.fd(*slot)?, *size)),
        Op::KeptChmod { slot, mode } => done(rustix::fs::fchmod(kept.fd(*slot)?, Mode::from_raw_mode(*mode))),
        Op::KeptSetXattr { slot, name, value } => {
            done(rustix::fs::fsetxattr(kept.fd(*slot)?, name.as_str(), value, XattrFlags::empty()))
        }
        Op::KeptList { slot } => {
            let fd = kept.fd(*slot)?.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
            rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0))?;
            names(fd)
        }
        Op::KeptCreate { slot, name: index } => {
            let flags = OFlags::CREATE | OFlags::RDWR | QUIET;
            let mode = Mode::from_raw_mode(0o640);
            openat(kept.fd(*slot)?, name(*index), flags, mode).map(|_fd| Answer::Done)
        }
        Op::KeptSync { slot } => done(rustix::fs::fsync(kept.fd(*slot)?)),
        Op::Close { slot } => match kept.slots[usize::from(*slot) % SLOTS].take() {
            Some(_closed) => Ok(Answer::Done),
            None => Err(Errno::BADF),
        },
        other => unreachable!("{other:?} is no operation on a kept descriptor"),
    }
}

/// The listing of a tree: sorted, so that equal trees give equal listings.
#[must_use]
pub fn listing(snapshot: &crate::snapshot::Snapshot) -> Listing {
    let all = snapshot.records.keys().cloned().collect();
    let dirs = snapshot.records.iter().filter(|(_, r)| r.kind == 'd').map(|(path, _)| path.clone()).collect();
    Listing { all, dirs }
}

/// Asks for names directly, without a listing: every name operations use, in every directory, and below
/// every file. Tells in words where the two roots disagree.
#[must_use]
pub fn probe_differences(listing: &Listing, a: &Path, b: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    for dir in &listing.all {
        for index in 0..NAMES {
            let path = dir.join(name(index));
            let ask = |root: &Path| {
                rustix::fs::statat(CWD, root.join(&path), AtFlags::SYMLINK_NOFOLLOW)
                    .map(|stat| FileType::from_raw_mode(stat.st_mode))
            };
            let (first, second) = (ask(a), ask(b));
            if first != second {
                let say = |answer: Result<FileType>| match answer {
                    Ok(kind) => format!("{kind:?}"),
                    Err(errno) => errno.to_string(),
                };
                let (first, second) = (say(first), say(second));
                faults.push(format!("{}: looked up directly: {first} / {second}", path.display()));
            }
        }
    }
    faults
}
