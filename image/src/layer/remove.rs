//! Removing a tree, whatever is in it.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

/// So deep directories are moved to the top first, that neither descriptors nor stack run out.
const MAX_DEPTH: usize = 32;

/// Removes `path` and all beneath it, without following a symlink. Nothing there is fine.
///
/// # Errors
/// Those of the system calls; part of the tree may be gone then.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or(OsStr::new(""));
    let parent = match open(rustix::fs::CWD, &CString::new(parent.as_os_str().as_bytes())?) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    Ok(remove_at(parent.as_fd(), &CString::new(name.as_bytes())?)?)
}

/// Removes `name` in `dir` and all beneath it.
pub(super) fn remove_at(dir: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EPERM: what POSIX says of directories.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = open_for_removal(dir, name)?;
    let mut moved = 0;
    empty(top.as_fd(), top.as_fd(), 0, &mut moved)?;
    // What was moved up is emptied in turn, which may move more.
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn empty(top: BorrowedFd<'_>, dir: BorrowedFd<'_>, depth: usize, moved: &mut u64) -> Result<(), Errno> {
    loop {
        let mut found = 0;
        for (name, kind) in list(dir)? {
            found += 1;
            if kind != FileType::Directory {
                match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if depth >= MAX_DEPTH {
                *moved += 1;
                let new = CString::new(format!(".removed-{moved}")).map_err(|_| Errno::INVAL)?;
                match rustix::fs::renameat(dir, &name, top, &new) {
                    // Taken by a name in the tree: try the next one.
                    Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                    other => other?,
                }
                continue;
            }
            let child = open_for_removal(dir, &name)?;
            empty(top, child.as_fd(), depth + 1, moved)?;
            rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
        }
        if found == 0 {
            return Ok(());
        }
    }
}

fn open_for_removal(dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    match open(dir, name) {
        Err(Errno::ACCESS) => {
            super::disk::set_mode(dir, name, Mode::RWXU)?;
            open(dir, name)
        }
        Ok(fd) => {
            // An ordinary user removes nothing from what cannot be written; for root it makes no difference.
            if !rustix::process::geteuid().is_root() {
                rustix::fs::fchmod(&fd, Mode::RWXU)?;
            }
            Ok(fd)
        }
        other => other,
    }
}

fn open(dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Names in a directory and their types, where the filesystem tells them.
pub(crate) fn list(dir: BorrowedFd<'_>) -> Result<Vec<(CString, FileType)>, Errno> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(32 * 1024);
    let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut listing = RawDir::new(dir, spare);
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn deep_and_wide_trees_go_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let top = dir.path().join("tree");
        fs::create_dir(&top).unwrap();
        let mut at = open(rustix::fs::CWD, &CString::new(top.as_os_str().as_bytes()).unwrap()).unwrap();
        for _ in 0..400 {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, c".removed-1", Mode::RWXU).unwrap();
            rustix::fs::symlinkat(&outside, &at, c"link").unwrap();
            at = open(at.as_fd(), &c"d".to_owned()).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists() && outside.join("kept").exists());
        remove_tree(&top).unwrap();
        remove_tree(&top.join("a/b")).unwrap();
    }
}
