//! The union filesystem's operations: plain types in and out, no mount needed.
//!
//! An [`Overlay`] may be called from any number of threads. Locks are taken in this order: the rename lock, the
//! namespaces of directories by rising number, the change locks of nodes by rising number,
//! [`FdContext::tree`](crate::layer::dir::FdContext::tree); the short locks ([`Node::place`], names, descriptor
//! slots, table shards) are never held across a system call or while another lock is taken. Data is copied with
//! nothing but the change lock of that one node held.

mod attr;
mod copy_up;
mod create;
mod file;
mod lookup;
mod readdir;
mod remove;
mod rename;
mod statfs;
mod xattr;

pub use attr::{SetAttr, SetTime};
pub use create::NewObject;
pub use file::{FileHandle, OpenOptions};
pub use readdir::{DirEntry, ReadDir};
pub use rename::RenameMode;
pub use statfs::StatFs;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use parking_lot::Mutex;

use crate::attr::{Attr, Kind};
use crate::error::{Errno, OpError, OpResult};
use crate::fdcache::CachedFd;
use crate::ino::{InoMap, ROOT_INO};
use crate::layer::Layers;
use crate::layer::dir::{LayerDir, LayerNo};
use crate::layer::upper::Upper;
use crate::listing::{Entry, Listing};
use crate::node::{Directory, Listed, Node, Parts, Place, Table};
use crate::sys::creds;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem uid, as seen through the mount.
    pub uid: u32,
    /// Filesystem gid, as seen through the mount.
    pub gid: u32,
    /// Process (thread) id, 0 when the kernel does not say.
    pub pid: u32,
}

/// An object as an operation answers it.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The node; its number is `attr.ino`.
    pub node: Arc<Node>,
    /// Its attributes, as shown.
    pub attr: Attr,
}

/// The union of some layers.
#[derive(Debug)]
pub struct Overlay {
    pub(crate) layers: Layers,
    inos: InoMap,
    table: Arc<Table>,
    root: Arc<Node>,
    /// Renames of directories to another parent, one at a time.
    rename: Mutex<()>,
    /// Upper objects whose number could not be written on them: real number to the mount's.
    unmarked_origins: DashMap<u64, u64>,
    /// Directories that a redirect has brought to another place, by layer and path in it: so that other names of a
    /// hard link in them are found.
    redirected: DashMap<(LayerNo, Vec<u8>), Arc<Node>>,
    /// Copies that are being published: real number of the copy to the number of its node. Only these may take the
    /// place of a lower object; a number on disk alone proves nothing (layers change, files are copied with marks).
    publishing: DashMap<u64, u64>,
    /// Names of lower objects that were removed, by number, while no node remembers it.
    lost_links: DashMap<u64, i32>,
    /// Directories whose number is taken by the same directory at another place: place to number.
    aliases: DashMap<(u64, Arc<[u8]>), u64>,
    /// Directories with a listing in memory, for the budget.
    listed: Mutex<VecDeque<Weak<Node>>>,
    listed_names: Arc<AtomicUsize>,
    /// Removed upper files that are still held open, and their space with them.
    held: Arc<AtomicUsize>,
    /// This process' own filesystem ids.
    own: (u32, u32),
    /// The kernel keeps the time of change of files (its writeback cache is on).
    kernel_keeps_mtime: AtomicBool,
    /// Callers can be acted for without losing capabilities.
    can_act: bool,
}

/// Names kept in memory over all directories; beyond it the listings used least are dropped.
const NAMES_BUDGET: usize = 1 << 20;

