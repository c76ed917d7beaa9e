//! Attributes: reading them through the union, and changing them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use super::copy_up::Need;
use super::{Caller, Overlay, UpperPlace};
use crate::attr::{Attr, Kind, Time};
use crate::error::{Errno, OpResult};
use crate::layer::dir::{LayerDir, UPPER, stat_fd};
use crate::marks::{OVERRIDE_STAT, OverrideStat};
use crate::node::{Node, Parts};
use crate::sys::xattr::{self, Target};

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The moment the filesystem gets to it.
    Now,
    /// This one.
    At(Time),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner, as shown.
    pub uid: Option<u32>,
    /// Group, as shown.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
}

impl Overlay {
    /// Attributes as shown through the mount.
    ///
    /// # Errors
    /// What stat(2) lists.
    pub fn getattr(&self, node: &Arc<Node>) -> OpResult<Attr> {
        let attr = self.stat_node(node)?;
        self.show(node, attr)
    }

    /// Attributes as on disk (override applied), with the blocks of a metadata-only copy's data.
    pub(super) fn stat_node(&self, node: &Arc<Node>) -> OpResult<Attr> {
        if let Some(state) = node.dir() {
            let mut attr = self.stat_dir(&node.parts())?;
            if let Some((disk, shown)) = *state.ctime.lock()
                && attr.ctime == disk
            {
                attr.ctime = shown;
            }
            if node.place.read().parent.is_none() && !Arc::ptr_eq(node, &self.root) {
                attr.nlink = 0;
            }
            return Ok(attr);
        }
        let (has_upper, metacopy, lower) = {
            let place = node.place.read();
            let upper = place.upper.as_ref();
            (upper.is_some(), upper.is_some_and(|u| u.metacopy), place.lower.clone())
        };
        if has_upper {
            let mut attr = self.with_upper(node, |place| match place {
                UpperPlace::Held(fd) => self.layers.stat_open(self.held_may_override(node), fd),
                UpperPlace::At { dir, name, ino, .. } => {
                    let attr = self.layers.stat(dir, name)?;
                    if attr.ino == ino { Ok(attr) } else { Err(Errno::STALE) }
                }
            })?;
            if let (true, Some(data)) = (metacopy, lower) {
                attr.blocks = self.layers.stat_raw(&data.dir, &data.name)?.blocks;
            }
            return Ok(attr);
        }
        let lower = lower.ok_or(Errno::STALE)?;
        match self.layers.stat(&lower.dir, &lower.name) {
            Ok(mut attr) => {
                if attr.kind() == Kind::File && attr.size > 0 && lower.dir.is_impure() {
                    let parts = node.place.read().parent.clone().map(|p| p.parts()).unwrap_or_default();
                    if let Some(data) = self.metacopy_data(&lower.dir, &lower.name, &parts)? {
                        attr.blocks = self.layers.stat_raw(&data.dir, &data.name)?.blocks;
                    }
                }
                Ok(attr)
            }
            // Copied up since the place was read.
            Err(_) if node.place.read().upper.is_some() => self.stat_node(node),
            Err(e) => Err(e.into()),
        }
    }

    /// A held object's descriptor does not tell its directory; in doubt its xattrs are asked.
    fn held_may_override(&self, node: &Node) -> bool {
        self.layers.overrides(UPPER) || node.kind == Kind::Char
    }

    fn stat_dir(&self, parts: &Parts) -> OpResult<Attr> {
        let top = parts.upper.as_ref().or(parts.lowers.first()).ok_or(Errno::STALE)?;
        let mut attr = self.stat_layer_dir(top)?;
        if !parts.lowers.is_empty() && parts.upper.is_some() || parts.lowers.len() > 1 {
            // What several layers' subdirectories add up to is not known without reading them all; 1 tells
            // programs that the number says nothing (as the kernel's overlayfs and btrfs do).
            attr.nlink = 1;
        }
        Ok(attr)
    }

