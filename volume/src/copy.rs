//! Filling a new volume with what an image has where it is mounted.
//!
//! Reached by descriptor, one name at a time; symlinks are copied, never followed. Programs in containers may change
//! both trees meanwhile: whatever is opened is looked at first, by a descriptor that does nothing (`O_PATH`).

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Bytes in one piece where the kernel cannot copy by itself.
const PIECE: usize = 256 << 10;
const LONGEST_XATTR: usize = 64 << 10;

/// Copies the content of `from` into `to`, an empty directory, which gets owner, mode, times and xattrs of `from` too.
/// Hard links within stay links, holes stay holes. True when it was done; false when `to` was not empty.
///
/// # Errors
/// When something cannot be read or made; then what was made is in `to`, and the caller may empty it.
pub fn copy_up(from: impl AsFd, to: impl AsFd) -> io::Result<bool> {
    let listed =
        rustix::fs::openat(&to, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if !names(listed.as_fd())?.is_empty() {
        return Ok(false);
    }
    let mut links = HashMap::new();
    directory(from.as_fd(), to.as_fd(), &mut links)?;
    Ok(true)
}

/// Where the first name of a file with several names was put: a descriptor of its directory, and the name.
type Links = HashMap<(u64, u64), (OwnedFd, CString)>;

fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, links: &mut Links) -> io::Result<()> {
    let listed = open(from, c".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    for name in names(listed.as_fd())? {
        entry(from, to, &name, links)?;
    }
    // Last: what is made in a directory changes its times, and its mode may forbid it.
    let stat = rustix::fs::fstat(&listed)?;
    xattrs(listed.as_fd(), to)?;
    rustix::fs::fchown(to, owner(&stat), group(&stat))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    Ok(rustix::fs::futimens(to, &times(&stat))?)
}

fn entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, links: &mut Links) -> io::Result<()> {
    let found = open(from, name, OFlags::PATH)?;
    let stat = rustix::fs::fstat(&found)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Directory {
        rustix::fs::mkdirat(to, name, Mode::RWXU)?;
        let to = open(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        return directory(found.as_fd(), to.as_fd(), links);
    }
    let number = (stat.st_dev, stat.st_ino);
    if stat.st_nlink > 1 {
        if let Some((place, first)) = links.get(&number) {
            return Ok(rustix::fs::linkat(place, first.as_c_str(), to, name, AtFlags::empty())?);
        }
        links.insert(number, (to.try_clone_to_owned()?, name.to_owned()));
    }
    match kind {
        FileType::RegularFile => {
            // The object that was looked at: its name may be another's by now, a pipe's that would be waited for.
            let source = rustix::fs::open(
                again(&found),
                OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let target = rustix::fs::openat(
                to,
                name,
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            )?;
            data(&source, &target, stat.st_size)?;
            // Changing the owner clears set-id bits and file capabilities: they come after it.
            rustix::fs::fchown(&target, owner(&stat), group(&stat))?;
            rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
            xattrs(source.as_fd(), target.as_fd())?;
            Ok(rustix::fs::futimens(&target, &times(&stat))?)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&found, c"", Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), to, name)?;
            rustix::fs::chownat(to, name, owner(&stat), group(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(rustix::fs::utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?)
        }
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
            attributes(to, name, &stat)
        }
        _ => Ok(()),
    }
}

/// Owner, mode and times of `stat` for the object that was just made as `name` and cannot be opened. A symlink that
/// a program has put in its place since leads anywhere on this machine: it is not followed.
fn attributes(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let made = open(to, name, OFlags::PATH)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&made)?.st_mode) != FileType::from_raw_mode(stat.st_mode) {
        let words = format!("{} was exchanged while it was copied", name.to_string_lossy());
        return Err(io::Error::other(words));
    }
    let path = again(&made);
    rustix::fs::chownat(&made, c"", owner(stat), group(stat), AtFlags::EMPTY_PATH)?;
    rustix::fs::chmod(&path, Mode::from_raw_mode(stat.st_mode))?;
    Ok(rustix::fs::utimensat(rustix::fs::CWD, &path, &times(stat), AtFlags::empty())?)
}

fn open(at: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// What a descriptor is of, as a path.
fn again(object: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", object.as_raw_fd())
}

fn owner(stat: &Stat) -> Option<Uid> {
    Some(Uid::from_raw(stat.st_uid))
}

fn group(stat: &Stat) -> Option<Gid> {
    Some(Gid::from_raw(stat.st_gid))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Copies `size` bytes; where there are holes, nothing is written.
fn data(from: &OwnedFd, to: &OwnedFd, size: i64) -> io::Result<()> {
    // One step where the filesystem shares blocks.
    if size > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(to, u64::try_from(size).unwrap_or(0))?;
    let size = u64::try_from(size).unwrap_or(0);
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno.into()),
        };
        let end = match rustix::fs::seek(from, SeekFrom::Hole(start)) {
            Ok(end) if end > start => end.min(size),
            _ => size,
        };
        extent(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn extent(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let len = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), len) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return by_hand(from, to, read, end);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn by_hand(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE);
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut buffer[..len], at))?;
        if count == 0 {
            return Ok(());
        }
        let mut done = 0;
        while done < count {
            let piece = &buffer[done..count];
            done += rustix::io::retry_on_intr(|| rustix::io::pwrite(to, piece, at + done as u64))?;
        }
        at += count as u64;
    }
    Ok(())
}

