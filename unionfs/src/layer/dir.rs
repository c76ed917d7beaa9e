//! One directory in one layer, reached by descriptor beneath its layer's root.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::attr::Attr;
use crate::error::Errno;
use crate::fdcache::{CachedFd, Evicted, FdCache, Holder};
use crate::index::EntryId;
use crate::marks::Opaque;

/// Which layer: 0 is the top lower.
pub type LayerNo = u16;
/// The layer number of the upper.
pub const UPPER: LayerNo = LayerNo::MAX;

/// How every directory of a layer is opened; without write, never through a symlink.
const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

/// Runs `call`, once more after closing cached descriptors when the process has run out of them.
pub fn with_fds<T>(fds: &FdCache, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    match call() {
        Err(Errno::MFILE | Errno::NFILE) => {
            fds.shrink(fds.open_count() / 2 + 1);
            call()
        }
        other => other,
    }
}

/// Opens `name` beneath `dir`; atime is left alone where the kernel lets us (owner or CAP_FOWNER).
pub fn open_beneath(dir: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if flags.intersects(OFlags::PATH | OFlags::WRONLY | OFlags::RDWR) {
        return rustix::fs::openat(dir, name, flags, Mode::empty());
    }
    match rustix::fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        other => other,
    }
}

/// Opens a directory, to list it where permitted and else at least to reach its entries.
pub fn open_dir(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    match open_beneath(&dir, name, DIR_FLAGS) {
        Err(Errno::ACCESS) => open_beneath(dir, name, OFlags::PATH | OFlags::DIRECTORY),
        other => other,
    }
}

/// Attributes of `name` itself in `dir`.
pub fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Attr, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT).map(|st| Attr::from(&st))
}

/// Attributes of what `fd` refers to.
pub fn stat_fd(fd: impl AsFd) -> Result<Attr, Errno> {
    rustix::fs::fstat(fd).map(|st| Attr::from(&st))
}

/// Where a directory is in its layer. Fixed in lowers; in the upper it follows renames.
#[derive(Debug, Clone)]
struct Location {
    parent: Option<Arc<LayerDir>>,
    name: Arc<[u8]>,
}

/// Marks that say what its entries may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirFlags {
    /// The impure mark.
    pub impure: bool,
    /// The mark for plain `.wh.` names.
    pub plain_names: bool,
}

#[derive(Debug, Default)]
struct FdSlot {
    fd: Option<Arc<CachedFd>>,
    used: bool,
    /// No path leads here any more (removed while open), or never did (a root): the descriptor is all there is.
    pinned: bool,
}

/// A directory of one layer. It keeps its descriptor while the budget allows and finds its way back by name
/// from its parent otherwise.
#[derive(Debug)]
pub struct LayerDir {
    /// The layer it belongs to.
    pub layer: LayerNo,
    /// Its entry in the layer's index, if the layer has one.
    pub index: Option<EntryId>,
    /// `st_dev`
    pub dev: u64,
    /// `st_ino`
    pub ino: u64,
    /// The opaque mark it carries; in the upper it may get one.
    opaque: Mutex<Opaque>,
    /// It may hold copied-up entries: those may carry marks of their own.
    impure: AtomicBool,
    /// Names that begin with `.wh.` are ordinary in it.
    plain_names: AtomicBool,
    location: Mutex<Location>,
    slot: Mutex<FdSlot>,
}

impl LayerDir {
    /// The root of a layer, on an open descriptor.
    pub fn root(
        layer: LayerNo,
        index: Option<EntryId>,
        attr: &Attr,
        opaque: Opaque,
        flags: DirFlags,
        fd: Arc<CachedFd>,
    ) -> Arc<Self> {
        Arc::new(Self {
            layer,
            index,
            dev: attr.dev,
            ino: attr.ino,
            opaque: Mutex::new(opaque),
            impure: AtomicBool::new(flags.impure),
            plain_names: AtomicBool::new(flags.plain_names),
            location: Mutex::new(Location { parent: None, name: Arc::from(&b""[..]) }),
            slot: Mutex::new(FdSlot { fd: Some(fd), used: true, pinned: true }),
        })
    }

    /// The directory `name` in `parent`; `fd` is its descriptor where it had to be opened already.
    #[allow(clippy::too_many_arguments)]
    pub fn child(
        parent: &Arc<Self>,
        name: Arc<[u8]>,
        index: Option<EntryId>,
        (dev, ino): (u64, u64),
        opaque: Opaque,
        flags: DirFlags,
        fd: Option<OwnedFd>,
        fds: &FdCache,
    ) -> Arc<Self> {
        let has_fd = fd.is_some();
        let dir = Arc::new(Self {
            layer: parent.layer,
            index,
            dev,
            ino,
            opaque: Mutex::new(opaque),
            impure: AtomicBool::new(flags.impure),
            plain_names: AtomicBool::new(flags.plain_names),
            location: Mutex::new(Location { parent: Some(parent.clone()), name }),
            slot: Mutex::new(FdSlot { fd: fd.map(|fd| fds.count(fd)), used: true, pinned: false }),
        });
        if has_fd {
            fds.register(Arc::downgrade(&dir) as Weak<dyn Holder>);
        }
        dir
    }

