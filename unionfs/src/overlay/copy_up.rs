//! Copy-up: a lower object made present in the upper.
//!
//! The copy is built in the work directory (without a name where the filesystem can), complete with owner, xattrs,
//! mode and times, in this order since writing and chown clear set-id bits and file capabilities; it becomes
//! visible by one link or rename. A crash at any moment leaves the old state or the new.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};

use super::Overlay;
use super::attr::proc_path;
use crate::attr::{Attr, Kind};
use crate::error::{Errno, OpError, OpResult, os_name};
use crate::layer::dir::{DirFlags, LayerDir, LayerNo, UPPER, open_beneath, stat_at, stat_fd};
use crate::layer::object::Object;
use crate::layer::upper::{Temp, Upper, link_open, tmpfile};
use crate::lower_state::{self, LowerState};
use crate::marks::{OVERRIDE_STAT, Opaque, OverrideStat};
use crate::node::{HeldFd, Hold, Node, Parts, UpperObject};
use crate::sys::copy::copy_data;
use crate::sys::write_back::write_back;
use crate::sys::xattr::{self, Target};

/// How much of an object must be in the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Its attributes; the data may stay below.
    Attributes,
    /// All of it.
    Data,
    /// Its first bytes; what is beyond them is cut off.
    DataUpTo(u64),
}

/// Bytes that are copied while the requests behind wait.
const SOON: u64 = 128 << 10;

/// A name and the directory it is in.
type NamePlace = (Arc<Node>, Arc<[u8]>);

/// A copy that has no place in the merged view yet.
enum Draft<'a> {
    /// An unnamed file.
    Unnamed(OwnedFd),
    /// A name in `work`; files come with their descriptor.
    Named(Temp<'a>, Option<OwnedFd>),
}

impl Draft<'_> {
    fn target(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Unnamed(fd) | Self::Named(_, Some(fd)) => Some(fd.as_fd()),
            Self::Named(_, None) => None,
        }
    }
}

/// Bytes above which a metadata-only copy is cut before it is complete: copying all of it would take too long.
const CUT_IN_PLACE: u64 = 1 << 20;

impl Overlay {
    /// True when satisfying a write or an attribute change of this node may take long: data must be copied, or
    /// somebody is at it. Asks the layer for no more than a size.
    pub fn copy_up_may_block(&self, node: &Node, needs_data: bool) -> bool {
        if node.kind != Kind::File || self.layers.upper.is_none() {
            return false;
        }
        let place = node.place.read();
        let copies = (needs_data || !self.layers.config.metacopy) && place.lacks_upper_data();
        let data = if copies { place.lower.clone() } else { None };
        drop(place);
        node.change.is_locked() || copies && !data.is_some_and(|data| self.is_soon_copied(&data))
    }

    /// A copy that takes less than handing it to another thread: little data, and no commit to wait for.
    fn is_soon_copied(&self, data: &Object) -> bool {
        let waits =
            !self.layers.config.volatile && !self.layers.upper.as_ref().is_some_and(|u| u.can.ordered);
        !waits && self.layers.stat_raw(&data.dir, &data.name).is_ok_and(|attr| attr.size <= SOON)
    }

    /// Makes a node present in the upper as far as needed, its parents first.
    ///
    /// # Errors
    /// EROFS without an upper; ENOSPC, EDQUOT, EIO and whatever else the copy fails with. The lower object and
    /// the view of it are untouched then.
    pub(crate) fn copy_up(&self, node: &Arc<Node>, need: Need) -> OpResult<()> {
        if self.is_up(node, need) {
            return Ok(());
        }
        self.upper()?;
        // Parents from the nearest that is in the upper down, so that depth costs no stack.
        let mut missing = Vec::new();
        let mut above = node.place.read().parent.clone();
        while let Some(dir) = above {
            if dir.parts().upper.is_some() {
                break;
            }
            above = dir.place.read().parent.clone();
            missing.push(dir);
        }
        for dir in missing.into_iter().rev() {
            self.copy_up_one(&dir, Need::Attributes)?;
        }
        self.copy_up_one(node, need)
    }

    fn is_up(&self, node: &Node, need: Need) -> bool {
        if node.kind == Kind::Dir {
            return node.parts().upper.is_some();
        }
        let place = node.place.read();
        match need {
            Need::Attributes => place.upper.is_some(),
            Need::Data | Need::DataUpTo(_) => !place.lacks_upper_data(),
        }
    }