/// Copies extended attributes; what the target's filesystem does not store is left out, as cp(1) does.
fn xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut list = vec![0; LONGEST_XATTR];
    let len = match rustix::fs::flistxattr(from, &mut list) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let mut value = vec![0; LONGEST_XATTR];
    for name in list.get(..len).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let len = match rustix::fs::fgetxattr(from, name, &mut value) {
            Ok(len) => len,
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let value = value.get(..len).unwrap_or_default();
        match rustix::fs::fsetxattr(to, name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            // Labels and the like are the business of who may set them.
            Err(Errno::PERM | Errno::ACCESS) if !name.starts_with(b"user.") => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn regression_a_symlink_in_the_place_of_a_new_node_is_not_followed() {
        let root = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let run = || -> io::Result<()> {
            let victim = root.path().join("victim");
            fs::write(&victim, "")?;
            fs::set_permissions(&victim, fs::Permissions::from_mode(0o600))?;
            let before = fs::metadata(&victim)?;
            let directory = File::open(root.path())?;
            rustix::fs::mknodat(&directory, c"image", FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
            let wanted = rustix::fs::statat(&directory, c"image", AtFlags::empty())?;
            // As a program does between the making of a node and the change of its mode.
            symlink(&victim, root.path().join("node"))?;
            let refused = attributes(directory.as_fd(), c"node", &wanted);
            assert!(refused.is_err_and(|error| error.to_string().contains("exchanged")));
            let after = fs::metadata(&victim)?;
            assert_eq!((before.mode(), before.mtime_nsec()), (after.mode(), after.mtime_nsec()));
            Ok(())
        };
        run().unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn content_owner_links_and_holes_are_kept() {
        let root = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        let run = || -> io::Result<()> {
            fs::create_dir_all(from.join("sub/deep"))?;
            fs::create_dir(&to)?;
            fs::write(from.join("sub/file"), "content")?;
            fs::hard_link(from.join("sub/file"), from.join("sub/deep/link"))?;
            symlink("/etc/passwd", from.join("sub/absolute"))?;
            fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4750))?;
            fs::set_permissions(&from, fs::Permissions::from_mode(0o1777))?;
            let sparse = File::create(from.join("sparse"))?;
            sparse.set_len(64 << 20)?;
            sparse.write_all_at(b"middle", 32 << 20)?;
            rustix::fs::mknodat(File::open(&from)?, c"fifo", FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::lchown(from.join("sub/file"), Some(33), Some(44))?;
                std::os::unix::fs::lchown(from.join("sub/absolute"), Some(33), Some(44))?;
                fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4750))?;
            }
            // Filesystems without user xattrs pass by.
            rustix::fs::setxattr(from.join("sub"), "user.note", b"x", XattrFlags::empty()).ok();
            assert!(copy_up(File::open(&from)?, File::open(&to)?)?);
            for name in ["", "sub", "sub/file", "sub/deep/link", "sub/absolute", "sparse", "fifo"] {
                let (a, b) = (fs::symlink_metadata(from.join(name))?, fs::symlink_metadata(to.join(name))?);
                let seen =
                    |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.nlink(), m.mtime(), m.mtime_nsec());
                assert_eq!(seen(&a), seen(&b), "{name}");
            }
            assert_eq!(fs::read(to.join("sub/file"))?, b"content");
            assert_eq!(
                fs::metadata(to.join("sub/file"))?.ino(),
                fs::metadata(to.join("sub/deep/link"))?.ino()
            );
            assert_eq!(fs::read_link(to.join("sub/absolute"))?.to_str(), Some("/etc/passwd"));
            let copy = fs::metadata(to.join("sparse"))?;
            assert!(copy.len() == 64 << 20 && copy.blocks() * 512 < 8 << 20, "{} blocks", copy.blocks());
            let mut middle = [0; 6];
            File::open(to.join("sparse"))?.read_exact_at(&mut middle, 32 << 20)?;
            assert_eq!(&middle, b"middle");
            let mut value = [0; 8];
            let note = |path: &std::path::Path, value: &mut [u8; 8]| {
                rustix::fs::getxattr(path, "user.note", value).ok()
            };
            assert_eq!(note(&from.join("sub"), &mut value), note(&to.join("sub"), &mut value));
            // Not empty any more: left as it is.
            fs::write(from.join("new"), "")?;
            assert!(!copy_up(File::open(&from)?, File::open(&to)?)?);
            assert!(!to.join("new").exists());
            Ok(())
        };
        run().unwrap_or_else(|e| panic!("{e}"));
    }
}
