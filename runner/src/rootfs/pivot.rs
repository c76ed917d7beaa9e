//! Taking a directory as the root, and leaving the old one behind.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use super::mounts::clone_tree;
use super::prepare::Prepared;
use crate::config::Config;
use crate::config::mounts::attribute;
use crate::namespaces::Namespaces;
use crate::step::{Doing, StepError};
use crate::sys::mount::{MountAttr, mount_setattr};

/// Makes the root a mount of its own in the calling process's mount namespace; the result is open on it.
///
/// From here on no mount event passes from this namespace to the machine's. The directory is looked up once; everything
/// later is beneath the descriptor.
pub(crate) fn take_root(config: &Config, prepared: &Prepared) -> Result<OwnedFd, StepError> {
    let root = config.root.as_path();
    // First of all: without this, what is mounted here would appear on the machine. In a namespace that is joined, that
    // is for whoever made it to say.
    if config.namespaces.contains(Namespaces::MOUNT) {
        let kind = match config.root_propagation {
            // Mounts of the machine are to be seen in the container.
            Some((bits, _)) if bits == libc::MS_SHARED || bits == libc::MS_SLAVE => libc::MS_SLAVE,
            _ => libc::MS_PRIVATE,
        };
        let apart = MountAttr { propagation: kind, ..MountAttr::default() };
        mount_setattr(CWD, c"/", true, apart).doing(|| "keep mounts from spreading".into())?;
    }
    let words = |what: &str| format!("{what} root filesystem {}", root.display());
    let tree = match &prepared.root {
        Some(tree) => tree.try_clone(),
        None => clone_tree(root, true),
    };
    let tree = tree.doing(|| words("clone"))?;
    if config.root_no_devices {
        let attributes = MountAttr { set: attribute::NODEV, ..MountAttr::default() };
        mount_setattr(&tree, c"", true, attributes).doing(|| words("forbid devices in"))?;
    }
    // pivot_root wants a mount that is attached; on top of the directory itself it is in nobody's way. Where that cannot
    // be reached (another user's directory above it), any other place does: the old root is going to be left.
    let attached = rustix::mount::move_mount(&tree, "", CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    match attached {
        Err(Errno::ACCESS) => {
            rustix::mount::move_mount(&tree, "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .doing(|| words("mount"))?;
        }
        result => result.doing(|| words("mount"))?,
    }
    // pivot_root refuses a root whose parent mount spreads.
    let parent_apart = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount_setattr(&tree, c"", false, parent_apart).doing(|| words("keep mounts from spreading from"))?;
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
pub(crate) fn enter_root(root: impl AsFd, config: &Config) -> Result<(), StepError> {
    rustix::process::fchdir(root.as_fd()).doing(|| "change to the new root".into())?;
    if config.choice.no_pivot {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(root.as_fd(), "", CWD, "/", flags)
            .doing(|| "move the new root over the old one".into())?;
        rustix::process::chroot(".").doing(|| "change the root".into())?;
    } else if config.namespaces.contains(Namespaces::MOUNT) {
        // With both names the same, the old root is stacked upon the new one, and needs no directory in it.
        rustix::process::pivot_root(".", ".").doing(|| "pivot to the new root".into())?;
        // What is unmounted here must not be unmounted on the machine.
        let apart = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
        mount_setattr(CWD, c".", true, apart).doing(|| "keep the old root from spreading".into())?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "detach the old root".into())?;
    } else {
        // Others are in this namespace, and keep their root.
        rustix::process::chroot(".").doing(|| "change the root".into())?;
    }
    rustix::process::chdir("/").doing(|| "change to the new root".into())?;
    if let Some((propagation, recursive)) = config.root_propagation {
        let attributes = MountAttr { propagation, ..MountAttr::default() };
        mount_setattr(CWD, c"/", recursive, attributes).doing(|| "set the root's propagation".into())?;
    }
    if config.root_read_only {
        let attributes = MountAttr { set: attribute::RDONLY, ..MountAttr::default() };
        mount_setattr(CWD, c"/", false, attributes).doing(|| "make the root read-only".into())?;
    }
    Ok(())
}