impl Overlay {
    /// The union of opened layers. To be called on the thread that opened them.
    ///
    /// # Errors
    /// What reading the roots can fail with.
    pub fn new(layers: Layers) -> OpResult<Self> {
        let devices = layers.upper.iter().map(|u| u.root.dev).chain(layers.lowers.iter().map(|l| l.root.dev));
        let inos = InoMap::new(layers.config.xino, devices);
        let table = Arc::new(Table::default());
        let upper = layers.upper.as_ref().map(|u| u.root.clone());
        let mut lowers: Vec<_> = layers.lowers.iter().map(|l| l.root.clone()).collect();
        let hides = |dir: &Arc<LayerDir>| dir.opaque() == crate::marks::Opaque::Yes;
        if upper.as_ref().is_some_and(hides) {
            lowers.clear();
        }
        if let Some(at) = lowers.iter().position(hides) {
            lowers.truncate(at + 1);
        }
        let parts = Parts { upper, lowers };
        let place = Place { parent: None, name: Arc::from(&b""[..]), upper: None, lower: None };
        let (root, _) = table.intern(ROOT_INO, Kind::Dir, false, || (place, Some(parts)));
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(Self {
            layers,
            inos,
            table,
            root,
            rename: Mutex::new(()),
            unmarked_origins: crate::shards::map(),
            redirected: crate::shards::map(),
            publishing: crate::shards::map(),
            lost_links: crate::shards::map(),
            aliases: crate::shards::map(),
            listed: Mutex::default(),
            listed_names: Arc::default(),
            held: Arc::default(),
            kernel_keeps_mtime: AtomicBool::new(false),
            own,
            can_act: creds::has_capability(CAP_SETUID) && creds::has_capability(CAP_SETGID),
        })
    }

    /// From now on the kernel keeps the time of change of files it writes back, and says when it is to be set.
    pub fn leave_mtime_to_kernel(&self) {
        self.kernel_keeps_mtime.store(true, Ordering::Relaxed);
    }

    /// The root directory; number 1.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The layers.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The table of nodes, for the kernel's references.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The node of a number that was given out.
    ///
    /// # Errors
    /// ESTALE for a number that no node has.
    pub fn node(&self, ino: u64) -> OpResult<Arc<Node>> {
        if ino == ROOT_INO {
            return Ok(self.root.clone());
        }
        self.table.get(ino).ok_or(OpError::Errno(Errno::STALE))
    }

    /// Runs an operation that takes space. When the filesystem is full while removed files are held, it is run again
    /// as soon as one of them is let go: the kernel says so after the removal has returned, so that who removes and
    /// then writes would meet a full disk that is not.
    ///
    /// # Errors
    /// What the operation fails with.
    pub fn with_room<T>(&self, run: impl Fn() -> OpResult<T>) -> OpResult<T> {
        let mut deadline = None;
        loop {
            let held = self.held.load(Ordering::Relaxed);
            let error = match run() {
                Err(e) if matches!(e.errno(), Errno::NOSPC | Errno::DQUOT) && held > 0 => e,
                other => return other,
            };
            let until = *deadline.get_or_insert_with(|| std::time::Instant::now() + ROOM_WAIT);
            while self.held.load(Ordering::Relaxed) >= held {
                if std::time::Instant::now() >= until {
                    return Err(error);
                }
                std::thread::sleep(ROOM_PAUSE);
            }
        }
    }

    fn upper(&self) -> OpResult<&Upper> {
        self.layers.upper.as_ref().ok_or(OpError::Errno(Errno::ROFS))
    }

    /// The descriptor of a layer directory.
    fn fd(&self, dir: &Arc<LayerDir>) -> Result<Arc<CachedFd>, Errno> {
        dir.fd(&self.layers.context)
    }

    /// The upper part of a directory that was copied up.
    fn upper_dir(&self, node: &Node) -> OpResult<Arc<LayerDir>> {
        node.parts().upper.clone().ok_or(OpError::Errno(Errno::STALE))
    }

    /// The thread acts as the caller until the guard is dropped; with ids as they are on disk.
    fn act_as(&self, caller: &Caller, umask: u32) -> OpResult<creds::ActingAs> {
        let (uid, gid) = self.disk_ids(caller.uid, caller.gid)?;
        if !creds::set_umask(umask) {
            tracing::debug!("this thread has no umask of its own: modes are masked before");
        }
        if !self.can_act || !creds::prepare_thread() {
            // Objects are the mounter's, as far as the disk goes.
            return Ok(creds::ActingAs::new(self.own.0, self.own.1, self.own).map_err(errno_of)?);
        }
        Ok(creds::ActingAs::new(uid, gid, self.own).map_err(errno_of)?)
    }

