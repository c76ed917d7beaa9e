//! Renaming.
//!
//! Marks that the object needs at its new place are written before the one rename that moves it, and mean nothing
//! at its old one; what hides lower objects at the old place comes with that same rename where the filesystem can.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, RenameFlags};

use super::copy_up::Need;
use super::create::{NewObject, check_name};
use super::remove::{TRIES, is_merged, lock_disks, lock_namespaces};
use super::{Caller, Overlay};
use crate::attr::Kind;
use crate::config::RedirectDir;
use crate::error::{Errno, OpResult};
use crate::layer::dir::LayerDir;
use crate::layer::upper::{Upper, WhiteoutForm};
use crate::listing::{Entry, InUpper, Listing};
use crate::marks::{Opaque, Redirect};
use crate::node::{Node, Parts};
use crate::sys::xattr::{self, Target};

/// What renameat2(2) can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RenameMode {
    /// Replace the target.
    #[default]
    Replace,
    /// RENAME_NOREPLACE
    NoReplace,
    /// RENAME_EXCHANGE
    Exchange,
    /// RENAME_WHITEOUT: a character device 0:0 is left at the source.
    Whiteout,
}

/// One side of a rename.
struct Side {
    dir: Arc<Node>,
    parent: Arc<LayerDir>,
    fd: Arc<crate::fdcache::CachedFd>,
    entry: Entry,
}

impl Side {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn name(&self) -> &[u8] {
        &self.entry.name
    }

    /// A lower object shows at this name as soon as the upper has nothing there.
    fn needs_whiteout(&self) -> bool {
        self.entry.lower.is_some() && !self.entry.upper.whiteout_file
    }
}

impl Overlay {
    /// Renames `from_name` in `from` to `to_name` in `to`.
    ///
    /// # Errors
    /// ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL for a directory into itself, EXDEV for a directory of a
    /// lower layer when redirects are off, EROFS, and what rename(2) lists.
    pub fn rename(
        &self,
        from: &Arc<Node>,
        from_name: &[u8],
        to: &Arc<Node>,
        to_name: &[u8],
        mode: RenameMode,
        caller: &Caller,
    ) -> OpResult<()> {
        let upper = self.upper()?;
        check_name(from_name)?;
        check_name(to_name)?;
        self.copy_up(from, Need::Attributes)?;
        self.copy_up(to, Need::Attributes)?;
        // Data is copied before any lock is taken; that the names still mean the same is looked at under them.
        let mut sides = vec![(from, from_name)];
        if mode == RenameMode::Exchange {
            sides.push((to, to_name));
        }
        for (dir, name) in sides {
            let entry = self.visible(dir, name)?;
            let node = self.resolve_node(dir, &entry)?;
            self.copy_up(&node, Need::Attributes)?;
        }
        // A tree must not be moved while another move decides whether it would end up inside itself.
        let _moving = (!Arc::ptr_eq(from, to)).then(|| self.rename.lock());
        let mut done = false;
        for _ in 0..TRIES {
            let source = self.visible(from, from_name)?;
            let node = self.resolve_node(from, &source)?;
            let target = match self.entry(to, to_name)? {
                Some(entry) if entry.is_visible() => Some(self.resolve_node(to, &entry)?),
                _ => None,
            };
            self.check_rename(&node, to, target.as_ref(), mode)?;
            if target.as_ref().is_some_and(|t| Arc::ptr_eq(t, &node)) {
                return Ok(());
            }
            self.copy_up(&node, Need::Attributes)?;
            if let Some(target) = &target {
                match mode {
                    RenameMode::Exchange => self.copy_up(target, Need::Attributes)?,
                    _ => self.keep_link_count(target)?,
                }
            }
            let target_dir = target.as_ref().filter(|t| t.kind == Kind::Dir && mode != RenameMode::Exchange);
            if self.rename_locked(
                upper,
                (from, from_name),
                (to, to_name),
                &node,
                target.as_ref(),
                target_dir,
                mode,
            )? {
                done = true;
                break;
            }
        }
        if !done {
            return Err(Errno::BUSY.into());
        }
        if mode == RenameMode::Whiteout {
            // The kernel's whiteout of the layers below is there already, where one is needed; what the caller
            // asked for is a device it can see.
            let device = NewObject::Node(libc::S_IFCHR, (0, 0));
            self.create(from, from_name, device, 0, &Caller { uid: 0, gid: 0, ..*caller })?;
        }
        Ok(())
    }

