//! Taking a directory as the root, and leaving the old one behind.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::config::mounts::attribute;
use crate::step::{Doing, StepError};
use crate::sys::mount::{MountAttr, mount_setattr};

/// Makes `root` a mount of its own in the calling process's new mount namespace; the result is open on it.
///
/// From here on no mount event passes between this namespace and the machine's. The directory is looked up
/// once; everything later is beneath the descriptor. With `no_devices`, device nodes in it cannot be opened.
pub(crate) fn take_root(root: &Path, no_devices: bool) -> Result<OwnedFd, StepError> {
    // First of all: without this, what is mounted here would appear on the machine.
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount_setattr(CWD, c"/", true, private).doing(|| "make all mounts private".into())?;
    let words = |what: &str| format!("{what} root filesystem {}", root.display());
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, root, flags).doing(|| words("clone"))?;
    if no_devices {
        let attributes = MountAttr { set: attribute::NODEV, ..MountAttr::default() };
        mount_setattr(&tree, c"", true, attributes).doing(|| words("forbid devices in"))?;
    }
    // pivot_root wants a mount that is attached; on top of the directory itself it is in nobody's way.
    rustix::mount::move_mount(&tree, "", CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| words("mount"))?;
    rustix::fs::openat(
        &tree,
        ".",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .doing(|| words("open"))
}

/// Makes the mount that `root` is open on the root of the namespace and of the process, and detaches the old
/// root with everything on it.
pub(crate) fn enter_root(root: impl AsFd, read_only: bool) -> Result<(), StepError> {
    rustix::process::fchdir(root.as_fd()).doing(|| "change to the new root".into())?;
    // With both names the same, the old root is stacked upon the new one, and needs no directory in it.
    rustix::process::pivot_root(".", ".").doing(|| "pivot to the new root".into())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "detach the old root".into())?;
    rustix::process::chdir("/").doing(|| "change to the new root".into())?;
    if read_only {
        let attributes = MountAttr { set: attribute::RDONLY, ..MountAttr::default() };
        mount_setattr(CWD, c"/", false, attributes).doing(|| "make the root read-only".into())?;
    }
    Ok(())
}
