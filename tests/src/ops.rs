//! Operations that mean the same on any root: a mount under test and a plain directory.
//!
//! An operation as generated names its objects by [`Target`] (an index modulo what exists); resolved against a
//! listing it names paths, and is then applied to several roots whose outcomes must agree.

mod apply;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::{Errno, Result};

use crate::layers::{binary_name, longest_name};
use crate::privilege::as_user;

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
    /// Bytes, targets, values (as `snapshot::digest`).
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
            Who::Root => apply::apply(&self.op, root, kept),
            Who::User(uid, gid) => as_user(uid, gid, || apply::apply(&self.op, root, kept)),
        };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        outcome
    }
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
                rustix::fs::statat(rustix::fs::CWD, root.join(&path), AtFlags::SYMLINK_NOFOLLOW)
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
