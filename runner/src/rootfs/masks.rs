//! Paths that a container may not read (covered) or not write (read-only).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FsWord};
use rustix::mount::OpenTreeFlags;

use super::mounts::{attach, new_filesystem};
use super::resolve::{Links, find};
use crate::config::mounts::{Attributes, attribute};
use crate::step::{Doing, StepError};
use crate::sys::mount::{MountAttr, mount_setattr};

/// PROC_SUPER_MAGIC (linux/magic.h).
pub(crate) const PROC_MAGIC: FsWord = 0x9fa0;
/// SYSFS_MAGIC (linux/magic.h).
const SYSFS_MAGIC: FsWord = 0x6265_6572;
const MAGIC: [(&str, FsWord); 2] = [("/proc", PROC_MAGIC), ("/sys", SYSFS_MAGIC)];

/// Covers each path that exists: a file by the container's null device, a directory by an empty read-only one.
pub(crate) fn cover_paths(root: impl AsFd, paths: &[PathBuf]) -> Result<(), StepError> {
    let root = root.as_fd();
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let words = || format!("mask {}", path.display());
        let Some(target) = find_genuine(root, path).doing(words)? else { continue };
        let stat = rustix::fs::fstat(&target).doing(words)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let tree = match &empty {
                Some(empty) => clone_of(empty).doing(words)?,
                None => empty_directory()?,
            };
            attach(&tree, &target).doing(words)?;
            empty.get_or_insert(tree);
        } else {
            let null = find(root, Path::new("/dev/null"), Links::Refuse).doing(words)?;
            let stat = rustix::fs::fstat(&null).doing(words)?;
            if stat.st_rdev != rustix::fs::makedev(1, 3) {
                return Err(StepError::refused(words(), "/dev/null of the container is not the null device"));
            }
            attach(clone_of(&null).doing(words)?, &target).doing(words)?;
        }
    }
    Ok(())
}

/// Makes each path that exists read-only, with what is mounted below it.
pub(crate) fn make_paths_read_only(root: impl AsFd, paths: &[PathBuf]) -> Result<(), StepError> {
    let root = root.as_fd();
    for path in paths {
        let words = || format!("make {} read-only", path.display());
        let Some(target) = find_genuine(root, path).doing(words)? else { continue };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = rustix::mount::open_tree(&target, "", flags).doing(words)?;
        let read_only = MountAttr { set: attribute::RDONLY, ..MountAttr::default() };
        mount_setattr(&tree, c"", true, read_only).doing(words)?;
        attach(&tree, &target).doing(words)?;
    }
    Ok(())
}

/// What `path` names, `None` when there is nothing. Paths in /proc and /sys must be on those filesystems:
/// anything else there is an image's attempt to have the wrong thing masked.
fn find_genuine(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    let target = match find(root, path, Links::Refuse) {
        Ok(target) => target,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    for (prefix, magic) in MAGIC {
        if path.starts_with(prefix) && rustix::fs::fstatfs(&target)?.f_type != magic {
            // Another mount of the specification lies there.
            if path.starts_with("/sys/fs/cgroup") {
                continue;
            }
            return Err(io::Error::other(format!("it is not on the filesystem that belongs at {prefix}")));
        }
    }
    Ok(Some(target))
}

fn empty_directory() -> Result<OwnedFd, StepError> {
    let data = [
        ("mode".to_owned(), Some("755".to_owned())),
        ("size".to_owned(), Some("0".to_owned())),
        ("nr_inodes".to_owned(), Some("1".to_owned())),
    ];
    let set = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
    new_filesystem("tmpfs", OsStr::new("tmpfs"), &data, Attributes { set, clear: 0 })
}

fn clone_of(mount: impl AsFd) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(mount, "", flags)?)
}