    /// Attributes of one layer's directory.
    pub(super) fn stat_layer_dir(&self, dir: &Arc<LayerDir>) -> OpResult<Attr> {
        if let (Some(index), Some(id)) = (self.layers.immutable_index(dir.layer), dir.index)
            && let Ok(attr) = self.layers.indexed_dir(index, id, dir)
        {
            return Ok(attr);
        }
        let fd = self.fd(dir)?;
        Ok(self.layers.stat_open(self.layers.overrides(dir.layer), fd.as_fd())?)
    }

    /// Dresses attributes from disk for the mount: number, owner, links.
    pub(super) fn show(&self, node: &Node, mut attr: Attr) -> OpResult<Attr> {
        let config = &self.layers.config;
        attr.ino = node.ino;
        node.mode.store(attr.mode, Ordering::Relaxed);
        attr.uid = config.squash.uid.unwrap_or_else(|| config.uid_map.to_shown(attr.uid));
        attr.gid = config.squash.gid.unwrap_or_else(|| config.gid_map.to_shown(attr.gid));
        if node.kind == Kind::Dir {
            if config.static_nlink {
                attr.nlink = 1;
            }
        } else {
            // An object without any name on disk has none.
            if attr.nlink > 0 {
                attr.nlink = attr.nlink.saturating_add_signed(node.link_bias.load(Ordering::Relaxed));
            }
        }
        Ok(attr)
    }

    /// Changes attributes; a lower object is copied up first, without its data where that will do.
    ///
    /// # Errors
    /// EROFS, EINVAL for an owner that no mapping leads to, and what chmod(2), chown(2), truncate(2), utimensat(2)
    /// list. Permission is the kernel's to check, before.
    pub fn setattr(&self, node: &Arc<Node>, set: &SetAttr, caller: &Caller) -> OpResult<Attr> {
        self.upper()?;
        if set.size.is_some() {
            if node.kind == Kind::Dir {
                return Err(Errno::ISDIR.into());
            }
            if node.kind != Kind::File {
                return Err(Errno::INVAL.into());
            }
        }
        let need = match set.size {
            None => Need::Attributes,
            Some(size) => Need::DataUpTo(size),
        };
        self.copy_up(node, need)?;
        let _changing = node.change.lock();
        if let Some(size) = set.size {
            self.truncate(node, size, caller)?;
        }
        if *set == SetAttr::default() && node.kind != Kind::Dir {
            self.clear_privileges(node, caller)?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            self.change_owner(node, set)?;
        }
        if let Some(mode) = set.mode {
            self.change_mode(node, mode & 0o7777)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            self.change_times(node, set)?;
        }
        if set.size.is_some() || set.mtime.is_some() {
            *node.kernel_mtime.lock() = None;
        }
        drop(_changing);
        self.getattr(node)
    }

    /// A request without anything in it is a chown(2) to nobody, which clears set-id bits and file capabilities, or
    /// comes before a write that clears the capabilities alone. The flags that would tell them apart do not reach us, but
    /// before that write the kernel has removed the xattr itself.
    fn clear_privileges(&self, node: &Arc<Node>, caller: &Caller) -> OpResult<()> {
        if node.capability_removed.swap(false, Ordering::Relaxed) && may_keep_set_id(caller) {
            return Ok(());
        }
        self.change_owner(node, &SetAttr::default())
    }

    fn truncate(&self, node: &Arc<Node>, size: u64, caller: &Caller) -> OpResult<()> {
        // As root the kernel leaves set-id bits on our truncate; for a caller without CAP_FSETID they must go.
        if node.may_have_set_id() && !may_keep_set_id(caller) {
            self.clear_set_id(node, caller)?;
        }
        let file = self.file_for(node, true)?;
        // A time of change that goes with this comes with the same request.
        let kept =
            self.kernel_keeps_mtime.load(Ordering::Relaxed).then(|| stat_fd(file.fd.as_fd())).transpose()?;
        rustix::fs::ftruncate(file.fd.as_fd(), size)?;
        if let Some(before) = kept {
            set_mtime(file.fd.as_fd(), before.mtime)?;
        }
        Ok(())
    }

