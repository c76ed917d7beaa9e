//! `/sys/fs/cgroup` in the container: the machine's layout, seen from the container's own cgroup.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::mounts::{attach, clone_tree, new_filesystem, set_attributes};
use super::resolve::{Links, find_or_make_directory};
use crate::cgroup::{Hierarchies, Hierarchy};
use crate::config::MountConfig;
use crate::config::mounts::{Attributes, attribute};
use crate::step::{Doing, StepError};
use crate::sys::mount::{MountAttr, mount_setattr};

/// Mounts the cgroup filesystems on `target`; the result is the uppermost mount.
///
/// A unified machine has one filesystem. Others have a tmpfs with one directory per hierarchy, and links for
/// controllers that share one.
///
/// In a cgroup namespace of the container's own, new filesystems show what is below its root. Without one they would
/// show every cgroup of the machine: there, `shared` has the container's own directories, and they are shown.
pub(super) fn mount(
    target: &OwnedFd,
    mount: &MountConfig,
    hierarchies: &Hierarchies,
    shared: Option<&[PathBuf]>,
) -> Result<OwnedFd, StepError> {
    let words = || format!("mount cgroups on {}", mount.destination.display());
    if let [only @ Hierarchy::Unified { .. }] = hierarchies.all() {
        let fs = match filesystem(only, mount, shared)? {
            Some(fs) => fs,
            None => new_filesystem("tmpfs", OsStr::new("tmpfs"), &[], mount.attributes)?,
        };
        attach(&fs, target).doing(words)?;
        return Ok(fs);
    }
    let mut writable = mount.attributes;
    writable.set &= !attribute::RDONLY;
    let data = [("mode".to_owned(), Some("755".to_owned())), ("size".to_owned(), Some("64k".to_owned()))];
    let tmpfs = new_filesystem("tmpfs", OsStr::new("tmpfs"), &data, writable)?;
    attach(&tmpfs, target).doing(words)?;
    for hierarchy in hierarchies.all() {
        mount_one(&tmpfs, hierarchy, mount, shared).doing_for(hierarchy)?;
    }
    let read_only = Attributes { set: mount.attributes.set & attribute::RDONLY, clear: 0 };
    if read_only.set != 0 {
        mount_setattr(&tmpfs, c"", false, MountAttr { set: read_only.set, ..MountAttr::default() })
            .doing(words)?;
    }
    Ok(tmpfs)
}

/// What is mounted for one hierarchy. `None` where nothing of it can be seen: the directory stays empty.
fn filesystem(
    hierarchy: &Hierarchy,
    mount: &MountConfig,
    shared: Option<&[PathBuf]>,
) -> Result<Option<OwnedFd>, StepError> {
    if let Some(shared) = shared {
        let top = hierarchy.top_directory();
        return match shared.iter().find(|directory| directory.starts_with(top)) {
            Some(directory) => {
                let words = || format!("show cgroup {}", directory.display());
                let tree = clone_tree(directory, false).doing(words)?;
                set_attributes(&tree, mount.attributes).doing(words)?;
                Ok(Some(tree))
            }
            None => shown(hierarchy),
        };
    }
    let made = match hierarchy {
        Hierarchy::Unified { .. } => new_filesystem("cgroup2", OsStr::new("cgroup"), &[], mount.attributes),
        Hierarchy::Legacy { options, .. } => {
            let data: Vec<_> = options
                .iter()
                .map(|option| match option.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (option.clone(), None),
                })
                .collect();
            new_filesystem("cgroup", OsStr::new("cgroup"), &data, mount.attributes)
        }
    };
    match made {
        // A user namespace may not make one.
        Err(error) if error.errno() == Some(libc::EPERM) => shown(hierarchy),
        result => result.map(Some),
    }
}

/// The machine's, from the cgroup that the runtime is in, which is not the container's own: read-only.
fn shown(hierarchy: &Hierarchy) -> Result<Option<OwnedFd>, StepError> {
    let Some(own) = hierarchy.own_directory() else { return Ok(None) };
    let words = || format!("show cgroup {}", own.display());
    let tree = clone_tree(own, false).doing(words)?;
    let set = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
    mount_setattr(&tree, c"", false, MountAttr { set, ..MountAttr::default() }).doing(words)?;
    Ok(Some(tree))
}

trait DoingFor<T> {
    fn doing_for(self, hierarchy: &Hierarchy) -> Result<T, StepError>;
}

impl<T> DoingFor<T> for Result<T, StepError> {
    fn doing_for(self, hierarchy: &Hierarchy) -> Result<T, StepError> {
        self.map_err(|error| {
            StepError::refused(format!("cgroup hierarchy {:?}", hierarchy.name()), error.words())
        })
    }
}

fn mount_one(
    tmpfs: &OwnedFd,
    hierarchy: &Hierarchy,
    mount: &MountConfig,
    shared: Option<&[PathBuf]>,
) -> Result<(), StepError> {
    let name = hierarchy.name();
    let words = || format!("mount hierarchy {name:?}");
    let directory = find_or_make_directory(tmpfs, Path::new(&name), Links::Refuse).doing(words)?;
    let Some(fs) = filesystem(hierarchy, mount, shared)? else { return Ok(()) };
    attach(&fs, &directory).doing(words)?;
    if let Hierarchy::Legacy { options, .. } = hierarchy
        && options.len() > 1
    {
        for option in options.iter().filter(|option| **option != name) {
            rustix::fs::symlinkat(name.as_str(), tmpfs, option.as_str())
                .doing(|| format!("link {option:?} to {name:?}"))?;
        }
    }
    Ok(())
}
