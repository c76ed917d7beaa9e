//! Removing names.
//!
//! Each removal is one unlink, or one rename that puts a whiteout in the object's place.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use rustix::fs::{AtFlags, OFlags, RenameFlags};

use super::Overlay;
use super::copy_up::Need;
use super::create::check_name;
use crate::attr::Kind;
use crate::error::{Errno, OpError, OpResult};
use crate::layer::dir::{LayerDir, open_beneath, stat_fd};
use crate::layer::upper::{Upper, WhiteoutForm, whiteout_file_name};
use crate::listing::{Entry, InUpper, Listing};
use crate::marks::Opaque;
use crate::node::{HeldFd, Hold, Listed, Node, Parts};

/// How often an operation starts over because names changed while it waited for locks.
pub(super) const TRIES: usize = 100;

/// The namespaces of up to two directories, taken by rising number.
#[derive(Debug)]
pub(super) struct Namespaces<'a>(
    #[allow(dead_code)] Option<MutexGuard<'a, ()>>,
    #[allow(dead_code)] Option<MutexGuard<'a, ()>>,
);

/// Locks the namespaces of two directories, which may be one.
pub(super) fn lock_namespaces<'a>(a: &'a Node, b: &'a Node) -> Namespaces<'a> {
    let (first, second) = if a.ino <= b.ino { (a, b) } else { (b, a) };
    let one = first.dir().map(|d| d.namespace.lock());
    let two = if a.ino == b.ino { None } else { second.dir().map(|d| d.namespace.lock()) };
    Namespaces(one, two)
}