    /// See [`Self::set_impure`].
    pub fn is_impure(&self) -> bool {
        self.impure.load(Ordering::Relaxed)
    }

    /// Notes that the impure mark is on disk.
    pub fn set_impure(&self) {
        self.impure.store(true, Ordering::Relaxed);
    }

    /// The opaque mark it carries.
    pub fn opaque(&self) -> Opaque {
        *self.opaque.lock()
    }

    /// Notes the mark that is on disk from now on.
    pub fn set_opaque(&self, opaque: Opaque) {
        *self.opaque.lock() = opaque;
    }

    /// True when names that begin with `.wh.` are no marks in this directory.
    pub fn has_plain_names(&self) -> bool {
        self.plain_names.load(Ordering::Relaxed)
    }

    /// Notes that the mark for plain names is on disk.
    pub fn set_plain_names(&self) {
        self.plain_names.store(true, Ordering::Relaxed);
    }

    /// Its descriptor, opened again from the nearest ancestor that has one when the budget took it.
    ///
    /// # Errors
    /// What openat(2) lists; ESTALE when another object has taken its place behind our back.
    pub fn fd(self: &Arc<Self>, context: &FdContext) -> Result<Arc<CachedFd>, Errno> {
        {
            let mut slot = self.slot.lock();
            if let Some(fd) = &slot.fd {
                let fd = fd.clone();
                slot.used = true;
                return Ok(fd);
            }
        }
        // Renames of upper directories change names and disk together under this lock.
        let _steady = context.tree.read();
        self.reopen(&context.fds)
    }

    fn reopen(self: &Arc<Self>, fds: &FdCache) -> Result<Arc<CachedFd>, Errno> {
        if let Some(fd) = &self.slot.lock().fd {
            return Ok(fd.clone());
        }
        let Location { parent, name } = self.location.lock().clone();
        let parent = parent.ok_or(Errno::STALE)?.reopen(fds)?;
        let fd = with_fds(fds, || open_dir(parent.as_fd(), &name))?;
        let attr = stat_fd(&fd)?;
        if (attr.dev, attr.ino) != (self.dev, self.ino) {
            return Err(Errno::STALE);
        }
        let fd = {
            let mut slot = self.slot.lock();
            if let Some(other) = &slot.fd {
                return Ok(other.clone());
            }
            let fd = fds.count(fd);
            slot.fd = Some(fd.clone());
            slot.used = true;
            fd
        };
        fds.register(Arc::downgrade(self) as Weak<dyn Holder>);
        Ok(fd)
    }

    /// Follows a rename in the upper. The caller holds [`FdContext::tree`] for writing.
    pub fn moved(&self, parent: Arc<Self>, name: Arc<[u8]>) {
        *self.location.lock() = Location { parent: Some(parent), name };
    }

    /// Keeps the descriptor for good, since no path leads here any more.
    ///
    /// # Errors
    /// What opening it takes.
    pub fn pin(self: &Arc<Self>, context: &FdContext) -> Result<(), Errno> {
        loop {
            self.fd(context)?;
            let mut slot = self.slot.lock();
            if slot.fd.is_some() {
                slot.pinned = true;
                return Ok(());
            }
        }
    }

    /// Undoes [`Self::pin`], where the removal did not come about.
    pub fn unpin(&self) {
        if self.location.lock().parent.is_some() {
            self.slot.lock().pinned = false;
        }
    }

    /// Path from the layer's root, components joined by slashes; empty for the root.
    pub fn path(&self) -> Vec<u8> {
        let Location { parent, name } = self.location.lock().clone();
        match parent {
            None => Vec::new(),
            Some(parent) => {
                let mut path = parent.path();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&name);
                path
            }
        }
    }
}

impl Holder for LayerDir {
    fn evict(&self) -> Evicted {
        let mut slot = self.slot.lock();
        if slot.pinned {
            return if slot.fd.is_some() { Evicted::Later } else { Evicted::Gone };
        }
        if std::mem::take(&mut slot.used) {
            return Evicted::Later;
        }
        slot.fd = None;
        Evicted::Gone
    }
}

/// What finding a directory again takes.
#[derive(Debug)]
pub struct FdContext {
    /// The descriptors in use.
    pub fds: FdCache,
    /// Held for writing while a rename of an upper directory changes the disk and the names in memory; for
    /// reading while a path is walked. Order: after all locks of nodes.
    pub tree: RwLock<()>,
}
