//! The mounts of the specification, in order.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::prepare::Prepared;
use super::resolve::{Links, find_or_make_directory, find_or_make_file};
use super::{cgroups, copy};
use crate::cgroup::Hierarchies;
use crate::config::mounts::{Attributes, attribute};
use crate::config::{MountConfig, MountKind};
use crate::step::{Doing, StepError};
use crate::sys::mount::{MountAttr, mount_setattr};

/// What the mounts of a container need besides their list.
pub(crate) struct Surroundings<'a> {
    /// The machine's cgroups.
    pub(crate) hierarchies: &'a Hierarchies,
    /// Directories of the container's cgroup, where it has no cgroup namespace of its own.
    pub(crate) shared_cgroups: Option<&'a [PathBuf]>,
    /// Sources that were cloned by the parent, by the mount's place in the list.
    pub(crate) prepared: &'a Prepared,
    /// The container has a pid namespace of its own, made or joined.
    pub(crate) has_own_pids: bool,
    /// SELinux label of new filesystems.
    pub(crate) label: Option<&'a str>,
}

/// Mounts all of `mounts` beneath `root`. `before_cgroups` is called before the first that depends on the process being
/// in its cgroup.
pub(crate) fn mount_all(
    root: impl AsFd,
    mounts: &[MountConfig],
    surroundings: &Surroundings<'_>,
    before_cgroups: &mut dyn FnMut() -> Result<(), StepError>,
) -> Result<(), StepError> {
    let root = root.as_fd();
    for (index, mount) in mounts.iter().enumerate() {
        if mount.remount {
            remount(root, mount)?;
            continue;
        }
        match &mount.kind {
            MountKind::Filesystem { fstype, source, data } => {
                let target = directory(root, mount, fstype)?;
                let mut data = data.clone();
                if let Some(label) = surroundings.label
                    && matches!(fstype.as_str(), "tmpfs" | "devpts" | "mqueue")
                {
                    data.push(("context".to_owned(), Some(label.to_owned())));
                }
                if fstype == "tmpfs" && !data.iter().any(|(name, _)| name == "mode") {
                    data.push(("mode".to_owned(), Some(mode_of(&target, mount)?)));
                }
                match new_filesystem(fstype, source, &data, mount.attributes) {
                    Ok(fs) => {
                        if mount.copy_up {
                            copy_up(&target, &fs, mount)?;
                        }
                        finish(&fs, &target, mount, true)?;
                    }
                    // Only the owner of the network namespace may make one; the machine's is shown read-only.
                    Err(error) if fstype == "sysfs" && error.errno() == Some(libc::EPERM) => {
                        let tree = clone_tree(Path::new("/sys"), true).doing(|| "bind /sys".into())?;
                        let read_only = MountAttr { set: attribute::RDONLY, ..MountAttr::default() };
                        mount_setattr(&tree, c"", true, read_only).doing(|| "make /sys read-only".into())?;
                        attach(&tree, &target).doing(|| "attach /sys".into())?;
                    }
                    // As with sysfs: who shares a pid namespace need not own it. In a new one the machine's would show others.
                    Err(error)
                        if fstype == "proc"
                            && !surroundings.has_own_pids
                            && error.errno() == Some(libc::EPERM) =>
                    {
                        let tree = clone_tree(Path::new("/proc"), true).doing(|| "bind /proc".into())?;
                        finish(&tree, &target, mount, false)?;
                    }
                    Err(error) => return Err(error),
                }
            }
            MountKind::Bind { source, recursive } => {
                let tree = match surroundings.prepared.tree(index) {
                    Some(tree) => tree.try_clone(),
                    None => clone_tree(source, *recursive),
                };
                let words = || format!("bind {} to {}", source.display(), mount.destination.display());
                bind(root, mount, &tree.doing(words)?, words)?;
            }
            MountKind::Cgroup => {
                before_cgroups()?;
                let target = directory(root, mount, "cgroup")?;
                let fs =
                    cgroups::mount(&target, mount, surroundings.hierarchies, surroundings.shared_cgroups)?;
                set_recursive(&fs, mount)?;
            }
        }
    }
    Ok(())
}

/// A tmpfs has the mode of the directory that it covers.
fn mode_of(target: &OwnedFd, mount: &MountConfig) -> Result<String, StepError> {
    let stat = rustix::fs::fstat(target).doing(|| format!("look at {}", mount.destination.display()))?;
    Ok(format!("{:o}", stat.st_mode & 0o7777))
}

fn copy_up(target: &OwnedFd, fs: &OwnedFd, mount: &MountConfig) -> Result<(), StepError> {
    let words = || format!("copy {} to the filesystem mounted there", mount.destination.display());
    // A read-only mount takes no copy: its attributes come after.
    let writable = MountAttr { clear: attribute::RDONLY, ..MountAttr::default() };
    mount_setattr(fs, c"", false, writable).doing(words)?;
    copy::copy_tree(target, fs).doing(words)?;
    let read_only = mount.attributes.set & attribute::RDONLY;
    let attributes = MountAttr { set: read_only, ..MountAttr::default() };
    mount_setattr(fs, c"", false, attributes).doing(words)
}

/// Changes the attributes of what is mounted at the place.
fn remount(root: impl AsFd, mount: &MountConfig) -> Result<(), StepError> {
    let words = || format!("change the attributes of mount {}", mount.destination.display());
    let target = super::resolve::find(root, &mount.destination, Links::Follow).doing(words)?;
    set_attributes(&target, mount.attributes).doing(words)?;
    set_recursive(&target, mount)
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

fn bind(
    root: impl AsFd,
    mount: &MountConfig,
    tree: &OwnedFd,
    words: impl Fn() -> String,
) -> Result<(), StepError> {
    let stat =
        rustix::fs::statx(tree, "", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::TYPE).doing(&words)?;
    let target = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => find_or_make_directory(root, &mount.destination, Links::Follow),
        _ => find_or_make_file(root, &mount.destination),
    };
    finish(tree, &target.doing(&words)?, mount, false)
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
        set_attributes(from, mount.attributes).doing(|| words("set attributes of"))?;
    }
    set_recursive(from, mount)?;
    attach(from, target).doing(|| words("attach"))?;
    if let Some((propagation, recursive)) = mount.propagation {
        mount_setattr(from, c"", recursive, MountAttr { propagation, ..MountAttr::default() })
            .doing(|| words("set propagation of"))?;
    }
    Ok(())
}

/// A user namespace may not clear what the machine has set, nor change times of access. Words that would do so are
/// left out there, as mount(8) and other runtimes do.
pub(super) fn set_attributes(from: &OwnedFd, attributes: Attributes) -> io::Result<()> {
    let Attributes { set, clear } = attributes;
    let attributes = MountAttr { set, clear, ..MountAttr::default() };
    match mount_setattr(from, c"", false, attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let set = set & !attribute::ATIME_MASK;
            mount_setattr(from, c"", false, MountAttr { set, ..MountAttr::default() })
        }
        result => result,
    }
}

fn set_recursive(from: &OwnedFd, mount: &MountConfig) -> Result<(), StepError> {
    if mount.recursive_attributes.is_empty() {
        return Ok(());
    }
    let Attributes { set, clear } = mount.recursive_attributes;
    mount_setattr(from, c"", true, MountAttr { set, clear, ..MountAttr::default() })
        .doing(|| format!("set attributes of all mounts at {}", mount.destination.display()))
}