    fn copy_up_one(&self, node: &Arc<Node>, need: Need) -> OpResult<()> {
        let siblings = if node.kind == Kind::Dir { Vec::new() } else { self.other_names(node)? };
        if let Some((dir, name)) = siblings.first() {
            // The name by which it was known was removed, but it has others: the copy takes one of those.
            let mut place = node.place.write();
            if place.parent.is_none() && place.upper.is_none() {
                place.parent = Some(dir.clone());
                place.name = name.clone();
            }
        }
        loop {
            let _changing = node.change.lock();
            if self.is_up(node, need) {
                return Ok(());
            }
            let (parent, name) = {
                let place = node.place.read();
                (place.parent.clone(), place.name.clone())
            };
            if let Some(parent) = &parent
                && parent.parts().upper.is_none()
            {
                // Renamed to a directory that was not copied up? Renaming copies both up; so it was removed
                // and its parent with it, or never copied: do the parent now, without this lock.
                drop(_changing);
                let parent = parent.clone();
                self.copy_up(&parent, Need::Attributes)?;
                continue;
            }
            let fail = |step: &'static str| {
                let name = name.clone();
                move |source: Errno| OpError::CopyUp { name: os_name(&name), step, source }
            };
            return match node.kind {
                Kind::Dir => self.copy_up_dir(node, parent.as_ref(), &name),
                _ if node.place.read().upper.is_some() => {
                    self.complete_data(node, need).map_err(|e| match e {
                        OpError::Errno(source) => fail("copy the data")(source),
                        other => other,
                    })
                }
                _ => self.copy_up_other(node, parent.as_ref(), &name, need, &siblings),
            };
        }
    }

    fn copy_up_dir(&self, node: &Arc<Node>, parent: Option<&Arc<Node>>, name: &Arc<[u8]>) -> OpResult<()> {
        let upper = self.upper()?;
        let fail = |step: &'static str| move |source| OpError::CopyUp { name: os_name(name), step, source };
        let parts = node.parts();
        let top = parts.lowers.first().ok_or(Errno::STALE)?;
        let attr = self.stat_layer_dir(top)?;
        let mut temp = upper.temp();
        self.no_umask();
        rustix::fs::mkdirat(upper.work(), &temp.name, Mode::RWXU).map_err(fail("make the directory"))?;
        temp.set_dir();
        let fd = open_beneath(upper.work(), temp.bytes(), OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(fail("open the directory"))?;
        self.copy_xattrs_of_dir(top, fd.as_fd()).map_err(fail("copy xattrs"))?;
        if self.layers.config.record_lower {
            let state = self.state_of_dir(top, name).map_err(fail("look at the directory"))?;
            lower_state::write(self.layers.names.prefix, Target::Fd(fd.as_fd()), state);
        }
        self.set_owner_mode(fd.as_fd(), &attr).map_err(fail("set owner and mode"))?;
        let real = stat_fd(&fd).map_err(fail("stat the copy"))?;
        set_times(fd.as_fd(), &attr).map_err(fail("set times"))?;
        let fds = &self.layers.context.fds;
        let place = (real.dev, real.ino);
        let child = match parent {
            Some(parent) => {
                let parent_dir = self.upper_dir(parent)?;
                let parent_fd = self.fd(&parent_dir)?;
                let _disk = parent.dir().map(|d| d.disk.lock());
                let keep = stat_fd(parent_fd.as_fd()).map_err(fail("stat the parent"))?;
                self.mark_impure(&parent_dir).map_err(fail("mark the parent"))?;
                rename_new(upper.work(), temp.bytes(), parent_fd.as_fd(), name).map_err(fail("publish"))?;
                temp.published();
                hide_change(parent, parent_fd.as_fd(), &keep);
                if let (Some(state), Ok(now)) = (node.dir(), stat_fd(&fd)) {
                    *state.ctime.lock() = Some((now.ctime, attr.ctime));
                }
                LayerDir::child(
                    &parent_dir,
                    name.clone(),
                    None,
                    place,
                    Opaque::No,
                    DirFlags::default(),
                    Some(fd),
                    fds,
                )
            }
            // Removed while somebody is in it: the copy is as nameless as the directory.
            None => {
                drop(temp);
                LayerDir::root(UPPER, None, &real, Opaque::No, DirFlags::default(), fds.count(fd))
            }
        };
        if let Some(state) = node.dir() {
            state.names.write().generation += 1;
            *state.parts.write() = Arc::new(Parts { upper: Some(child), lowers: parts.lowers.clone() });
        }
        if let Some(parent) = parent {
            self.update_entry(parent, name, |e| e.upper.object = true);
        }
        Ok(())
    }

    fn copy_up_other(
        &self,
        node: &Arc<Node>,
        parent: Option<&Arc<Node>>,
        name: &Arc<[u8]>,
        need: Need,
        siblings: &[NamePlace],
    ) -> OpResult<()> {
        let upper = self.upper()?;
        let fail = |step: &'static str| move |source| OpError::CopyUp { name: os_name(name), step, source };
        let lower = node.place.read().lower.clone().ok_or(Errno::STALE)?;
        let attr = self.layers.stat(&lower.dir, &lower.name)?;
        let data = self.data_of(node, &lower, &attr)?;
        // Before anything is copied: what changes meanwhile is a later state.
        let state = match self.layers.config.record_lower {
            true => Some(self.state_of(&lower).map_err(fail("look at the object"))?),
            false => None,
        };
        // More names than one: the data is found by its path, if that leads there.
        let by_path = attr.nlink > 1;
        let metacopy = need == Need::Attributes
            && attr.kind() == Kind::File
            && attr.size > 0
            && self.layers.config.metacopy
            && upper.can.xattrs
            && (!by_path || self.path_leads_to(&data)?);
        let draft =
            self.draft(upper, &lower, &data, &attr, need, metacopy).map_err(|(step, e)| fail(step)(e))?;
        let has_origin =
            self.dress(upper, &draft, &lower, &attr, node.ino).map_err(|(step, e)| fail(step)(e))?;
        if let Some(state) = state {
            let target = match &draft {
                Draft::Named(temp, None) => Target::Name(upper.work(), &temp.name),
                Draft::Unnamed(fd) | Draft::Named(_, Some(fd)) => Target::Fd(fd.as_fd()),
            };
            lower_state::write(self.layers.names.prefix, target, state);
        }
        if metacopy {
            self.mark_metacopy(&draft, by_path.then_some(&data))
                .map_err(fail("mark the metadata-only copy"))?;
        }
        // The mode after the marks: a mounter without capabilities cannot mark what it may not write.
        if let Some(fd) =
            draft.target().filter(|_| !self.is_stored_as_file(&attr) || self.layers.overrides(UPPER))
        {
            self.set_mode(fd, &attr).map_err(fail("set the mode"))?;
        }
        if !metacopy
            && attr.kind() == Kind::File
            && attr.size > 0
            && let Some(fd) = draft.target()
        {
            self.settle_data(upper, fd).map_err(fail("sync the data"))?;
        }
        self.finish_times(&draft, upper, &attr).map_err(fail("set times"))?;
        let real = match (&draft, draft.target()) {
            (_, Some(fd)) => stat_fd(fd),
            (Draft::Named(temp, _), None) => stat_at(upper.work(), temp.bytes()),
            (Draft::Unnamed(fd), None) => stat_fd(fd),
        }
        .map_err(fail("stat the copy"))?;
        let mut held = None;
        self.publishing.insert(real.ino, node.ino);
        let _published = Published { overlay: self, real: real.ino };
        match parent {
            Some(parent) => {
                let dir = self.upper_dir(parent)?;
                let fd = self.fd(&dir)?;
                let _disk = parent.dir().map(|d| d.disk.lock());
                let keep = stat_fd(fd.as_fd()).map_err(fail("stat the parent"))?;
                self.mark_impure(&dir).map_err(fail("mark the parent"))?;
                match draft {
                    Draft::Unnamed(file) => {
                        link_open(file.as_fd(), fd.as_fd(), name).map_err(fail("publish"))?
                    }
                    Draft::Named(temp, _) => {
                        rename_new(upper.work(), temp.bytes(), fd.as_fd(), name).map_err(fail("publish"))?;
                        temp.published();
                    }
                }
                hide_change(parent, fd.as_fd(), &keep);
            }
            // Removed while open: the copy is seen by those who have it open, and by no name.
            None => {
                let fd = match draft {
                    Draft::Unnamed(file) | Draft::Named(_, Some(file)) => file,
                    Draft::Named(temp, None) => open_beneath(upper.work(), temp.bytes(), OFlags::PATH)
                        .map_err(fail("keep the copy"))?,
                };
                held = Some(HeldFd::new(Hold::Own(fd), &self.held));
            }
        }
        if !has_origin {
            self.unmarked_origins.insert(real.ino, node.ino);
        }
        {
            let mut place = node.place.write();
            place.upper = Some(Box::new(UpperObject { ino: real.ino, metacopy, has_origin, held }));
            place.lower = metacopy.then_some(data);
        }
        if !metacopy {
            node.forget_file();
        }
        if let Some(parent) = parent {
            self.update_entry(parent, name, |e| e.upper.object = true);
            let made = self.link_siblings(node, parent, name, siblings);
            let difference = i64::from(attr.nlink) - i64::from(made) - 1;
            self.lost_links.remove(&node.ino);
            node.link_bias.fetch_add(i32::try_from(difference).unwrap_or(0), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The object with the data: the lower itself, or what it is a metadata-only copy of.
    fn data_of(&self, node: &Node, lower: &Object, attr: &Attr) -> OpResult<Object> {
        if attr.kind() == Kind::File
            && attr.size > 0
            && (lower.dir.is_impure() || attr.blocks * 512 < attr.size)
        {
            let parts = node.place.read().parent.clone().map(|p| p.parts()).unwrap_or_default();
            if let Some(data) = self.metacopy_data(&lower.dir, &lower.name, &parts)? {
                return Ok(data);
            }
        }
        Ok(lower.clone())
    }

    /// Makes the object itself, with the data it needs.
    fn draft<'a>(
        &self,
        upper: &'a Upper,
        lower: &Object,
        data: &Object,
        attr: &Attr,
        need: Need,
        metacopy: bool,
    ) -> Result<Draft<'a>, (&'static str, Errno)> {
        let at = |step: &'static str| move |e: Errno| (step, e);
        let as_file = self.is_stored_as_file(attr);
        if attr.kind() == Kind::File || as_file {
            let draft = if upper.can.tmpfile {
                Draft::Unnamed(tmpfile(upper.work()).map_err(at("make a file"))?)
            } else {
                let temp = upper.temp();
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let fd = rustix::fs::openat(upper.work(), &temp.name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(at("make a file"))?;
                Draft::Named(temp, Some(fd))
            };
            let Some(fd) = draft.target() else { return Ok(draft) };
            if attr.kind() == Kind::Symlink {
                let target = self.layers.readlink(&lower.dir, &lower.name).map_err(at("read the link"))?;
                write_all(fd, &target).map_err(at("write the link"))?;
            } else if metacopy {
                rustix::fs::ftruncate(fd, attr.size).map_err(at("set the size"))?;
            } else if attr.kind() == Kind::File {
                let length = match need {
                    Need::DataUpTo(size) => size.min(attr.size),
                    _ => attr.size,
                };
                let source = self
                    .layers
                    .open_file(&data.dir, &data.name, OFlags::RDONLY)
                    .map_err(at("open the data"))?;
                copy_data(source.as_fd(), fd, length, length == attr.size).map_err(at("copy the data"))?;
            }
            return Ok(draft);
        }
        let temp = upper.temp();
        if attr.kind() == Kind::Symlink {
            let target = self.layers.readlink(&lower.dir, &lower.name).map_err(at("read the link"))?;
            rustix::fs::symlinkat(target.as_slice(), upper.work(), &temp.name)
                .map_err(at("make the link"))?;
        } else {
            let rdev = rustix::fs::makedev(attr.rdev.0, attr.rdev.1);
            let file_type = FileType::from_raw_mode(attr.mode);
            rustix::fs::mknodat(upper.work(), &temp.name, file_type, Mode::RUSR | Mode::WUSR, rdev)
                .map_err(at("make the special file"))?;
        }
        Ok(Draft::Named(temp, None))
    }

    /// True for objects that the upper keeps as a regular file whose override names the type: those that its
    /// filesystem would show as something else (a device 0:0 is a whiteout), or all with `xattr_permissions`.
    pub(super) fn is_stored_as_file(&self, attr: &Attr) -> bool {
        attr.is_whiteout_device()
            || self.layers.overrides(UPPER) && !matches!(attr.kind(), Kind::File | Kind::Dir)
    }

    /// Xattrs, owner, mode and our mark of the number. Returns whether the number could be marked.
    fn dress(
        &self,
        upper: &Upper,
        draft: &Draft<'_>,
        lower: &Object,
        attr: &Attr,
        number: u64,
    ) -> Result<bool, (&'static str, Errno)> {
        let at = |step: &'static str| move |e: Errno| (step, e);
        if let Some(fd) = draft.target() {
            if self.is_stored_as_file(attr) && !self.layers.overrides(UPPER) {
                self.set_stored(Target::Fd(fd), attr).map_err(at("set the override"))?;
            } else {
                self.set_owner(fd, attr).map_err(at("set the owner"))?;
                self.copy_xattrs(lower, Target::Fd(fd)).map_err(at("copy xattrs"))?;
            }
            return Ok(self.mark_number(upper, Target::Fd(fd), number));
        }
        let Draft::Named(temp, _) = draft else { return Ok(false) };
        let (uid, gid) = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
        rustix::fs::chownat(upper.work(), &temp.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the owner"))?;
        let target = Target::Name(upper.work(), &temp.name);
        self.copy_xattrs(lower, target).map_err(at("copy xattrs"))?;
        if attr.kind() != Kind::Symlink {
            let mode = Mode::from_raw_mode(attr.mode & 0o7777);
            rustix::fs::chmodat(upper.work(), &temp.name, mode, AtFlags::empty())
                .map_err(at("set the mode"))?;
        }
        Ok(self.mark_number(upper, target, number))
    }

    fn mark_number(&self, upper: &Upper, target: Target<'_>, number: u64) -> bool {
        // Where it cannot be written (symlinks and devices have no user xattrs) the number holds for this mount.
        upper.can.xattrs && xattr::set(target, &self.layers.names.ino, &number.to_le_bytes(), 0).is_ok()
    }

    /// An object of a lower as the disk has it now, whatever an index says.
    fn state_of(&self, lower: &Object) -> Result<LowerState, Errno> {
        let dir = self.fd(&lower.dir)?;
        let stat = lower_state::look(dir.as_fd(), Some(&lower.name))?;
        Ok(LowerState::of(&stat, Some((lower.dir.ino, &lower.name))))
    }

    fn state_of_dir(&self, dir: &Arc<LayerDir>, name: &[u8]) -> Result<LowerState, Errno> {
        let fd = self.fd(dir)?;
        let parent = rustix::fs::openat(&fd, c"..", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let place = (stat_fd(&parent)?.ino, name);
        Ok(LowerState::of(&lower_state::look(fd.as_fd(), None)?, Some(place)))
    }

    /// Marks the upper's root with what it is on, unless an earlier mount has.
    pub(crate) fn record_root(&self) -> Result<(), Errno> {
        let (Some(upper), Some(lower)) = (&self.layers.upper, self.layers.lowers.first()) else {
            return Ok(());
        };
        if !self.layers.config.record_lower {
            return Ok(());
        }
        let fd = self.fd(&upper.root)?;
        let prefix = self.layers.names.prefix;
        let name = crate::layer::mark_io::c_name(format!("{prefix}{}", lower_state::MARK).as_bytes())?;
        if xattr::get_vec(Target::Fd(fd.as_fd()), &name)?.is_none() {
            let below = self.fd(&lower.root)?;
            let state = LowerState::of(&lower_state::look(below.as_fd(), None)?, None);
            lower_state::write(prefix, Target::Fd(fd.as_fd()), state);
        }
        Ok(())
    }

    /// Makes a fresh directory look like another: owner, mode, xattrs, times.
    pub(super) fn dress_as(&self, model: &Arc<LayerDir>, fresh: BorrowedFd<'_>) -> OpResult<()> {
        let attr = self.stat_layer_dir(model)?;
        self.copy_xattrs_of_dir(model, fresh)?;
        self.set_owner_mode(fresh, &attr)?;
        Ok(set_times(fresh, &attr)?)
    }

    fn set_owner_mode(&self, fd: BorrowedFd<'_>, attr: &Attr) -> Result<(), Errno> {
        self.set_owner(fd, attr)?;
        self.set_mode(fd, attr)
    }

    fn set_owner(&self, fd: BorrowedFd<'_>, attr: &Attr) -> Result<(), Errno> {
        if self.layers.overrides(UPPER) {
            return Ok(());
        }
        if (attr.uid, attr.gid) == self.own {
            return Ok(());
        }
        rustix::fs::fchown(fd, Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)))
    }

    fn set_mode(&self, fd: BorrowedFd<'_>, attr: &Attr) -> Result<(), Errno> {
        if self.layers.overrides(UPPER) {
            return self.set_stored(Target::Fd(fd), attr);
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(attr.mode & 0o7777))
    }

    /// Writes owner, mode and type as an override.
    pub(super) fn set_stored(&self, target: Target<'_>, attr: &Attr) -> Result<(), Errno> {
        let stored = OverrideStat {
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode & 0o7777,
            file_type: Some(attr.kind().mode_bits()),
            rdev: attr.rdev,
        };
        xattr::set(target, OVERRIDE_STAT[0], &stored.to_bytes(), 0)
    }

    fn copy_xattrs(&self, lower: &Object, to: Target<'_>) -> Result<(), Errno> {
        self.layers.with_xattrs(&lower.dir, &lower.name, |from| self.copy_xattrs_from(from, to))
    }

    fn copy_xattrs_of_dir(&self, dir: &Arc<LayerDir>, to: BorrowedFd<'_>) -> Result<(), Errno> {
        if let (Some(index), Some(id)) = (self.layers.immutable_index(dir.layer), dir.index)
            && let Ok(entry) = index.entry(id)
        {
            return self.copy_xattrs_from(&entry, Target::Fd(to));
        }
        let fd = self.fd(dir)?;
        self.copy_xattrs_from(&Target::Fd(fd.as_fd()), Target::Fd(to))
    }

    fn copy_xattrs_from(
        &self,
        from: &dyn crate::layer::mark_io::XattrSource,
        to: Target<'_>,
    ) -> Result<(), Errno> {
        for name in from.names()? {
            if !self.layers.names.is_copied(&name) {
                continue;
            }
            let name = crate::layer::mark_io::c_name(&name)?;
            let Some(value) = from.get(&name)? else { continue };
            match xattr::set(to, &name, &value, 0) {
                Ok(()) => {}
                // A label of a security module belongs to the filesystem it is on, and user xattrs may be unknown
                // to the upper's; ACLs, capabilities and trusted xattrs must not get lost in silence.
                Err(Errno::OPNOTSUPP | Errno::PERM)
                    if name.to_bytes().starts_with(b"user.") || name.to_bytes() == b"security.selinux" => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn mark_metacopy(&self, draft: &Draft<'_>, by_path: Option<&Object>) -> Result<(), Errno> {
        let Some(fd) = draft.target() else { return Ok(()) };
        if let Some(data) = by_path {
            xattr::set(Target::Fd(fd), &self.layers.names.redirect, &absolute_path(data), 0)?;
        }
        xattr::set(Target::Fd(fd), &self.layers.names.metacopy, b"", 0)
    }

    fn finish_times(&self, draft: &Draft<'_>, upper: &Upper, attr: &Attr) -> Result<(), Errno> {
        match (draft, draft.target()) {
            (Draft::Named(temp, _), None) => {
                rustix::fs::utimensat(upper.work(), &temp.name, &times_of(attr), AtFlags::SYMLINK_NOFOLLOW)
            }
            (_, Some(fd)) => set_times(fd, attr),
            (Draft::Unnamed(_), None) => Ok(()),
        }
    }

    /// Notes on disk that entries of this directory may carry marks.
    pub(super) fn mark_impure(&self, dir: &LayerDirRef) -> Result<(), Errno> {
        let Some(upper) = &self.layers.upper else { return Err(Errno::ROFS) };
        if dir.is_impure() {
            return Ok(());
        }
        if upper.can.xattrs {
            let fd = self.fd(dir)?;
            xattr::set(Target::Fd(fd.as_fd()), &self.layers.names.impure, b"y", 0)?;
        }
        dir.set_impure();
        Ok(())
    }

    /// The data below is durable: what replaces it must be, too, before it does. Where the upper's journal keeps the
    /// order, writing the data is enough, and the commit that makes the copy visible makes it durable as a whole.
    fn settle_data(&self, upper: &Upper, file: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.layers.config.volatile {
            return Ok(());
        }
        if upper.can.ordered { write_back(file) } else { rustix::fs::fsync(file) }
    }

    /// Brings the data of a metadata-only copy up. The caller holds the change lock.
    pub(super) fn complete_data(&self, node: &Arc<Node>, need: Need) -> OpResult<()> {
        let (data, name, metacopy) = {
            let place = node.place.read();
            (place.lower.clone(), place.name.clone(), place.upper.as_ref().is_some_and(|u| u.metacopy))
        };
        let Some(data) = data else {
            return if metacopy { Err(OpError::NoData { name: os_name(&name) }) } else { Ok(()) };
        };
        let file = self.open_upper(node, OFlags::RDWR)?;
        let before = stat_fd(&file)?;
        let source = self.layers.open_file(&data.dir, &data.name, OFlags::RDONLY)?;
        let size = stat_fd(&source)?.size;
        // Cutting the file and taking its mark away are two steps. A crash between them leaves a mark on a file that has
        // another size than the data it leads to, of which kernel overlayfs reads more than the size says. What is not
        // large is therefore copied whole, and cut when it is complete.
        let length = match need {
            Need::DataUpTo(wanted) if size > CUT_IN_PLACE => wanted.min(size),
            _ => size,
        };
        // Writing clears file capabilities; this copy changes nothing that would.
        let capability = xattr::get_vec(Target::Fd(file.as_fd()), c"security.capability")?;
        let copied = copy_data(source.as_fd(), file.as_fd(), length, length == size);
        if copied.is_err() {
            // Back to a hole of the right size: the mark still says where the data is.
            let cleared = rustix::fs::ftruncate(&file, 0).and_then(|()| rustix::fs::ftruncate(&file, size));
            if let Err(e) = cleared {
                tracing::error!("take an incomplete copy of data back: {e}");
            }
        }
        if copied.is_ok() && length < size {
            // Before the mark goes: without it the rest would be a hole instead of nothing.
            rustix::fs::ftruncate(&file, length)?;
        }
        if let Some(value) = capability {
            xattr::set(Target::Fd(file.as_fd()), c"security.capability", &value, 0)?;
        }
        set_times(file.as_fd(), &before)?;
        copied?;
        if let Some(upper) = &self.layers.upper {
            self.settle_data(upper, file.as_fd())?;
        }
        for mark in [&self.layers.names.metacopy, &self.layers.names.redirect] {
            match xattr::remove(Target::Fd(file.as_fd()), mark) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(e) => return Err(e.into()),
            }
        }
        {
            let mut place = node.place.write();
            if let Some(upper) = &mut place.upper {
                upper.metacopy = false;
            }
            place.lower = None;
        }
        node.forget_file();
        Ok(())
    }

    /// Opens the upper file of a node anew.
    pub(super) fn open_upper(&self, node: &Node, flags: OFlags) -> OpResult<OwnedFd> {
        self.with_upper(node, |place| match place {
            super::UpperPlace::Held(fd) => {
                rustix::fs::open(proc_path(fd), flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            }
            super::UpperPlace::At { dir, name, ino, .. } => {
                let file = self.layers.open_file(dir, name, flags)?;
                if stat_fd(&file)?.ino == ino { Ok(file) } else { Err(Errno::STALE) }
            }
        })
    }

    /// The other visible names of a hard-linked lower object, with their directories copied up.
    fn other_names(&self, node: &Arc<Node>) -> OpResult<Vec<NamePlace>> {
        let place = node.place.read().clone();
        let (Some(lower), None) = (place.lower, place.upper) else { return Ok(Vec::new()) };
        let attr = self.layers.stat_raw(&lower.dir, &lower.name)?;
        if attr.nlink < 2 {
            return Ok(Vec::new());
        }
        let Some(layer) = self.layers.lower(lower.dir.layer) else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for path in self.layers.hard_links(layer, &lower.dir, &lower.name, &attr)? {
            if let Some((dir, name)) = self.find_lower_name(&path, &lower, &attr)?
                && !node.is_at(&dir, &name)
            {
                self.copy_up(&dir, Need::Attributes)?;
                names.push((dir, name));
            }
        }
        Ok(names)
    }

    /// The longest beginning of a layer's path that a redirect has brought to another place, and the rest; the root
    /// and all of it otherwise.
    fn nearest_redirected<'a>(&self, layer: LayerNo, path: &'a [u8]) -> (Arc<Node>, &'a [u8]) {
        if !self.redirected.is_empty() {
            let ends = path.iter().enumerate().rev().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
            for at in ends {
                let found = self.redirected.get(&(layer, path[..at].to_vec())).map(|n| n.clone());
                if let Some(node) = found.filter(|n| n.place.read().parent.is_some()) {
                    return (node, &path[at + 1..]);
                }
            }
        }
        (self.root.clone(), path)
    }

    /// Where a path of a lower layer shows in the merged view, if it is that object which shows there.
    fn find_lower_name(&self, path: &[u8], lower: &Object, attr: &Attr) -> OpResult<Option<NamePlace>> {
        let (mut dir, rest) = self.nearest_redirected(lower.dir.layer, path);
        let mut components = rest.split(|b| *b == b'/').peekable();
        while let Some(name) = components.next() {
            let Some(entry) = self.entry(&dir, name)? else { return Ok(None) };
            if !entry.is_visible() {
                return Ok(None);
            }
            if components.peek().is_some() {
                if !entry.is_dir {
                    return Ok(None);
                }
                dir = self.resolve_node(&dir, &entry)?;
                continue;
            }
            let parts = dir.parts();
            let part = entry.lower.and_then(|n| parts.lowers.get(usize::from(n)));
            let Some(part) = part.filter(|p| p.layer == lower.dir.layer && !entry.upper.object) else {
                return Ok(None);
            };
            let same = self.layers.stat_raw(part, name).is_ok_and(|a| (a.dev, a.ino) == (attr.dev, attr.ino));
            return Ok(same.then(|| (dir.clone(), entry.name.clone())));
        }
        Ok(None)
    }

    /// Gives the copy the other names of the lower object, and returns how many. A name that was changed meanwhile is
    /// left alone.
    fn link_siblings(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        siblings: &[NamePlace],
    ) -> u32 {
        let mut made = 0;
        for (dir, other) in siblings {
            match self.link_sibling(parent, name, dir, other) {
                Ok(()) => {
                    made += 1;
                    self.update_entry(dir, other, |e| {
                        e.upper.object = true;
                        e.ino = node.ino;
                    });
                }
                Err(e) if e.errno() == Errno::EXIST => {}
                // The copy is in place; a name that it lacks on disk still leads to it in this mount.
                Err(e) => {
                    tracing::error!(name = ?os_name(other), "give a copied-up hard link its other name: {e}")
                }
            }
        }
        made
    }

    fn link_sibling(&self, parent: &Arc<Node>, name: &[u8], dir: &Arc<Node>, other: &[u8]) -> OpResult<()> {
        if dir.place.read().parent.is_none() && !Arc::ptr_eq(dir, &self.root) {
            return Err(Errno::EXIST.into());
        }
        let from = self.upper_dir(parent)?;
        let from_fd = self.fd(&from)?;
        let to = self.upper_dir(dir)?;
        let to_fd = self.fd(&to)?;
        let _disk = dir.dir().map(|d| d.disk.lock());
        let keep = stat_fd(to_fd.as_fd())?;
        self.mark_impure(&to)?;
        rustix::fs::linkat(from_fd.as_fd(), name, to_fd.as_fd(), other, AtFlags::empty())?;
        hide_change(dir, to_fd.as_fd(), &keep);
        Ok(())
    }
}

type LayerDirRef = Arc<LayerDir>;

/// While it lives, a lookup that meets the copy knows whose it is.
struct Published<'a> {
    overlay: &'a Overlay,
    real: u64,
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        self.overlay.publishing.remove(&self.real);
    }
}

/// Path of an object from its layer's root, as an absolute redirect names it.
pub(super) fn absolute_path(object: &Object) -> Vec<u8> {
    let dir = object.dir.path();
    if dir.is_empty() {
        [b"/", &*object.name].concat()
    } else {
        [b"/", dir.as_slice(), b"/", &object.name].concat()
    }
}

fn write_all(fd: BorrowedFd<'_>, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        let n = rustix::io::write(fd, data)?;
        data = &data[n..];
    }
    Ok(())
}

fn times_of(attr: &Attr) -> Timestamps {
    let spec = |t: crate::attr::Time| Timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() };
    Timestamps { last_access: spec(attr.atime), last_modification: spec(attr.mtime) }
}

fn set_times(fd: BorrowedFd<'_>, attr: &Attr) -> Result<(), Errno> {
    rustix::fs::futimens(fd, &times_of(attr))
}

/// Copy-up changes no directory as users see it: the times of the one it put a name into go back to what they
/// were, the change time at least for as long as this mount lasts.
fn hide_change(dir: &Node, fd: BorrowedFd<'_>, before: &Attr) {
    if let Err(e) = set_times(fd, before) {
        tracing::debug!("restore times of a directory after copy-up: {e}");
        return;
    }
    if let (Some(state), Ok(now)) = (dir.dir(), stat_fd(fd)) {
        let mut hidden = state.ctime.lock();
        let shown = match *hidden {
            Some((disk, shown)) if disk == before.ctime => shown,
            _ => before.ctime,
        };
        *hidden = Some((now.ctime, shown));
    }
}

/// Renames to a name that must be free; plain where the filesystem has no NOREPLACE (the name was seen free).
fn rename_new(from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(from, name, to, new),
        other => other,
    }
}
