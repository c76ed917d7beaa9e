//! New objects: files, directories, links, special files.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags};

use super::copy_up::{Need, absolute_path};
use super::{Caller, NAME_MAX, Overlay, Reply, UpperPlace};
use crate::attr::{Attr, Kind};
use crate::error::{Errno, OpError, OpResult};
use crate::layer::dir::{DirFlags, LayerDir, open_beneath, stat_at, stat_fd};
use crate::layer::object::Object;
use crate::layer::upper::{Temp, Upper, WhiteoutForm, link_open, whiteout_file_name};
use crate::listing::{Entry, InUpper};
use crate::marks::{Opaque, WHITEOUT_PREFIX};
use crate::node::{Node, Parts, Place, UpperObject};
use crate::sys::creds;
use crate::sys::xattr::{self, Target};

/// What is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewObject<'a> {
    /// A regular file with these permission bits.
    File(u32),
    /// A directory with these permission bits.
    Dir(u32),
    /// A symlink to this target.
    Symlink(&'a [u8]),
    /// A special file (or a regular one) with this type and mode, and these device numbers.
    Node(u32, (u32, u32)),
}

impl NewObject<'_> {
    fn kind(&self) -> Kind {
        match self {
            Self::File(_) => Kind::File,
            Self::Dir(_) => Kind::Dir,
            Self::Symlink(_) => Kind::Symlink,
            Self::Node(mode, _) => Kind::of_mode(*mode),
        }
    }

    fn masked(self, umask: u32) -> Self {
        match self {
            Self::File(mode) => Self::File(mode & !umask),
            Self::Dir(mode) => Self::Dir(mode & !umask),
            Self::Node(mode, rdev) => Self::Node(mode & !umask, rdev),
            link @ Self::Symlink(_) => link,
        }
    }

    fn mode(&self) -> u32 {
        match self {
            Self::File(mode) | Self::Dir(mode) | Self::Node(mode, _) => mode & 0o7777,
            Self::Symlink(_) => 0o777,
        }
    }
}

/// Where an object is made that gets its name only when it is complete: `work`, or a directory in it that hands
/// down what the real parent would (group, default ACL).
pub(super) struct Stage<'a> {
    dir: Option<(Temp<'a>, OwnedFd)>,
    upper: &'a Upper,
}

impl Stage<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_ref().map_or(self.upper.work(), |(_, fd)| fd.as_fd())
    }
}

