//! `/dev`: the nodes of every container, the usual links, and the console.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::mounts::{attach, clone_tree};
use super::resolve::{find_or_make_file, parent_of};
use crate::config::Device;
use crate::step::{Doing, StepError};

/// Links that programs expect: name in `/dev`, target.
const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    // The instance of this container, not the machine's.
    ("/dev/ptmx", "pts/ptmx"),
];

/// Makes `devices` and the links beneath `root`. The caller's umask is 0.
pub(crate) fn make_devices(root: impl AsFd, devices: &[Device]) -> Result<(), StepError> {
    let root = root.as_fd();
    for device in devices {
        make_device(root, device).doing(|| format!("make device {}", device.path.display()))?;
    }
    for (name, target) in LINKS {
        make_link(root, Path::new(name), target).doing(|| format!("link {name} to {target}"))?;
    }
    Ok(())
}

fn make_device(root: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let (parent, name) = parent_of(root, &device.path)?;
    let number = rustix::fs::makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode);
    match rustix::fs::mknodat(&parent, name, device.kind, mode, number) {
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
            Ok(rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
        }
        // The image's /dev, where the specification mounts none: what is there stays if it is the same.
        Err(Errno::EXIST) if is_same(root, device)? => Ok(()),
        // A user namespace may not make devices: the machine's own is shown instead.
        Err(Errno::PERM) => bind_device(root, device),
        Err(error) => Err(error.into()),
    }
}

fn is_same(root: BorrowedFd<'_>, device: &Device) -> io::Result<bool> {
    let found = super::resolve::find(root, &device.path, super::resolve::Links::Refuse)?;
    let stat = rustix::fs::fstat(&found)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == device.kind
        && stat.st_rdev == rustix::fs::makedev(device.major, device.minor))
}

fn bind_device(root: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let tree = clone_tree(&device.path, false)?;
    let stat = rustix::fs::fstat(&tree)?;
    if stat.st_rdev != rustix::fs::makedev(device.major, device.minor) {
        return Err(io::Error::other("the machine has another device of this name"));
    }
    let target = find_or_make_file(root, &device.path)?;
    attach(&tree, &target)
}

fn make_link(root: BorrowedFd<'_>, path: &Path, target: &str) -> io::Result<()> {
    let (parent, name) = parent_of(root, path)?;
    match rustix::fs::symlinkat(target, &parent, name) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let name = CString::new(name.as_bytes())?;
            match rustix::fs::readlinkat(&parent, &name, Vec::new()) {
                Ok(found) if found.as_bytes() == target.as_bytes() => Ok(()),
                // What the image has of that name stays, as with other engines.
                Ok(_) | Err(Errno::INVAL) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Shows the terminal's slave as `/dev/console`.
pub(crate) fn bind_console(root: impl AsFd, slave: impl AsFd) -> Result<(), StepError> {
    let words = || "bind the terminal to /dev/console".to_owned();
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(slave, "", flags).doing(words)?;
    let target = find_or_make_file(root, Path::new("/dev/console")).doing(words)?;
    attach(&tree, &target).doing(words)
}