    /// What is made next gets the mode it is given.
    fn no_umask(&self) {
        if !creds::set_umask(0) {
            tracing::debug!("this thread has no umask of its own");
        }
    }

    /// Owner on disk for an owner as seen through the mount.
    fn disk_ids(&self, uid: u32, gid: u32) -> OpResult<(u32, u32)> {
        let config = &self.layers.config;
        let invalid = OpError::Errno(Errno::INVAL);
        let uid = config.uid_map.to_disk(uid);
        let gid = config.gid_map.to_disk(gid);
        uid.zip(gid).ok_or(invalid)
    }

    /// Runs `read` on the names of a directory, which are read from the layers first where they are not known.
    fn with_names<T>(&self, dir: &Arc<Node>, read: impl Fn(&Listing) -> T) -> OpResult<T> {
        let state = dir.dir().ok_or(Errno::NOTDIR)?;
        {
            let names = state.names.read();
            if let Some(listing) = names.listing.as_ref().filter(|_| !self.is_outdated(&names)) {
                state.used.store(true, Ordering::Relaxed);
                return Ok(read(listing.get()));
            }
        }
        self.load_names(dir, read)
    }

    fn is_outdated(&self, names: &crate::node::Names) -> bool {
        self.layers.config.volatile_lower
            && names.read_at.is_some_and(|at| at.elapsed() > std::time::Duration::from_secs(1))
    }

    /// Reads the names from the layers, keeps them, and runs `read` on them.
    fn load_names<T>(&self, dir: &Arc<Node>, read: impl Fn(&Listing) -> T) -> OpResult<T> {
        let state = dir.dir().ok_or(Errno::NOTDIR)?;
        loop {
            let generation = state.names.read().generation;
            let parts = dir.parts();
            let upper = parts.upper.as_ref().map(|d| self.layers.scan(d)).transpose()?;
            let mut lowers = Vec::with_capacity(parts.lowers.len());
            let mut opaque = upper.as_ref().is_some_and(|s| s.opaque);
            for part in &parts.lowers {
                if opaque {
                    break;
                }
                let scan = self.layers.scan(part)?;
                opaque = scan.opaque;
                lowers.push(scan);
            }
            if lowers.len() < parts.lowers.len() {
                // `.wh..wh..opq` shows only in the listing: what it hides is no part of the directory.
                let mut fewer = Parts::clone(&parts);
                fewer.lowers.truncate(lowers.len());
                let mut now = state.parts.write();
                if !Arc::ptr_eq(&now, &parts) {
                    continue;
                }
                *now = Arc::new(fewer);
            }
            let listing = Listing::merge(upper, lowers);
            let mut names = state.names.write();
            if names.generation != generation {
                continue;
            }
            let result = read(&listing);
            names.listing = Some(Listed::new(listing, &self.listed_names));
            names.read_at = Some(std::time::Instant::now());
            drop(names);
            state.used.store(true, Ordering::Relaxed);
            self.keep_within_budget(dir, state);
            return Ok(result);
        }
    }