    /// Runs `act` on a node that is in the upper: a directory by its descriptor, others by name.
    pub(super) fn on_upper<T>(
        &self,
        node: &Arc<Node>,
        act: impl Fn(UpperPlace<'_>) -> Result<T, Errno>,
    ) -> OpResult<T> {
        if node.kind == Kind::Dir {
            let dir = self.upper_dir(node)?;
            let fd = self.fd(&dir)?;
            return Ok(act(UpperPlace::Held(fd.as_fd()))?);
        }
        self.with_upper(node, act)
    }

    fn change_owner(&self, node: &Arc<Node>, set: &SetAttr) -> OpResult<()> {
        let config = &self.layers.config;
        let uid = set.uid.map(|u| config.uid_map.to_disk(u).ok_or(Errno::INVAL)).transpose()?;
        let gid = set.gid.map(|g| config.gid_map.to_disk(g).ok_or(Errno::INVAL)).transpose()?;
        if let Some(mut stored) = self.override_of(node)? {
            stored.uid = uid.unwrap_or(stored.uid);
            stored.gid = gid.unwrap_or(stored.gid);
            if node.kind != Kind::Dir {
                // chown(2) clears them for everybody; the kernel would on a stored owner.
                let group_exec = stored.mode & 0o010 != 0;
                stored.mode &= if group_exec { !0o6000 } else { !0o4000 };
            }
            return self.set_override(node, stored);
        }
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        self.on_upper(node, |place| match place {
            UpperPlace::Held(fd) => by_descriptor(fd, |path| {
                rustix::fs::chownat(rustix::fs::CWD, path, uid, gid, AtFlags::empty())
            }),
            UpperPlace::At { fd, name, .. } => {
                rustix::fs::chownat(fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
        })?;
        node.mode.store(crate::node::MODE_UNKNOWN, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn change_mode(&self, node: &Arc<Node>, mode: u32) -> OpResult<()> {
        if let Some(mut stored) = self.override_of(node)? {
            stored.mode = mode;
            return self.set_override(node, stored);
        }
        if node.kind == Kind::Symlink {
            return Err(Errno::OPNOTSUPP.into());
        }
        let new = Mode::from_raw_mode(mode);
        self.on_upper(node, |place| match place {
            UpperPlace::Held(fd) => {
                by_descriptor(fd, |path| rustix::fs::chmodat(rustix::fs::CWD, path, new, AtFlags::empty()))
            }
            // Not a symlink, and nobody but this process changes the upper: the name is what it was.
            UpperPlace::At { fd, name, .. } => rustix::fs::chmodat(fd, name, new, AtFlags::empty()),
        })?;
        node.mode.store(mode | node.kind.mode_bits(), Ordering::Relaxed);
        Ok(())
    }

    fn change_times(&self, node: &Arc<Node>, set: &SetAttr) -> OpResult<()> {
        let spec = |time: Option<SetTime>| match time {
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            Some(SetTime::At(t)) => Timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() },
        };
        let times = Timestamps { last_access: spec(set.atime), last_modification: spec(set.mtime) };
        self.on_upper(node, |place| match place {
            UpperPlace::Held(fd) => by_descriptor(fd, |path| {
                rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::empty())
            }),
            UpperPlace::At { fd, name, .. } => {
                rustix::fs::utimensat(fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
        })
    }

    /// Clears the set-id bits that a write by an ordinary user clears (`setattr_should_drop_suidgid` of the
    /// kernel): the set-group-id bit with group execute always, without it for those outside the group. The
    /// change lock is held.
    pub(super) fn clear_set_id(&self, node: &Arc<Node>, caller: &Caller) -> OpResult<()> {
        let attr = self.stat_node(node)?;
        let mut mode = attr.mode & 0o7777;
        mode &= !libc::S_ISUID;
        if mode & libc::S_ISGID != 0 {
            let outside = || {
                let gid = self.layers.config.gid_map.to_shown(attr.gid);
                !super::xattr::in_group_or_capable(caller, gid)
            };
            if mode & libc::S_IXGRP != 0 || outside() {
                mode &= !libc::S_ISGID;
            }
        }
        if mode != attr.mode & 0o7777 {
            self.change_mode(node, mode)?;
        } else {
            node.mode.store(attr.mode, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The override of an upper object, where its attributes are kept so.
    fn override_of(&self, node: &Arc<Node>) -> OpResult<Option<OverrideStat>> {
        let stored_so = self.layers.overrides(UPPER);
        // Without the option only a device 0:0 is kept so.
        if !stored_so && node.kind != Kind::Char {
            return Ok(None);
        }
        let read = |place: UpperPlace<'_>| match place {
            UpperPlace::Held(fd) => crate::layer::mark_io::override_stat(&Target::Fd(fd)),
            UpperPlace::At { fd, name, .. } => {
                crate::layer::mark_io::with_name(fd, name, |t| crate::layer::mark_io::override_stat(&t))
            }
        };
        let found = self.on_upper(node, read)?;
        if found.is_some() || !stored_so {
            return Ok(found);
        }
        // An upper object from before the option was used: what the disk says is what it is.
        let attr = self.on_upper(node, |place| match place {
            UpperPlace::Held(fd) => stat_fd(fd),
            UpperPlace::At { fd, name, .. } => crate::layer::dir::stat_at(fd, name),
        })?;
        if !matches!(attr.kind(), Kind::File | Kind::Dir) {
            return Ok(None);
        }
        Ok(Some(OverrideStat {
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode & 0o7777,
            file_type: Some(attr.kind().mode_bits()),
            rdev: (0, 0),
        }))
    }

    fn set_override(&self, node: &Arc<Node>, stored: OverrideStat) -> OpResult<()> {
        let value = stored.to_bytes();
        self.on_upper(node, |place| match place {
            UpperPlace::Held(fd) => xattr::set(Target::Fd(fd), OVERRIDE_STAT[0], &value, 0),
            UpperPlace::At { fd, name, .. } => {
                crate::layer::mark_io::with_name(fd, name, |t| xattr::set(t, OVERRIDE_STAT[0], &value, 0))
            }
        })?;
        node.mode.store(stored.mode | node.kind.mode_bits(), Ordering::Relaxed);
        Ok(())
    }

    /// Makes changes of an object durable.
    ///
    /// # Errors
    /// What fsync(2) lists.
    pub fn fsync(&self, node: &Arc<Node>, data_only: bool) -> OpResult<()> {
        if self.layers.config.volatile || self.layers.upper.is_none() {
            return Ok(());
        }
        if node.kind == Kind::Dir {
            let Some(dir) = node.parts().upper.clone() else { return Ok(()) };
            let fd = self.fd(&dir)?;
            return Ok(rustix::fs::fsync(fd.as_fd())?);
        }
        if node.kind != Kind::File {
            return Ok(());
        }
        if node.place.read().upper.is_none() {
            return Ok(());
        }
        // Any descriptor of the file will do: fsync is of the file, not of what was written through it. A
        // metadata-only copy has nothing else to sync than its upper inode.
        let fd = match self.open_upper(node, OFlags::RDONLY) {
            Ok(fd) => fd,
            // Not readable by its owner, which counts for a mounter without capabilities.
            Err(_) => self.open_upper(node, OFlags::WRONLY)?,
        };
        let sync = if data_only { rustix::fs::fdatasync(&fd) } else { rustix::fs::fsync(&fd) };
        Ok(sync?)
    }

    /// Makes everything written to the upper durable.
    ///
    /// # Errors
    /// What syncfs(2) lists.
    pub fn syncfs(&self) -> OpResult<()> {
        if self.layers.config.volatile {
            return Ok(());
        }
        match &self.layers.upper {
            Some(upper) => Ok(rustix::fs::syncfs(upper.work())?),
            None => Ok(()),
        }
    }
}

/// Sets the time of the last change of the content, and leaves that of access.
pub(super) fn set_mtime(fd: std::os::fd::BorrowedFd<'_>, time: Time) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    };
    rustix::fs::futimens(fd, &times)
}

/// The path of an open descriptor, for calls that do not take an O_PATH descriptor.
pub(super) fn proc_path(fd: impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn by_descriptor<T>(
    fd: std::os::fd::BorrowedFd<'_>,
    call: impl FnOnce(&str) -> Result<T, Errno>,
) -> Result<T, Errno> {
    call(&proc_path(fd))
}

/// True for callers whose writes leave set-id bits alone (CAP_FSETID, which in practice is root).
pub(super) fn may_keep_set_id(caller: &Caller) -> bool {
    caller.uid == 0
}
