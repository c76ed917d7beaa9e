//! What the parent clones of the machine's files before the container's own user namespace takes its rights away.
//!
//! A root or a bind may lie below a directory that the container's root, who is nobody here, cannot pass; and only
//! who is root over a filesystem may show it with other owners. Where neither matters, the container's first process
//! clones for itself.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::mounts::clone_tree;
use crate::config::mounts::MountIdMap;
use crate::config::{Config, MountKind};
use crate::namespaces::Namespaces;
use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::mount::{MountAttr, mount_setattr};
use crate::sys::process::Forked;

/// `MOUNT_ATTR_IDMAP` of linux/mount.h.
const IDMAP: u64 = 0x0010_0000;

/// Clones, mounted nowhere yet.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) root: Option<OwnedFd>,
    trees: Vec<Option<OwnedFd>>,
}

impl Prepared {
    /// Clones what has to be cloned here.
    pub(crate) fn new(config: &Config) -> Result<Self, StepError> {
        let has_users = config.has_own(Namespaces::USER);
        let mut prepared = Self::default();
        if !has_users && config.mounts.iter().all(|mount| mount.id_map.is_none()) {
            return Ok(prepared);
        }
        if has_users {
            let words = || format!("clone root filesystem {}", config.root.display());
            prepared.root = or_later(clone_tree(&config.root, true)).doing(words)?;
        }
        for mount in &config.mounts {
            let tree = match &mount.kind {
                MountKind::Bind { source, recursive }
                    if (has_users || mount.id_map.is_some()) && !mount.remount =>
                {
                    let words = || format!("bind {} to {}", source.display(), mount.destination.display());
                    match &mount.id_map {
                        Some(map) => {
                            let tree = clone_tree(source, *recursive).doing(words)?;
                            map_ids(&tree, map, config)
                                .doing(|| format!("map ids of {}", mount.destination.display()))?;
                            Some(tree)
                        }
                        None => or_later(clone_tree(source, *recursive)).doing(words)?,
                    }
                }
                _ => None,
            };
            prepared.trees.push(tree);
        }
        Ok(prepared)
    }

    /// The source of the mount at this place in the list.
    pub(crate) fn tree(&self, index: usize) -> Option<&OwnedFd> {
        self.trees.get(index)?.as_ref()
    }

    /// All descriptors, which the child keeps.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.root.iter().chain(self.trees.iter().flatten()).map(AsFd::as_fd).collect()
    }
}

/// `None` where this process, an ordinary user, may not clone: the first process does, as root of its own namespaces.
fn or_later(cloned: std::io::Result<OwnedFd>) -> std::io::Result<Option<OwnedFd>> {
    match cloned {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
        result => result.map(Some),
    }
}

fn map_ids(tree: &OwnedFd, map: &MountIdMap, config: &Config) -> std::io::Result<()> {
    let own = map.uid_map.is_empty();
    let (uids, gids) = if own { (&config.uid_map, &config.gid_map) } else { (&map.uid_map, &map.gid_map) };
    if uids.is_empty() {
        return Err(std::io::Error::other("neither the mount nor the container has a map of ids"));
    }
    let namespace = user_namespace(&uids.text(), &gids.text())?;
    let attributes = MountAttr {
        set: IDMAP,
        userns_fd: u64::from(std::os::fd::AsRawFd::as_raw_fd(&namespace).unsigned_abs()),
        ..MountAttr::default()
    };
    mount_setattr(tree, c"", map.recursive, attributes)
}

/// A user namespace with these maps, which nobody is in.
fn user_namespace(uids: &str, gids: &str) -> std::io::Result<File> {
    let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (pid, pidfd) = match sys::process::fork_into(Namespaces::USER.bits())? {
        Forked::Child => {
            drop(go);
            // It holds the namespace until the parent has it open, or is gone.
            File::from(wait).read_exact(&mut [0_u8; 1]).ok();
            sys::process::exit_now(0)
        }
        Forked::Parent { pid, pidfd } => (pid.as_raw_nonzero(), pidfd),
    };
    drop(wait);
    let opened = std::fs::write(format!("/proc/{pid}/uid_map"), uids)
        .and_then(|()| std::fs::write(format!("/proc/{pid}/gid_map"), gids))
        .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    drop(go);
    rustix::io::retry_on_intr(|| {
        rustix::process::waitid(
            rustix::process::WaitId::PidFd(pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        )
    })?;
    opened
}