impl Overlay {
    /// Removes a name of a non-directory.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EROFS, and what unlink(2) lists.
    pub fn unlink(&self, dir: &Arc<Node>, name: &[u8]) -> OpResult<()> {
        let upper = self.upper()?;
        check_name(name)?;
        self.copy_up(dir, Need::Attributes)?;
        let state = dir.dir().ok_or(Errno::NOTDIR)?;
        let _names = state.namespace.lock();
        let node = {
            let entry = self.visible(dir, name)?;
            if entry.is_dir {
                return Err(Errno::ISDIR.into());
            }
            match self.resolve_node(dir, &entry) {
                Ok(node) => node,
                // What cannot be understood can still be removed; no node stands for it.
                Err(OpError::CorruptMark { .. } | OpError::NoData { .. }) => {
                    let parent = self.upper_dir(dir)?;
                    let fd = self.fd(&parent)?;
                    let now = self.remove_object(upper, &parent, fd.as_fd(), &entry)?;
                    self.update_entry(dir, &entry.name, |e| {
                        e.upper = now;
                        e.is_dir = e.lower_is_dir;
                    });
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        };
        self.keep_link_count(&node)?;
        let _changing = node.change.lock();
        // A copy-up may have ended while the lock was waited for.
        let entry = self.visible(dir, name)?;
        let parent = self.upper_dir(dir)?;
        let parent_fd = self.fd(&parent)?;
        let lost = self.before_losing(&node, dir, &entry, parent_fd.as_fd())?;
        let _disk = state.disk.lock();
        let now = self.remove_object(upper, &parent, parent_fd.as_fd(), &entry)?;
        self.update_entry(dir, &entry.name, |e| {
            e.upper = now;
            e.is_dir = e.lower_is_dir;
            e.ino = 0;
        });
        self.after_losing(&node, dir, &entry, lost);
        Ok(())
    }

    /// Before a name of a hard-linked lower object goes: the object is copied up under all its names, so that the
    /// number of those that are left is on disk and the same after a remount (the kernel's overlayfs does so with
    /// its index).
    pub(super) fn keep_link_count(&self, node: &Arc<Node>) -> OpResult<()> {
        if node.kind == Kind::Dir || node.place.read().upper.is_some() {
            return Ok(());
        }
        let attr = self.stat_node(node)?;
        let links = attr.nlink.saturating_add_signed(node.link_bias.load(Ordering::Relaxed));
        if links > 1 { self.copy_up(node, Need::Attributes) } else { Ok(()) }
    }

    /// The visible entry of a name.
    pub(super) fn visible(&self, dir: &Arc<Node>, name: &[u8]) -> OpResult<Entry> {
        match self.entry(dir, name)? {
            Some(entry) if entry.is_visible() => Ok(entry),
            _ => Err(Errno::NOENT.into()),
        }
    }

    /// Takes hold of an upper object that is about to lose the name by which it is reached. The caller holds the
    /// change lock.
    pub(super) fn before_losing(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        entry: &Entry,
        parent: BorrowedFd<'_>,
    ) -> OpResult<Option<Hold>> {
        if !entry.upper.object || entry.is_dir || !self.table.is_pinned(node.ino) {
            return Ok(None);
        }
        let reached_here = node.is_at(dir, &entry.name)
            && node.place.read().upper.as_ref().is_some_and(|u| u.held.is_none());
        if !reached_here {
            return Ok(None);
        }
        if let Some(file) = node.upper_file() {
            return Ok(Some(Hold::Shared(file)));
        }
        let open = || open_beneath(parent, &entry.name, OFlags::PATH);
        Ok(Some(Hold::Own(crate::layer::dir::with_fds(&self.layers.context.fds, open)?)))
    }

    /// Notes in memory that a non-directory has lost a name.
    pub(super) fn after_losing(&self, node: &Arc<Node>, dir: &Arc<Node>, entry: &Entry, held: Option<Hold>) {
        let here = node.is_at(dir, &entry.name);
        // The number of an object that is gone for good may be used for another one.
        let number = node.place.read().upper.as_ref().map(|upper| upper.ino);
        if let Some(number) = number.filter(|number| self.unmarked_origins.contains_key(number))
            && let Some(gone) = held.as_ref().and_then(|fd| stat_fd(fd).ok()).filter(|a| a.nlink == 0)
        {
            debug_assert_eq!(gone.ino, number);
            self.unmarked_origins.remove(&number);
        }
        let mut lost_below = false;
        let mut place = node.place.write();
        match &mut place.upper {
            Some(upper) if entry.upper.object => {
                if let Some(fd) = held {
                    upper.held = Some(HeldFd::new(fd, &self.held));
                }
            }
            Some(_) => {}
            None => {
                node.link_bias.fetch_sub(1, Ordering::Relaxed);
                lost_below = true;
            }
        }
        if here {
            place.parent = None;
        }
        drop(place);
        if lost_below {
            *self.lost_links.entry(node.ino).or_default() -= 1;
        }
    }

    /// Takes the object under a name away: what shows there then is nothing. Returns what the upper has instead.
    fn remove_object(
        &self,
        upper: &Upper,
        parent: &Arc<LayerDir>,
        fd: BorrowedFd<'_>,
        entry: &Entry,
    ) -> OpResult<InUpper> {
        let name = &*entry.name;
        let names = &self.layers.names;
        if entry.lower.is_none() || entry.upper.whiteout_file {
            rustix::fs::unlinkat(fd, name, AtFlags::empty())?;
            return Ok(InUpper { whiteout_file: entry.upper.whiteout_file, ..InUpper::default() });
        }
        self.before_whiteout(upper, parent, fd)?;
        if upper.can.whiteout == WhiteoutForm::File {
            upper.make_whiteout(fd, name, names)?;
            if entry.upper.object {
                rustix::fs::unlinkat(fd, name, AtFlags::empty())?;
            }
            return Ok(InUpper { whiteout_file: true, ..InUpper::default() });
        }
        if entry.upper.object {
            let whiteout = upper.temp_whiteout(names)?;
            rustix::fs::renameat(upper.work(), &whiteout.name, fd, name)?;
            whiteout.published();
        } else {
            upper.make_whiteout(fd, name, names)?;
        }
        Ok(InUpper { whiteout: true, ..InUpper::default() })
    }

    /// A directory that gets an xattr whiteout says so, before it does.
    pub(super) fn before_whiteout(
        &self,
        upper: &Upper,
        parent: &Arc<LayerDir>,
        fd: BorrowedFd<'_>,
    ) -> OpResult<()> {
        if upper.can.whiteout == WhiteoutForm::Xattr && parent.opaque() == Opaque::No {
            upper.set_mark(fd, &self.layers.names.opaque, b"x")?;
            parent.set_opaque(Opaque::XattrWhiteouts);
        }
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EROFS, and what rmdir(2) lists.
    pub fn rmdir(&self, dir: &Arc<Node>, name: &[u8]) -> OpResult<()> {
        let upper = self.upper()?;
        check_name(name)?;
        self.copy_up(dir, Need::Attributes)?;
        dir.dir().ok_or(Errno::NOTDIR)?;
        for _ in 0..TRIES {
            let node = {
                let entry = self.visible(dir, name)?;
                if !entry.is_dir {
                    return Err(Errno::NOTDIR.into());
                }
                self.resolve_node(dir, &entry)?
            };
            let _names = lock_namespaces(dir, &node);
            let _changing = node.change.lock();
            let entry = self.visible(dir, name)?;
            if !node.is_at(dir, name) || !entry.is_dir {
                // Replaced while the locks were waited for.
                continue;
            }
            if !self.with_names(&node, Listing::is_empty)? {
                return Err(Errno::NOTEMPTY.into());
            }
            let parent = self.upper_dir(dir)?;
            let parent_fd = self.fd(&parent)?;
            let kept = self.keep_removed_dir(&node)?;
            let _disk = dir.dir().map(|d| d.disk.lock());
            let now = match self.remove_dir_object(upper, &parent, parent_fd.as_fd(), &entry) {
                Ok(now) => now,
                Err(e) => {
                    if let Some(dir) = kept {
                        dir.unpin();
                    }
                    return Err(e);
                }
            };
            self.update_entry(dir, &entry.name, |e| {
                e.upper = now;
                e.is_dir = e.lower_is_dir;
                e.ino = 0;
            });
            self.after_losing_dir(&node);
            return Ok(());
        }
        Err(Errno::BUSY.into())
    }

    /// A directory that processes may still be in keeps its descriptors.
    pub(super) fn keep_removed_dir(&self, node: &Arc<Node>) -> OpResult<Option<Arc<LayerDir>>> {
        let upper = node.parts().upper.clone().filter(|_| self.table.is_pinned(node.ino));
        if let Some(dir) = &upper {
            dir.pin(&self.layers.context)?;
        }
        Ok(upper)
    }

    /// Notes in memory that a directory is gone: it is empty for good.
    pub(super) fn after_losing_dir(&self, node: &Arc<Node>) {
        if let Some(state) = node.dir() {
            let mut names = state.names.write();
            names.generation += 1;
            names.listing = Some(Listed::new(Listing::default(), &self.listed_names));
        }
        node.place.write().parent = None;
    }

    fn remove_dir_object(
        &self,
        upper: &Upper,
        parent: &Arc<LayerDir>,
        fd: BorrowedFd<'_>,
        entry: &Entry,
    ) -> OpResult<InUpper> {
        let name = &*entry.name;
        let names = &self.layers.names;
        // What lies below shows again unless a whiteout hides it. A directory found by a redirect has its lower
        // part elsewhere; what is under its own name counts here.
        let hide = entry.lower.is_some() && !entry.upper.whiteout_file;
        if !entry.upper.object {
            self.before_whiteout(upper, parent, fd)?;
            upper.make_whiteout(fd, name, names)?;
            return Ok(self.whiteout_made(upper));
        }
        if !hide {
            match rustix::fs::unlinkat(fd, name, AtFlags::REMOVEDIR) {
                // Whiteouts and marks are left in it.
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.take_away(upper, fd, name)?,
                other => other?,
            }
            return Ok(InUpper { whiteout_file: entry.upper.whiteout_file, ..InUpper::default() });
        }
        self.before_whiteout(upper, parent, fd)?;
        if upper.can.whiteout == WhiteoutForm::File {
            upper.make_whiteout(fd, name, names)?;
            self.take_away(upper, fd, name)?;
            return Ok(self.whiteout_made(upper));
        }
        if upper.can.exchange {
            let mut whiteout = upper.temp_whiteout(names)?;
            rustix::fs::renameat_with(upper.work(), &whiteout.name, fd, name, RenameFlags::EXCHANGE)?;
            // What is under the temporary name now is the old directory: dropping the name removes it.
            whiteout.set_dir();
        } else {
            self.take_away(upper, fd, name)?;
            upper.make_whiteout(fd, name, names)?;
        }
        Ok(self.whiteout_made(upper))
    }

    fn whiteout_made(&self, upper: &Upper) -> InUpper {
        let file = upper.can.whiteout == WhiteoutForm::File;
        InUpper { object: false, whiteout: !file, whiteout_file: file }
    }

    /// Moves a directory that shows nothing to `work` in one step and removes it there.
    pub(super) fn take_away(&self, upper: &Upper, fd: BorrowedFd<'_>, name: &[u8]) -> OpResult<()> {
        let mut temp = upper.temp();
        rustix::fs::renameat(fd, name, upper.work(), &temp.name)?;
        temp.set_dir();
        Ok(())
    }

    /// The `.wh.` file that hides what is below a name is not needed any more.
    pub(super) fn drop_whiteout_file(&self, fd: BorrowedFd<'_>, name: &[u8]) -> OpResult<()> {
        match rustix::fs::unlinkat(fd, whiteout_file_name(name).as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Locks two directories, which may be one, against other changes on disk.
pub(super) fn lock_disks<'a>(a: &'a Node, b: &'a Node) -> Namespaces<'a> {
    let (first, second) = if a.ino <= b.ino { (a, b) } else { (b, a) };
    let one = first.dir().map(|d| d.disk.lock());
    let two = if a.ino == b.ino { None } else { second.dir().map(|d| d.disk.lock()) };
    Namespaces(one, two)
}

/// True when the directory has parts in lower layers.
pub(super) fn is_merged(parts: &Parts) -> bool {
    !parts.lowers.is_empty()
}
