//! Extended attributes, POSIX ACLs among them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::copy_up::Need;
use super::{Caller, Overlay, UpperPlace};
use crate::attr::Kind;
use crate::config::IdMap;
use crate::error::{Errno, OpResult};
use crate::layer::mark_io::{XattrSource, c_name, with_name};
use crate::node::{MODE_UNKNOWN, Node};
use crate::sys::creds;
use crate::sys::xattr::{self, Target};

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const CAPABILITY: &[u8] = b"security.capability";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// linux/capability.h
const CAP_FSETID: u64 = 4;

fn is_acl(name: &[u8]) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL
}

impl Overlay {
    /// The value of an xattr.
    ///
    /// # Errors
    /// ENODATA, EOPNOTSUPP for ACLs when they are off, and what getxattr(2) lists.
    pub fn getxattr(&self, node: &Arc<Node>, name: &[u8]) -> OpResult<Vec<u8>> {
        if is_acl(name) && (!self.layers.config.acl || self.layers.config.xattr_permissions) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let stored = self.layers.names.stored(name).ok_or(Errno::NODATA)?;
        let of_capability = name == CAPABILITY;
        if of_capability && node.lacks_capability.load(Ordering::Relaxed) {
            return Err(Errno::NODATA.into());
        }
        let value = self.read_xattrs(node, |source| source.value(&stored))?;
        if is_acl(name) {
            return Ok(self.map_acl(value, IdMap::to_shown)?);
        }
        Ok(value)
    }

    /// The names of all xattrs.
    ///
    /// # Errors
    /// What listxattr(2) lists.
    pub fn listxattr(&self, node: &Arc<Node>) -> OpResult<Vec<Vec<u8>>> {
        let names = self.read_xattrs(node, |source| source.names())?;
        let hide_acls = !self.layers.config.acl;
        Ok(names
            .iter()
            .filter_map(|n| self.layers.names.shown(n))
            .filter(|n| !(hide_acls && is_acl(n)))
            .collect())
    }

    /// Reads xattrs of wherever the object's attributes are.
    fn read_xattrs<T>(
        &self,
        node: &Arc<Node>,
        read: impl Fn(&dyn XattrValues) -> Result<T, Errno>,
    ) -> OpResult<T> {
        if node.kind == Kind::Dir {
            let parts = node.parts();
            let top = parts.upper.as_ref().or(parts.lowers.first()).ok_or(Errno::STALE)?;
            if let (Some(index), Some(id)) = (self.layers.immutable_index(top.layer), top.index)
                && let Ok(entry) = index.entry(id)
            {
                return Ok(read(&entry)?);
            }
            let fd = self.fd(top)?;
            return Ok(read(&Target::Fd(fd.as_fd()))?);
        }
        let lower = {
            let place = node.place.read();
            if place.upper.is_some() { None } else { place.lower.clone() }
        };
        match lower {
            Some(lower) => Ok(self.layers.with_xattr_values(&lower.dir, &lower.name, read)?),
            None => self.with_upper(node, |place| match place {
                UpperPlace::Held(fd) => read(&Target::Fd(fd)),
                UpperPlace::At { fd, name, .. } => with_name(fd, name, |t| read(&t)),
            }),
        }
    }

    /// Sets an xattr; `flags` is 0, `XATTR_CREATE` or `XATTR_REPLACE`. A lower object is copied up without data.
    ///
    /// # Errors
    /// EROFS, EOPNOTSUPP for ACLs when they are off, EPERM for names that belong to the filesystem itself, and
    /// what setxattr(2) lists.
    pub fn setxattr(
        &self,
        node: &Arc<Node>,
        name: &[u8],
        value: &[u8],
        flags: i32,
        caller: &Caller,
    ) -> OpResult<()> {
        self.upper()?;
        if is_acl(name) && (!self.layers.config.acl || self.layers.config.xattr_permissions) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let stored = self.layers.names.stored(name).ok_or(Errno::PERM)?;
        let value = if is_acl(name) {
            std::borrow::Cow::Owned(self.map_acl(value.to_vec(), |map, id| map.to_disk(id).unwrap_or(id))?)
        } else {
            std::borrow::Cow::Borrowed(value)
        };
        self.copy_up(node, Need::Attributes)?;
        let _changing = node.change.lock();
        if name == CAPABILITY {
            node.lacks_capability.store(false, Ordering::Relaxed);
        }
        self.on_upper(node, |place| match place {
            UpperPlace::Held(fd) => xattr::set(Target::Fd(fd), &stored, &value, flags),
            UpperPlace::At { fd, name, .. } => with_name(fd, name, |t| xattr::set(t, &stored, &value, flags)),
        })?;
        if name == ACCESS_ACL {
            node.mode.store(MODE_UNKNOWN, Ordering::Relaxed);
            self.drop_set_group_id(node, caller)?;
        }
        Ok(())
    }

    /// Setting an access ACL takes the set-group-id bit from a file of a group that the caller is not in, as
    /// `posix_acl_update_mode` of the kernel does; on the backing it sees us, who may keep it.
    fn drop_set_group_id(&self, node: &Arc<Node>, caller: &Caller) -> OpResult<()> {
        let attr = self.stat_node(node)?;
        if attr.mode & libc::S_ISGID == 0 {
            return Ok(());
        }
        let shown = self.show(node, attr)?;
        if in_group_or_capable(caller, shown.gid) {
            return Ok(());
        }
        self.change_mode(node, attr.mode & 0o7777 & !libc::S_ISGID)
    }