impl Overlay {
    /// Makes a new object. A file comes with its descriptor, open for reading and writing.
    ///
    /// # Errors
    /// EEXIST, ENAMETOOLONG, EROFS, EINVAL for an owner that no mapping leads to, and what open(2), mkdir(2),
    /// mknod(2), symlink(2) list.
    pub fn create(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        new: NewObject<'_>,
        umask: u32,
        caller: &Caller,
    ) -> OpResult<Reply> {
        let upper = self.upper()?;
        check_name(name)?;
        // A default ACL of the backing would take the umask's place, but without ACLs there is none to be seen.
        let new = if self.layers.config.acl && creds::set_umask(umask) { new } else { new.masked(umask) };
        self.copy_up(dir, Need::Attributes)?;
        let state = dir.dir().ok_or(Errno::NOTDIR)?;
        let _names = state.namespace.lock();
        self.check_alive(dir)?;
        let entry = self.entry(dir, name)?;
        if entry.as_ref().is_some_and(Entry::is_visible) {
            return Err(Errno::EXIST.into());
        }
        let parent = self.upper_dir(dir)?;
        let parent_fd = self.fd(&parent)?;
        self.allow_plain_name(&parent, name)?;
        let name: Arc<[u8]> = entry.as_ref().map_or_else(|| Arc::from(name), |e| e.name.clone());
        let stored = self.wants_override(&new);
        let hides = entry.as_ref().is_some_and(|e| e.lower.is_some());
        let in_way = entry.as_ref().map(|e| e.upper).unwrap_or_default();
        let direct = in_way == InUpper::default() && !stored && !(hides && new.kind() == Kind::Dir);
        let _disk = state.disk.lock();
        let mut file = None;
        let real;
        let mut opaque = Opaque::No;
        if direct {
            let acting = self.act_as(caller, umask)?;
            file = make(parent_fd.as_fd(), &name, &new)?;
            drop(acting);
            real = match &file {
                Some(fd) => stat_fd(fd)?,
                None => stat_at(parent_fd.as_fd(), &name)?,
            };
        } else {
            let stage = self.stage(upper, parent_fd.as_fd())?;
            let mut temp = upper.temp();
            if new.kind() == Kind::Dir {
                temp.set_dir();
            }
            let made = if stored {
                self.make_stored(&stage, &temp, &new, umask, caller, &parent)?
            } else {
                let acting = self.act_as(caller, umask)?;
                let made = make(stage.fd(), temp.bytes(), &new)?;
                drop(acting);
                made
            };
            if new.kind() == Kind::Dir && hides {
                let made = open_beneath(stage.fd(), temp.bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?;
                upper.set_opaque(made.as_fd(), &self.layers.names)?;
                opaque = Opaque::Yes;
            }
            let mut seen = self.stat_staged(&stage, &temp)?;
            if stored {
                self.mark_impure(&parent)?;
            }
            self.put_in_place(
                upper,
                &stage,
                temp,
                parent_fd.as_fd(),
                &name,
                in_way,
                new.kind() == Kind::Dir,
            )?;
            if stored {
                seen = self.layers.stat(&parent, &name)?;
                file = None;
            } else {
                file = made.or(file);
            }
            real = seen;
        }
        let node = self.new_node(dir, &parent, &name, &real, opaque);
        self.update_entry(dir, &name, |e| {
            e.upper = InUpper { object: true, ..InUpper::default() };
            e.is_dir = node.kind == Kind::Dir;
            e.ino = node.ino;
        });
        if let Some(fd) = file {
            self.keep_file(&node, fd, true);
        }
        node.lacks_capability.store(node.kind == Kind::File, Ordering::Relaxed);
        let attr = self.show(&node, real)?;
        Ok(Reply { node, attr })
    }

    fn stat_staged(&self, stage: &Stage<'_>, temp: &Temp<'_>) -> OpResult<Attr> {
        Ok(stat_at(stage.fd(), temp.bytes())?)
    }

    /// The node of a new upper object.
    fn new_node(
        &self,
        dir: &Arc<Node>,
        parent: &Arc<LayerDir>,
        name: &Arc<[u8]>,
        real: &Attr,
        opaque: Opaque,
    ) -> Arc<Node> {
        let kind = real.kind();
        let place = || {
            let upper = (kind != Kind::Dir).then(|| {
                Box::new(UpperObject { ino: real.ino, metacopy: false, has_origin: false, held: None })
            });
            Place { parent: Some(dir.clone()), name: name.clone(), upper, lower: None }
        };
        let parts = || {
            (kind == Kind::Dir).then(|| {
                let place = (real.dev, real.ino);
                let fds = &self.layers.context.fds;
                let child = LayerDir::child(
                    parent,
                    name.clone(),
                    None,
                    place,
                    opaque,
                    DirFlags::default(),
                    None,
                    fds,
                );
                Parts { upper: Some(child), lowers: Vec::new() }
            })
        };
        // An object that is gone may have had this real number.
        self.unmarked_origins.remove(&real.ino);
        let number = self.inos.number(real.dev, real.ino);
        let (node, made) = self.table.intern(number, kind, false, || (place(), parts()));
        if made {
            return node;
        }
        // The number still belongs to an object that is being forgotten, or was claimed by a mark.
        self.table.intern(self.inos.fresh(), kind, false, || (place(), parts())).0
    }

    /// True for what the upper cannot hold as itself.
    fn wants_override(&self, new: &NewObject<'_>) -> bool {
        self.layers.config.xattr_permissions
            || matches!(new, NewObject::Node(mode, (0, 0)) if Kind::of_mode(*mode) == Kind::Char)
    }

    /// Makes an object whose owner, mode and type are in its override.
    fn make_stored(
        &self,
        stage: &Stage<'_>,
        temp: &Temp<'_>,
        new: &NewObject<'_>,
        umask: u32,
        caller: &Caller,
        parent: &Arc<LayerDir>,
    ) -> OpResult<Option<OwnedFd>> {
        if !self.layers.config.xattr_permissions {
            // The filesystem itself says what a new object here would have for an owner and a mode.
            let acting = self.act_as(caller, umask)?;
            let made = make(stage.fd(), temp.bytes(), &NewObject::File(new.mode()))?;
            drop(acting);
            let fd = made.ok_or(Errno::IO)?;
            let mut attr = stat_fd(&fd)?;
            attr.mode = new.kind().mode_bits() | attr.mode & 0o7777;
            self.set_stored(Target::Fd(fd.as_fd()), &attr)?;
            return Ok(None);
        }
        let (uid, gid) = self.disk_ids(caller.uid, caller.gid)?;
        let fd = if new.kind() == Kind::Dir {
            rustix::fs::mkdirat(stage.fd(), &temp.name, Mode::from_raw_mode(0o755))?;
            open_beneath(stage.fd(), temp.bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(stage.fd(), &temp.name, flags, Mode::from_raw_mode(0o755))?
        };
        let parent = self.stat_layer_dir(parent)?;
        let inherits = parent.mode & libc::S_ISGID != 0;
        let mut attr = stat_fd(&fd)?;
        let masked = if matches!(new, NewObject::Symlink(_)) { 0o777 } else { new.mode() & !umask };
        attr.mode = new.kind().mode_bits() | masked;
        attr.uid = uid;
        attr.gid = if inherits { parent.gid } else { gid };
        if inherits && new.kind() == Kind::Dir {
            attr.mode |= libc::S_ISGID;
        }
        if let NewObject::Node(_, rdev) = new {
            attr.rdev = *rdev;
        }
        if let NewObject::Symlink(target) = new {
            rustix::io::pwrite(&fd, target, 0)?;
        }
        self.set_stored(Target::Fd(fd.as_fd()), &attr)?;
        Ok((new.kind() == Kind::File).then_some(fd))
    }

    /// A place to make an object in that inherits as in `parent`.
    pub(super) fn stage<'a>(&self, upper: &'a Upper, parent: BorrowedFd<'_>) -> OpResult<Stage<'a>> {
        self.no_umask();
        let attr = stat_fd(parent)?;
        let acl = xattr::get_vec(Target::Fd(parent), DEFAULT_ACL)?;
        if attr.mode & libc::S_ISGID == 0 && acl.is_none() {
            return Ok(Stage { dir: None, upper });
        }
        let mut temp = upper.temp();
        rustix::fs::mkdirat(upper.work(), &temp.name, Mode::RWXU)?;
        temp.set_dir();
        let fd = open_beneath(upper.work(), temp.bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        if attr.mode & libc::S_ISGID != 0 {
            rustix::fs::fchown(&fd, None, Some(Gid::from_raw(attr.gid)))?;
            rustix::fs::fchmod(&fd, Mode::RWXU | Mode::SGID)?;
        }
        if let Some(acl) = acl {
            xattr::set(Target::Fd(fd.as_fd()), DEFAULT_ACL, &acl, 0)?;
        }
        Ok(Stage { dir: Some((temp, fd)), upper })
    }

    /// Gives a staged object its name, over a whiteout if there is one.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn put_in_place(
        &self,
        upper: &Upper,
        stage: &Stage<'_>,
        temp: Temp<'_>,
        parent: BorrowedFd<'_>,
        name: &[u8],
        in_way: InUpper,
        is_dir: bool,
    ) -> OpResult<()> {
        let from = stage.fd();
        // Leftovers are removed by name in `work`; one in a stage goes with the stage.
        let own_name = temp.name.clone();
        if in_way.whiteout && is_dir {
            if upper.can.exchange {
                rustix::fs::renameat_with(from, &own_name, parent, name, RenameFlags::EXCHANGE)?;
                rustix::fs::unlinkat(from, &own_name, AtFlags::empty())?;
            } else {
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                rustix::fs::renameat(from, &own_name, parent, name)?;
            }
        } else {
            rustix::fs::renameat(from, &own_name, parent, name)?;
        }
        temp.published();
        if in_way.whiteout_file {
            rustix::fs::unlinkat(parent, whiteout_file_name(name).as_slice(), AtFlags::empty())?;
        }
        Ok(())
    }

    /// A directory that was removed takes no new names.
    pub(super) fn check_alive(&self, dir: &Arc<Node>) -> OpResult<()> {
        if dir.place.read().parent.is_none() && !Arc::ptr_eq(dir, &self.root) {
            return Err(Errno::NOENT.into());
        }
        Ok(())
    }

    /// Sees to it that a name beginning with `.wh.` in the upper is read as itself: marks the directory, which is
    /// possible as long as it holds no whiteouts of that form.
    pub(super) fn allow_plain_name(&self, dir: &Arc<LayerDir>, name: &[u8]) -> OpResult<()> {
        if !name.starts_with(WHITEOUT_PREFIX) || dir.has_plain_names() {
            return Ok(());
        }
        let upper = self.upper()?;
        let taken = self.layers.scan(dir)?;
        let has_files = taken.opaque || taken.entries.iter().any(|(_, f)| f.whiteout_file);
        if upper.can.whiteout == WhiteoutForm::File || !upper.can.xattrs || has_files {
            return Err(Errno::INVAL.into());
        }
        let fd = self.fd(dir)?;
        upper.set_mark(fd.as_fd(), &self.layers.names.plain_names, b"y")?;
        dir.set_plain_names();
        Ok(())
    }

    /// A further name for an object.
    ///
    /// # Errors
    /// EPERM for a directory, EEXIST, EMLINK, ENOENT for an object without a name left, and what link(2) lists.
    pub fn link(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &[u8]) -> OpResult<Reply> {
        let upper = self.upper()?;
        check_name(name)?;
        if node.kind == Kind::Dir {
            return Err(Errno::PERM.into());
        }
        self.copy_up(node, Need::Attributes)?;
        self.copy_up(dir, Need::Attributes)?;
        let state = dir.dir().ok_or(Errno::NOTDIR)?;
        let _names = state.namespace.lock();
        self.check_alive(dir)?;
        let entry = self.entry(dir, name)?;
        if entry.as_ref().is_some_and(Entry::is_visible) {
            return Err(Errno::EXIST.into());
        }
        let parent = self.upper_dir(dir)?;
        let parent_fd = self.fd(&parent)?;
        self.allow_plain_name(&parent, name)?;
        let name: Arc<[u8]> = entry.as_ref().map_or_else(|| Arc::from(name), |e| e.name.clone());
        let in_way = entry.as_ref().map(|e| e.upper).unwrap_or_default();
        {
            let _changing = node.change.lock();
            self.prepare_move(node, &parent)?;
            let _disk = state.disk.lock();
            if in_way == InUpper::default() {
                self.link_to(node, parent_fd.as_fd(), &name)?;
            } else {
                let temp = upper.temp();
                self.link_to(node, upper.work(), temp.bytes())?;
                let stage = Stage { dir: None, upper };
                self.put_in_place(upper, &stage, temp, parent_fd.as_fd(), &name, in_way, false)?;
            }
            let mut place = node.place.write();
            if place.parent.is_none() {
                // It had lost its name and has one again.
                place.parent = Some(dir.clone());
                place.name = name.clone();
                if let Some(upper) = &mut place.upper {
                    upper.held = None;
                }
            }
        }
        self.update_entry(dir, &name, |e| {
            e.upper = InUpper { object: true, ..InUpper::default() };
            e.is_dir = false;
            e.ino = node.ino;
        });
        let attr = self.getattr(node)?;
        Ok(Reply { node: node.clone(), attr })
    }

    /// Puts an object that is in the upper under a name that shows it from below. The caller holds the namespace and
    /// the change lock.
    pub(super) fn give_name(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &Arc<[u8]>) -> OpResult<()> {
        let parent = self.upper_dir(dir)?;
        let fd = self.fd(&parent)?;
        self.prepare_move(node, &parent)?;
        self.link_to(node, fd.as_fd(), name)?;
        self.update_entry(dir, name, |e| {
            e.upper.object = true;
            e.ino = node.ino;
        });
        Ok(())
    }

    fn link_to(&self, node: &Node, dir: BorrowedFd<'_>, name: &[u8]) -> OpResult<()> {
        self.with_upper(node, |place| match place {
            UpperPlace::Held(fd) => {
                if stat_fd(fd)?.nlink == 0 {
                    return Err(Errno::NOENT);
                }
                link_open(fd, dir, name)
            }
            UpperPlace::At { fd, name: old, .. } => rustix::fs::linkat(fd, old, dir, name, AtFlags::empty()),
        })
    }

    /// True when an absolute redirect written in the upper would find just this object.
    pub(super) fn path_leads_to(&self, data: &Object) -> OpResult<bool> {
        let found = self.find_data(&absolute_path(data)[1..], 0)?;
        Ok(found.is_some_and(|f| (f.dir.dev, f.dir.ino, &f.name) == (data.dir.dev, data.dir.ino, &data.name)))
    }

    /// Before an upper non-directory appears under another name or in another directory: data of a metadata-only
    /// copy must be found from there, and the directory must be known to hold marked entries. The caller holds
    /// the change lock.
    pub(super) fn prepare_move(&self, node: &Arc<Node>, to: &Arc<LayerDir>) -> OpResult<()> {
        let (metacopy, marked, lower) = {
            let place = node.place.read();
            let upper = place.upper.as_ref().ok_or(Errno::STALE)?;
            (upper.metacopy, upper.has_origin, place.lower.clone())
        };
        if let (true, Some(data)) = (metacopy, lower) {
            let path = absolute_path(&data);
            if self.path_leads_to(&data)? {
                let redirect = &self.layers.names.redirect;
                self.on_upper(node, |place| match place {
                    UpperPlace::Held(fd) => xattr::set(Target::Fd(fd), redirect, &path, 0),
                    UpperPlace::At { fd, name, .. } => {
                        crate::layer::mark_io::with_name(fd, name, |t| xattr::set(t, redirect, &path, 0))
                    }
                })?;
            } else {
                // Another layer has something else at that path: no mark can say where the data is.
                self.complete_data(node, Need::Data)?;
            }
        }
        let stored = matches!(node.kind, Kind::Char);
        if metacopy || marked || stored {
            self.mark_impure(to)?;
        }
        Ok(())
    }
}

/// `system.posix_acl_default`
const DEFAULT_ACL: &std::ffi::CStr = c"system.posix_acl_default";

/// Names the kernel would never pass, and those that are too long.
pub(super) fn check_name(name: &[u8]) -> OpResult<()> {
    if name.len() > NAME_MAX {
        return Err(OpError::Errno(Errno::NAMETOOLONG));
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(OpError::Errno(Errno::INVAL));
    }
    Ok(())
}

/// Makes an object of its true type; the filesystem applies umask, default ACL and the parent's group itself.
fn make(dir: BorrowedFd<'_>, name: &[u8], new: &NewObject<'_>) -> Result<Option<OwnedFd>, Errno> {
    let mode = Mode::from_raw_mode(new.mode());
    match new {
        NewObject::File(_) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(dir, name, flags, mode).map(Some)
        }
        NewObject::Dir(_) => rustix::fs::mkdirat(dir, name, mode).map(|()| None),
        NewObject::Symlink(target) => rustix::fs::symlinkat(*target, dir, name).map(|()| None),
        NewObject::Node(full, (major, minor)) => {
            let file_type = match Kind::of_mode(*full) {
                Kind::Dir | Kind::Symlink => return Err(Errno::INVAL),
                kind => FileType::from_raw_mode(kind.mode_bits()),
            };
            rustix::fs::mknodat(dir, name, file_type, mode, rustix::fs::makedev(*major, *minor))
                .map(|()| None)
        }
    }
}