    /// Drops the listings used least when there are too many names in memory.
    fn keep_within_budget(&self, dir: &Arc<Node>, state: &Directory) {
        if !state.queued.swap(true, Ordering::Relaxed) {
            let mut listed = self.listed.lock();
            listed.push_back(Arc::downgrade(dir));
            // Directories that were forgotten leave the queue before it is mostly made of them.
            if listed.len().is_power_of_two() && listed.len() >= 1024 {
                listed.retain(|node| node.strong_count() > 0);
            }
        }
        if self.listed_names.load(Ordering::Relaxed) <= NAMES_BUDGET {
            return;
        }
        let rounds = 2 * self.listed.lock().len();
        for _ in 0..rounds {
            if self.listed_names.load(Ordering::Relaxed) <= NAMES_BUDGET / 8 * 7 {
                break;
            }
            let Some(weak) = self.listed.lock().pop_front() else { break };
            let Some(node) = weak.upgrade() else { continue };
            let Some(state) = node.dir() else { continue };
            if Arc::ptr_eq(&node, dir) || state.used.swap(false, Ordering::Relaxed) {
                self.listed.lock().push_back(weak);
                continue;
            }
            state.queued.store(false, Ordering::Relaxed);
            let dropped = state.names.write().listing.take();
            drop(dropped);
        }
    }

    /// The entry of a name, visible or not.
    fn entry(&self, dir: &Arc<Node>, name: &[u8]) -> OpResult<Option<Entry>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.with_names(dir, |listing| listing.get(name).cloned())
    }

    /// Notes what the upper has under a name from now on. To be called after the disk was changed.
    fn update_entry(&self, dir: &Node, name: &Arc<[u8]>, change: impl FnOnce(&mut Entry)) {
        let Some(state) = dir.dir() else { return };
        let mut names = state.names.write();
        names.generation += 1;
        if let Some(listing) = &mut names.listing {
            listing.change(|l| l.update(name, change));
        }
    }

    /// Remembers the number of what a name leads to, so that the next lookup finds the node at once.
    fn hint(&self, dir: &Node, name: &[u8], ino: u64) {
        let Some(state) = dir.dir() else { return };
        if let Some(listing) = &mut state.names.write().listing {
            listing.change(|l| {
                if let Some(entry) = l.get_mut(name) {
                    entry.ino = ino;
                }
            });
        }
    }

    /// Where an upper non-directory is: the directory's descriptor and the name in it, checked against a change of
    /// place meanwhile; or its own descriptor.
    fn with_upper<T>(&self, node: &Node, act: impl Fn(UpperPlace<'_>) -> Result<T, Errno>) -> OpResult<T> {
        loop {
            let (parent, name, held, ino) = {
                let place = node.place.read();
                let upper = place.upper.as_ref().ok_or(Errno::STALE)?;
                (place.parent.clone(), place.name.clone(), upper.held.clone(), upper.ino)
            };
            let result = match (held, parent) {
                (Some(fd), _) => return Ok(act(UpperPlace::Held(fd.as_fd()))?),
                (None, Some(parent)) => {
                    let dir = self.upper_dir(&parent)?;
                    let fd = self.fd(&dir)?;
                    act(UpperPlace::At { dir: &dir, fd: fd.as_fd(), name: &name, ino })
                }
                (None, None) => return Err(Errno::STALE.into()),
            };
            match result {
                // Renamed or removed since: look where it is now, unless it has not moved.
                Err(Errno::NOENT | Errno::STALE) => {
                    let place = node.place.read();
                    let unmoved =
                        *place.name == *name && place.upper.as_ref().is_some_and(|u| u.held.is_none());
                    if unmoved {
                        return Err(Errno::STALE.into());
                    }
                }
                other => return Ok(other?),
            }
        }
    }
}

/// How an upper non-directory is reached.
#[derive(Debug, Clone, Copy)]
enum UpperPlace<'a> {
    /// Only by its own descriptor.
    Held(BorrowedFd<'a>),
    /// By a name; `ino` is its real number.
    At { dir: &'a Arc<LayerDir>, fd: BorrowedFd<'a>, name: &'a [u8], ino: u64 },
}

/// How long in all, and how long each time, removed files are waited for when the filesystem is full.
const ROOM_WAIT: std::time::Duration = std::time::Duration::from_millis(200);
const ROOM_PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// Longest name in bytes (ext4, xfs, btrfs, tmpfs agree).
const NAME_MAX: usize = 255;
/// linux/capability.h
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;

fn errno_of(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}