    /// Removes an xattr.
    ///
    /// # Errors
    /// ENODATA, EROFS, and what removexattr(2) lists.
    pub fn removexattr(&self, node: &Arc<Node>, name: &[u8]) -> OpResult<()> {
        self.upper()?;
        if is_acl(name) && (!self.layers.config.acl || self.layers.config.xattr_permissions) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let stored = self.layers.names.stored(name).ok_or(Errno::NODATA)?;
        // Copying an object up only to learn that it has no such xattr would be a waste.
        match self.read_xattrs(node, |source| source.has(&stored)) {
            // Taking away an ACL that is not there is no error.
            Err(e) if e.errno() == Errno::NODATA && is_acl(name) => return Ok(()),
            other => other?,
        }
        self.copy_up(node, Need::Attributes)?;
        let _changing = node.change.lock();
        node.capability_removed.store(name == CAPABILITY, Ordering::Relaxed);
        self.on_upper(node, |place| match place {
            UpperPlace::Held(fd) => xattr::remove(Target::Fd(fd), &stored),
            UpperPlace::At { fd, name, .. } => with_name(fd, name, |t| xattr::remove(t, &stored)),
        })?;
        node.mode.store(MODE_UNKNOWN, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    /// Translates the ids in an ACL (linux/posix_acl_xattr.h: a version, then tag, perm, id of 8 bytes each).
    fn map_acl(&self, mut acl: Vec<u8>, map: impl Fn(&IdMap, u32) -> u32) -> Result<Vec<u8>, Errno> {
        const USER: u16 = 0x02;
        const GROUP: u16 = 0x08;
        let config = &self.layers.config;
        if config.uid_map.0.is_empty() && config.gid_map.0.is_empty() {
            return Ok(acl);
        }
        let entries = acl.get_mut(4..).ok_or(Errno::INVAL)?;
        for entry in entries.chunks_exact_mut(8) {
            let (head, id) = entry.split_at_mut(4);
            let tag = u16::from_le_bytes([head[0], head[1]]);
            let ids = match tag {
                USER => &config.uid_map,
                GROUP => &config.gid_map,
                _ => continue,
            };
            let old = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
            id.copy_from_slice(&map(ids, old).to_le_bytes());
        }
        Ok(acl)
    }
}

/// As `in_group_or_capable` of the kernel: the caller is in the group, or has CAP_FSETID. A process that is gone, or
/// that our /proc does not show, is taken for one without further groups, and for capable if it is root.
pub(super) fn in_group_or_capable(caller: &Caller, gid: u32) -> bool {
    if caller.gid == gid {
        return true;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).unwrap_or_default();
    let in_group = status
        .lines()
        .find_map(|l| l.strip_prefix("Groups:"))
        .is_some_and(|groups| groups.split_whitespace().any(|g| g.parse() == Ok(gid)));
    let capable = match creds::effective_capabilities(&status) {
        Some(caps) => caps & (1 << CAP_FSETID) != 0,
        None => caller.uid == 0,
    };
    in_group || capable
}

/// Xattrs with the errors that callers of getxattr(2) see: unlike [`XattrSource`], which reads marks, for which
/// "none" and "not supported" are one.
pub(crate) trait XattrValues {
    /// The value.
    fn value(&self, name: &std::ffi::CStr) -> Result<Vec<u8>, Errno>;
    /// ENODATA when there is none.
    fn has(&self, name: &std::ffi::CStr) -> Result<(), Errno>;
    /// All names.
    fn names(&self) -> Result<Vec<Vec<u8>>, Errno>;
}

impl XattrValues for Target<'_> {
    fn value(&self, name: &std::ffi::CStr) -> Result<Vec<u8>, Errno> {
        match xattr::get_vec(*self, name)? {
            Some(value) => Ok(value),
            // Which of the two it is, the call itself says.
            None => xattr::get(*self, name, &mut []).map(|_| Vec::new()),
        }
    }

    fn has(&self, name: &std::ffi::CStr) -> Result<(), Errno> {
        xattr::get(*self, name, &mut []).map(|_| ())
    }

    fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        xattr::list_vec(*self)
    }
}

impl XattrValues for crate::index::Entry<'_> {
    fn value(&self, name: &std::ffi::CStr) -> Result<Vec<u8>, Errno> {
        self.xattr(name.to_bytes()).map_err(|e| e.errno())?.map(<[u8]>::to_vec).ok_or(Errno::NODATA)
    }

    fn has(&self, name: &std::ffi::CStr) -> Result<(), Errno> {
        self.value(name).map(|_| ())
    }

    fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        XattrSource::names(self)
    }
}

impl crate::layer::Layers {
    /// As [`Self::with_xattrs`], with the errors of getxattr(2).
    pub(crate) fn with_xattr_values<T>(
        &self,
        dir: &Arc<crate::layer::dir::LayerDir>,
        name: &[u8],
        read: impl Fn(&dyn XattrValues) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if let Some(answer) = self.indexed(dir, name, |entry| read(entry)) {
            return answer?;
        }
        let name = c_name(name)?;
        read(&Target::Name(dir.fd(&self.context)?.as_fd(), &name))
    }
}
