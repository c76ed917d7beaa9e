//! The mounts of the specification, in order.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::cgroups;
use super::resolve::{Links, find_or_make_directory, find_or_make_file};
use crate::cgroup::Hierarchies;
use crate::config::mounts::Attributes;
use crate::config::{MountConfig, MountKind};
use crate::step::{Doing, StepError};
use crate::sys::mount::{MountAttr, mount_setattr};

/// Mounts all of `mounts` beneath `root`.
pub(crate) fn mount_all(
    root: impl AsFd,
    mounts: &[MountConfig],
    hierarchies: &Hierarchies,
) -> Result<(), StepError> {
    let root = root.as_fd();
    for mount in mounts {
        match &mount.kind {
            MountKind::Filesystem { fstype, source, data } => {
                let target = directory(root, mount, fstype)?;
                let fs = new_filesystem(fstype, source, data, mount.attributes)?;
                finish(&fs, &target, mount, true)?;
            }
            MountKind::Bind { source, recursive } => bind(root, mount, source, *recursive)?,
            MountKind::Cgroup => {
                let target = directory(root, mount, "cgroup")?;
                let fs = cgroups::mount(root, &target, mount, hierarchies)?;
                set_recursive(&fs, mount)?;
            }
        }
    }
    Ok(())
}

/// Where a filesystem goes. /proc and /sys decide what masks and sysctls mean, so that no link of the image
/// may redirect them.
fn directory(root: impl AsFd, mount: &MountConfig, fstype: &str) -> Result<OwnedFd, StepError> {
    let links = if matches!(fstype, "proc" | "sysfs") { Links::Refuse } else { Links::Follow };
    find_or_make_directory(root, &mount.destination, links)
        .doing(|| format!("find or make directory {} to mount {fstype} on", mount.destination.display()))
}

/// A new instance of a filesystem, mounted nowhere yet.
pub(crate) fn new_filesystem(
    fstype: &str,
    source: &OsStr,
    data: &[(String, Option<String>)],
    attributes: Attributes,
) -> Result<OwnedFd, StepError> {
    let words = || format!("make filesystem {fstype}");
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).doing(words)?;
    fsconfig_set_string(&context, "source", source).map_err(|e| explained(&context, e)).doing(words)?;
    for (name, value) in data {
        match value {
            Some(value) => fsconfig_set_string(&context, name.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, name.as_str()),
        }
        .map_err(|error| explained(&context, error))
        .doing(|| format!("set option {name:?} of filesystem {fstype}"))?;
    }
    fsconfig_create(&context).map_err(|error| explained(&context, error)).doing(words)?;
    // Attribute bits are 32 wide in this call; the mask of access times is a mask, not a value.
    let bits = u32::try_from(attributes.set).unwrap_or_default();
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(bits))
        .map_err(|error| explained(&context, error))
        .doing(|| format!("mount filesystem {fstype}"))
}

/// The error with what the filesystem said about it, which is queued in the context.
fn explained(context: &OwnedFd, error: rustix::io::Errno) -> io::Error {
    let mut buffer = [0_u8; 512];
    let length = rustix::io::read(context, &mut buffer).unwrap_or(0);
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
    // "e " is the level.
    match text.trim().strip_prefix("e ") {
        Some(words) => io::Error::new(io::Error::from(error).kind(), format!("{words} ({error})")),
        None => error.into(),
    }
}

fn bind(root: impl AsFd, mount: &MountConfig, source: &Path, recursive: bool) -> Result<(), StepError> {
    let words = || format!("bind {} to {}", source.display(), mount.destination.display());
    let tree = clone_tree(source, recursive).doing(words)?;
    let stat =
        rustix::fs::statx(&tree, "", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::TYPE).doing(words)?;
    let target = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => find_or_make_directory(root, &mount.destination, Links::Follow),
        _ => find_or_make_file(root, &mount.destination),
    };
    finish(&tree, &target.doing(words)?, mount, false)
}

/// A copy of the mount at `source`, mounted nowhere yet.
pub(crate) fn clone_tree(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(rustix::fs::CWD, source, flags)?)
}

/// Attaches the mount `from` on what `target` is open on.
pub(crate) fn attach(from: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(from, "", target, "", flags)?)
}

/// Attributes, attachment, propagation, in this order: a mount is never seen without its attributes.
fn finish(from: &OwnedFd, target: &OwnedFd, mount: &MountConfig, is_new: bool) -> Result<(), StepError> {
    let words = |what: &str| format!("{what} mount {}", mount.destination.display());
    // A new filesystem got its attributes when it was made.
    if !is_new && !mount.attributes.is_empty() {
        let Attributes { set, clear } = mount.attributes;
        mount_setattr(from, c"", false, MountAttr { set, clear, ..MountAttr::default() })
            .doing(|| words("set attributes of"))?;
    }
    set_recursive(from, mount)?;
    attach(from, target).doing(|| words("attach"))?;
    if let Some((propagation, recursive)) = mount.propagation {
        mount_setattr(from, c"", recursive, MountAttr { propagation, ..MountAttr::default() })
            .doing(|| words("set propagation of"))?;
    }
    Ok(())
}

fn set_recursive(from: &OwnedFd, mount: &MountConfig) -> Result<(), StepError> {
    if mount.recursive_attributes.is_empty() {
        return Ok(());
    }
    let Attributes { set, clear } = mount.recursive_attributes;
    mount_setattr(from, c"", true, MountAttr { set, clear, ..MountAttr::default() })
        .doing(|| format!("set attributes of all mounts at {}", mount.destination.display()))
}
