//! A mount namespace of this process's own.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::thread::LinkNameSpaceType;

use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::mount::{MountAttr, mount_setattr};

/// Moves the process into a mount namespace of its own. What it mounts is seen by nobody else and vanishes with
/// the last process in it, however that ends; what the machine mounts later is seen here too.
///
/// # Errors
/// Without CAP_SYS_ADMIN in the process's user namespace, or on a kernel before Linux 5.12.
pub fn enter_private_mounts() -> Result<(), StepError> {
    sys::process::unshare(libc::CLONE_NEWNS).doing(|| "make a mount namespace".into())?;
    let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
    mount_setattr(CWD, c"/", true, slave).doing(|| "keep mounts from spreading".into())
}

/// Mounts what is at `path` in the mount namespace of process `pid` on `target` here too; both see the same files from then
/// on. `path` is resolved there: no symlink of it leads to this machine's files. The calling process must have one thread.
///
/// # Errors
/// Of the system calls. The process may then be in the other mount namespace, and must end.
pub fn mount_of_another(pid: i32, path: &Path, target: &Path) -> Result<(), StepError> {
    let words = || format!("mount {} of process {pid} on {}", path.display(), target.display());
    let namespace = |of: &str| {
        let file = format!("/proc/{of}/ns/mnt");
        rustix::fs::open(&file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("open {file}"))
    };
    let (own, other) = (namespace("self")?, namespace(&pid.to_string())?);
    let place = rustix::fs::open(target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(words)?;
    let here = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(words)?;
    // A process that shares its root directory with another may not change its mount namespace.
    sys::process::unshare(libc::CLONE_FS).doing(words)?;
    let enter = |namespace: &std::os::fd::OwnedFd| {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
            .doing(words)
    };
    enter(&other)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, path, flags).doing(words)?;
    enter(&own)?;
    rustix::process::fchdir(here).doing(words)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", &place, "", flags).doing(words)
}