    fn check_rename(
        &self,
        node: &Arc<Node>,
        to: &Arc<Node>,
        target: Option<&Arc<Node>>,
        mode: RenameMode,
    ) -> OpResult<()> {
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT.into()),
            (RenameMode::Exchange, Some(_)) | (_, None) => {}
            (_, Some(target)) => match (node.kind == Kind::Dir, target.kind == Kind::Dir) {
                (true, false) => return Err(Errno::NOTDIR.into()),
                (false, true) => return Err(Errno::ISDIR.into()),
                _ => {}
            },
        }
        if node.kind == Kind::Dir {
            let mut above = Some(to.clone());
            while let Some(dir) = above {
                if Arc::ptr_eq(&dir, node) {
                    return Err(Errno::INVAL.into());
                }
                above = dir.place.read().parent.clone();
            }
        }
        Ok(())
    }

    /// The rename with everything in the upper. False when something changed while the locks were waited for.
    #[allow(clippy::too_many_arguments)]
    fn rename_locked(
        &self,
        upper: &Upper,
        (from, from_name): (&Arc<Node>, &[u8]),
        (to, to_name): (&Arc<Node>, &[u8]),
        node: &Arc<Node>,
        target: Option<&Arc<Node>>,
        target_dir: Option<&Arc<Node>>,
        mode: RenameMode,
    ) -> OpResult<bool> {
        let _names = lock_namespaces(from, to);
        // Nobody makes a name in the directory that is to be replaced: the kernel holds its lock, and emptiness is
        // looked at under its change lock, which creating a name does not take; so take its namespace as well where
        // the order allows.
        let _inside = target_dir
            .filter(|t| t.ino != from.ino && t.ino != to.ino)
            .and_then(|t| t.dir())
            .and_then(|d| d.namespace.try_lock());
        self.check_alive(to)?;
        let (first, second) = match target {
            Some(target) if target.ino < node.ino => (target, Some(node)),
            other => (node, other),
        };
        let _one = first.change.lock();
        let _two = second.map(|n| n.change.lock());

        let source = self.visible(from, from_name)?;
        let there = self.entry(to, to_name)?;
        let visible = there.as_ref().filter(|e| e.is_visible());
        let unchanged = match (visible, target) {
            (None, None) => true,
            (Some(entry), Some(target)) => Arc::ptr_eq(&self.resolve_node(to, entry)?, target),
            _ => false,
        };
        if !unchanged || !Arc::ptr_eq(&self.resolve_node(from, &source)?, node) {
            return Ok(false);
        }
        // A hard link whose copy could not be given this name, since its directory has another path in the layer.
        let mut named = false;
        for (dir, entry, object) in [(from, Some(&source), Some(node)), (to, visible, target)] {
            let (Some(entry), Some(object)) = (entry, object) else { continue };
            let wanted = Arc::ptr_eq(object, node) || mode == RenameMode::Exchange;
            if wanted && object.kind != Kind::Dir && !entry.upper.object {
                self.give_name(object, dir, &entry.name)?;
                named = true;
            }
        }
        if named || !source.upper.object {
            return Ok(false);
        }
        if let Some(dir) = target_dir
            && !self.with_names(dir, Listing::is_empty)?
        {
            return Err(Errno::NOTEMPTY.into());
        }
        let from_parent = self.upper_dir(from)?;
        let to_parent = self.upper_dir(to)?;
        self.allow_plain_name(&to_parent, to_name)?;
        let empty = || Entry {
            name: Arc::from(to_name),
            upper: InUpper::default(),
            lower: None,
            deeper: None,
            is_dir: false,
            lower_is_dir: false,
            ino: 0,
        };
        let from = Side { dir: from.clone(), fd: self.fd(&from_parent)?, parent: from_parent, entry: source };
        let to = Side {
            dir: to.clone(),
            fd: self.fd(&to_parent)?,
            parent: to_parent,
            entry: there.unwrap_or_else(empty),
        };

        self.prepare(upper, node, &to)?;
        if let (RenameMode::Exchange, Some(target)) = (mode, target) {
            self.prepare(upper, target, &from)?;
            let _disk = lock_disks(&from.dir, &to.dir);
            self.exchange(&from, &to, node, target)?;
            return Ok(true);
        }
        let _disk = lock_disks(&from.dir, &to.dir);
        self.replace(upper, &from, &to, node, target)?;
        Ok(true)
    }

    /// Writes the marks that a node needs at its new place.
    fn prepare(&self, upper: &Upper, node: &Arc<Node>, to: &Side) -> OpResult<()> {
        if node.kind != Kind::Dir {
            return self.prepare_move(node, &to.parent);
        }
        let parts = node.parts();
        let own = parts.upper.as_ref().ok_or(Errno::STALE)?;
        if is_merged(&parts) {
            // What `.wh..wh..opq` hides is known once the names are; reading them takes long in a large directory.
            let hiding = parts.lowers.iter().rev().skip(1).chain([own]);
            for part in hiding {
                if self.has_opaque_entry(part)? {
                    self.with_names(node, |_| ())?;
                    break;
                }
            }
            let parts = node.parts();
            self.redirect(upper, &parts, own)?;
            for part in &parts.lowers {
                self.redirected.insert((part.layer, part.path()), node.clone());
            }
            return Ok(());
        }
        if to.entry.lower.is_some() && own.opaque() != Opaque::Yes {
            let fd = self.fd(own)?;
            upper.set_opaque(fd.as_fd(), &self.layers.names)?;
            own.set_opaque(Opaque::Yes);
        }
        Ok(())
    }

    /// Marks a merged directory with where its lower parts are.
    fn redirect(&self, upper: &Upper, parts: &Parts, own: &Arc<LayerDir>) -> OpResult<()> {
        if self.layers.config.redirect_dir != RedirectDir::On || !upper.can.xattrs {
            return Err(Errno::XDEV.into());
        }
        let path = parts.lowers.first().map(|d| d.path()).unwrap_or_default();
        if path.is_empty() {
            return Err(Errno::XDEV.into());
        }
        // The path must lead to just these parts, also where layers have other things at it.
        let mut found = Parts::default();
        self.search_path(&path, &mut found)?;
        let ids = |dirs: &[Arc<LayerDir>]| dirs.iter().map(|d| (d.layer, d.dev, d.ino)).collect::<Vec<_>>();
        if ids(&found.lowers) != ids(&parts.lowers) {
            return Err(Errno::XDEV.into());
        }
        let fd = self.fd(own)?;
        let value = Redirect::Absolute(path).to_bytes();
        match xattr::set(Target::Fd(fd.as_fd()), &self.layers.names.redirect, &value, 0) {
            // Longer than the filesystem stores: moving it by copying is the caller's way out.
            Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG | Errno::NAMETOOLONG) => Err(Errno::XDEV.into()),
            other => Ok(other?),
        }
    }

    fn exchange(&self, from: &Side, to: &Side, node: &Arc<Node>, target: &Arc<Node>) -> OpResult<()> {
        {
            let _tree = self.tree_lock(node, Some(target));
            rustix::fs::renameat_with(from.fd(), from.name(), to.fd(), to.name(), RenameFlags::EXCHANGE)?;
            self.moved(node, from, to);
            self.moved(target, to, from);
        }
        for (side, now) in [(from, target), (to, node)] {
            self.update_entry(&side.dir, &side.entry.name, |e| {
                e.upper.object = true;
                e.upper.whiteout = false;
                e.is_dir = now.kind == Kind::Dir;
                e.ino = now.ino;
            });
        }
        Ok(())
    }

    fn replace(
        &self,
        upper: &Upper,
        from: &Side,
        to: &Side,
        node: &Arc<Node>,
        target: Option<&Arc<Node>>,
    ) -> OpResult<()> {
        let is_dir = node.kind == Kind::Dir;
        let mut in_way = to.entry.upper;
        let mut lost = None;
        let mut kept = None;
        match target {
            Some(target) if is_dir => {
                kept = self.keep_removed_dir(target)?;
                if in_way.object {
                    self.empty_target(upper, to, target)?;
                    in_way.object = self.still_there(to)?;
                }
            }
            Some(target) => lost = self.before_losing(target, &to.dir, &to.entry, to.fd())?,
            None => {}
        }
        let moved = self.move_upper(upper, from, to, node, in_way, target);
        if moved.is_err()
            && let Some(dir) = kept
        {
            dir.unpin();
        }
        let left = moved?;
        self.update_entry(&from.dir, &from.entry.name, |e| {
            e.upper = left;
            e.is_dir = e.lower_is_dir;
            e.ino = 0;
        });
        match target {
            Some(target) if target.kind == Kind::Dir => self.after_losing_dir(target),
            Some(target) => self.after_losing(target, &to.dir, &to.entry, lost),
            None => {}
        }
        self.update_entry(&to.dir, &to.entry.name, |e| {
            e.upper = InUpper { object: true, ..InUpper::default() };
            e.is_dir = is_dir;
            e.ino = node.ino;
        });
        if to.entry.upper.whiteout_file {
            self.drop_whiteout_file(to.fd(), to.name())?;
        }
        Ok(())
    }

    fn still_there(&self, side: &Side) -> OpResult<bool> {
        match crate::layer::dir::stat_at(side.fd(), side.name()) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes the upper directory that is to be replaced truly empty: whiteouts in it would keep rename(2) from
    /// replacing it. At every moment what shows is an empty directory.
    fn empty_target(&self, upper: &Upper, to: &Side, target: &Arc<Node>) -> OpResult<()> {
        let parts = target.parts();
        let Some(own) = &parts.upper else { return Ok(()) };
        let scan = self.layers.scan(own)?;
        if scan.entries.is_empty() && !scan.opaque {
            return Ok(());
        }
        if !upper.can.exchange || !upper.can.xattrs {
            return self.take_away(upper, to.fd(), to.name());
        }
        let mut temp = upper.temp();
        rustix::fs::mkdirat(upper.work(), &temp.name, rustix::fs::Mode::RWXU)?;
        temp.set_dir();
        let fresh =
            crate::layer::dir::open_beneath(upper.work(), temp.bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.dress_as(own, fresh.as_fd())?;
        upper.set_opaque(fresh.as_fd(), &self.layers.names)?;
        rustix::fs::renameat_with(upper.work(), &temp.name, to.fd(), to.name(), RenameFlags::EXCHANGE)?;
        Ok(())
    }

    /// The rename itself. Returns what the upper has at the source afterwards.
    fn move_upper(
        &self,
        upper: &Upper,
        from: &Side,
        to: &Side,
        node: &Arc<Node>,
        in_way: InUpper,
        target: Option<&Arc<Node>>,
    ) -> OpResult<InUpper> {
        let names = &self.layers.names;
        let is_dir = node.kind == Kind::Dir;
        let hide = from.needs_whiteout();
        let whiteout = InUpper { whiteout: true, ..InUpper::default() };
        let _tree = self.tree_lock(node, target);
        let done = |left: InUpper| {
            self.moved(node, from, to);
            Ok(left)
        };
        if is_dir && in_way.whiteout {
            // A directory cannot replace a whiteout, but change places with it.
            if upper.can.exchange {
                rustix::fs::renameat_with(from.fd(), from.name(), to.fd(), to.name(), RenameFlags::EXCHANGE)?;
                if hide && upper.can.whiteout != WhiteoutForm::Xattr {
                    return done(whiteout);
                }
                self.moved(node, from, to);
                rustix::fs::unlinkat(from.fd(), from.name(), AtFlags::empty())?;
                return self.leave_whiteout(upper, from, hide);
            }
            rustix::fs::unlinkat(to.fd(), to.name(), AtFlags::empty())?;
        }
        if hide && upper.can.whiteout == WhiteoutForm::File {
            upper.make_whiteout(from.fd(), from.name(), names)?;
            rustix::fs::renameat(from.fd(), from.name(), to.fd(), to.name())?;
            return done(InUpper { whiteout_file: true, ..InUpper::default() });
        }
        if hide && upper.can.whiteout == WhiteoutForm::Device {
            let flags = RenameFlags::WHITEOUT;
            match rustix::fs::renameat_with(from.fd(), from.name(), to.fd(), to.name(), flags) {
                Ok(()) => return done(whiteout),
                Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if hide {
            self.before_whiteout(upper, &from.parent, from.fd())?;
        }
        rustix::fs::renameat(from.fd(), from.name(), to.fd(), to.name())?;
        self.moved(node, from, to);
        self.leave_whiteout(upper, from, hide)
    }

    fn leave_whiteout(&self, upper: &Upper, from: &Side, hide: bool) -> OpResult<InUpper> {
        let file = from.entry.upper.whiteout_file;
        if !hide {
            return Ok(InUpper { whiteout_file: file, ..InUpper::default() });
        }
        self.before_whiteout(upper, &from.parent, from.fd())?;
        upper.make_whiteout(from.fd(), from.name(), &self.layers.names)?;
        Ok(InUpper { whiteout: true, ..InUpper::default() })
    }

    /// Held while directories of the upper change their path.
    fn tree_lock(
        &self,
        node: &Node,
        target: Option<&Arc<Node>>,
    ) -> Option<parking_lot::RwLockWriteGuard<'_, ()>> {
        let any_dir = node.kind == Kind::Dir || target.is_some_and(|t| t.kind == Kind::Dir);
        any_dir.then(|| self.layers.context.tree.write())
    }

    /// Follows in memory where a node is now. The caller holds the tree lock for directories.
    fn moved(&self, node: &Arc<Node>, from: &Side, to: &Side) {
        if node.kind == Kind::Dir
            && let Some(own) = &node.parts().upper
        {
            own.moved(to.parent.clone(), to.entry.name.clone());
        }
        let here = node.is_at(&from.dir, from.name());
        if here {
            let mut place = node.place.write();
            place.parent = Some(to.dir.clone());
            place.name = to.entry.name.clone();
        }
    }
}
