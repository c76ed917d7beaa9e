//! The system calls behind the operations.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, Dev, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec,
    Timestamps, XattrFlags, openat,
};
use rustix::io::{Errno, Result};

use super::{
    Allocation, Answer, Kept, KeptFile, Op, Opening, Outcome, Renaming, SLOTS, Special, When, XattrHow, name,
};
use crate::snapshot::digest;

/// Nothing waits for the other end of a FIFO.
const QUIET: OFlags = OFlags::NONBLOCK.union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

pub(super) fn apply(op: &Op<PathBuf>, root: &Path, kept: &mut Kept) -> Outcome {
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
