//! Objects of the merged view, and the table of those that the kernel or an operation refers to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use parking_lot::{Mutex, RwLock};

use crate::attr::{Kind, Time};
use crate::fdcache::{CachedFd, Evicted, Holder};
use crate::layer::dir::LayerDir;
use crate::layer::object::Object;
use crate::listing::Listing;

/// The layer directories that a merged directory is made of.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// The upper's, once there is one.
    pub upper: Option<Arc<LayerDir>>,
    /// The lowers', topmost first.
    pub lowers: Vec<Arc<LayerDir>>,
}

/// A non-directory in the upper.
#[derive(Debug, Clone)]
pub struct UpperObject {
    /// Its real inode number on the upper's filesystem.
    pub ino: u64,
    /// It has attributes only; the data is in `Place::lower`.
    pub metacopy: bool,
    /// It came from a lower layer, so its mark says what number it has.
    pub has_origin: bool,
    /// Its descriptor, where no name leads to it any more, or not the one in `Place`.
    pub held: Option<Arc<HeldFd>>,
}

/// The descriptor of a removed file, counted: its space comes free when it is closed.
#[derive(Debug)]
pub struct HeldFd {
    hold: Hold,
    count: Arc<AtomicUsize>,
}

/// A descriptor that leads to an object whatever its names are.
#[derive(Debug)]
pub enum Hold {
    /// Opened for it.
    Own(OwnedFd),
    /// The one that the file was in use by.
    Shared(Arc<CachedFd>),
}

impl HeldFd {
    /// Holds a descriptor.
    pub fn new(hold: Hold, count: &Arc<AtomicUsize>) -> Arc<Self> {
        count.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { hold, count: count.clone() })
    }
}

impl AsFd for Hold {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            Self::Shared(fd) => fd.as_fd(),
        }
    }
}

impl AsFd for HeldFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hold.as_fd()
    }
}

impl Drop for HeldFd {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where an object is. Its upper part is called `name` in the upper part of `parent`.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory of the merged view; `None` for the root and for what was removed.
    pub parent: Option<Arc<Node>>,
    /// The name in it.
    pub name: Arc<[u8]>,
    /// Set when the upper has it (never for directories: see [`Parts`]). Boxed: most nodes of a large tree have none.
    pub upper: Option<Box<UpperObject>>,
    /// The lower object whose attributes, or, under a metadata-only copy, data count.
    pub lower: Option<Object>,
}

impl Place {
    /// Something must be copied before data can be written.
    pub fn lacks_upper_data(&self) -> bool {
        self.upper.as_ref().is_none_or(|u| u.metacopy)
    }
}

/// An open file kept for requests that come without a handle.
#[derive(Debug, Clone)]
pub struct OpenFile {
    /// The descriptor.
    pub fd: Arc<CachedFd>,
    /// Open for writing.
    pub writable: bool,
    /// It is the upper file, with its data.
    pub upper: bool,
}

#[derive(Debug, Default)]
pub(crate) struct FileSlot {
    pub(crate) file: Option<OpenFile>,
    pub(crate) used: bool,
    /// Handles that are open: the descriptor stays.
    pub(crate) handles: u32,
    /// Grows with each change of the place, so that a descriptor opened before is not put in after.
    pub(crate) epoch: u32,
}

/// A listing, counted against the budget of names in memory for as long as it lives.
#[derive(Debug)]
pub(crate) struct Listed {
    listing: Listing,
    total: Arc<AtomicUsize>,
    counted: usize,
}

impl Listed {
    pub(crate) fn new(listing: Listing, total: &Arc<AtomicUsize>) -> Self {
        let counted = listing.len();
        total.fetch_add(counted, Ordering::Relaxed);
        Self { listing, total: total.clone(), counted }
    }

    pub(crate) fn get(&self) -> &Listing {
        &self.listing
    }

    /// Changes the listing and counts it again.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Listing) -> T) -> T {
        let result = change(&mut self.listing);
        let now = self.listing.len();
        if now >= self.counted {
            self.total.fetch_add(now - self.counted, Ordering::Relaxed);
        } else {
            self.total.fetch_sub(self.counted - now, Ordering::Relaxed);
        }
        self.counted = now;
        result
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.total.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// The names of a directory, when they are known.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) listing: Option<Listed>,
    /// Grows with each change, so that a listing read from disk meanwhile is not believed.
    pub(crate) generation: u64,
    /// When the listing was read; only asked where layers may change behind the mount.
    pub(crate) read_at: Option<std::time::Instant>,
}

/// What only directories have.
#[derive(Debug)]
pub struct Directory {
    /// Serialises changes of the names in it. Order: after the rename lock, parents of one rename by rising number,
    /// before [`Node::change`] of any node.
    pub(crate) namespace: Mutex<()>,
    /// Held around a change of the directory on disk, so that copy-up can put its times back without taking another
    /// change's times away. After all other locks of nodes, and never two but by rising number.
    pub(crate) disk: Mutex<()>,
    /// Replaced whole; never changed in place.
    pub(crate) parts: RwLock<Arc<Parts>>,
    /// Short lock, never held across I/O.
    pub(crate) names: RwLock<Names>,
    /// The change time that copy-up left on disk, and the one to show for it: copy-up changes no directory as users
    /// see it. Holds until the directory is changed truly.
    pub(crate) ctime: Mutex<Option<(Time, Time)>>,
    /// The listing was used since the last sweep.
    pub(crate) used: AtomicBool,
    /// The directory is in the queue of those that can be asked to drop their listing.
    pub(crate) queued: AtomicBool,
}

/// One object of the merged view.
#[derive(Debug)]
pub struct Node {
    /// Its number, for life.
    pub ino: u64,
    /// Its type, for life.
    pub kind: Kind,
    /// Where it is. Short lock, never held across I/O.
    pub place: RwLock<Place>,
    /// Held while the object is copied up, changes its attributes, or changes its place; not for reading it.
    /// Order: after `Directory::namespace`; two nodes by rising number.
    pub change: Mutex<()>,
    /// The number was read from a mark on disk: nobody has seen the lower object that once had it.
    pub claimed: bool,
    /// What the number of links shown differs by from the one on disk: names of a lower object that were removed,
    /// or names that count in a lower layer without being visible and were not made when it was copied up.
    pub link_bias: AtomicI32,
    /// Mode as last seen, to know of set-id bits without asking.
    pub mode: AtomicU32,
    /// The time of change that the kernel keeps for a file whose pages it writes back, as far as it was told or has
    /// told: pages that are written back must not make the file look newer.
    /// Boxed: few nodes have one, and a million nodes pay for its room.
    pub(crate) kernel_mtime: Mutex<Option<Box<Time>>>,
    /// The kernel has removed file capabilities, and nothing was asked since.
    pub(crate) capability_removed: AtomicBool,
    /// The file has no capabilities, as long as nobody sets them through the mount. The kernel asks before the first
    /// write and each change of the owner, and remembers nothing.
    pub(crate) lacks_capability: AtomicBool,
    pub(crate) file: Mutex<FileSlot>,
    dir: Option<Box<Directory>>,
    table: Weak<Table>,
}

impl Node {
    /// The directory's state; `None` for other types.
    pub fn dir(&self) -> Option<&Directory> {
        self.dir.as_deref()
    }

    /// The layer directories of a directory; none for other types.
    pub fn parts(&self) -> Arc<Parts> {
        self.dir.as_ref().map(|d| d.parts.read().clone()).unwrap_or_default()
    }

    /// True when `name` in `parent` is where this node is.
    pub fn is_at(&self, parent: &Arc<Node>, name: &[u8]) -> bool {
        let place = self.place.read();
        *place.name == *name && place.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, parent))
    }

    /// The descriptor that the file is in use by, if it is the upper file's.
    pub(crate) fn upper_file(&self) -> Option<Arc<CachedFd>> {
        let slot = self.file.lock();
        slot.file.as_ref().filter(|file| file.upper).map(|file| file.fd.clone())
    }

    /// Drops the cached descriptor: it does not lead to the right file any more.
    pub(crate) fn forget_file(&self) {
        let mut slot = self.file.lock();
        slot.epoch = slot.epoch.wrapping_add(1);
        slot.file = None;
    }
}

impl Holder for Node {
    fn evict(&self) -> Evicted {
        let mut slot = self.file.lock();
        if std::mem::take(&mut slot.used) || slot.handles > 0 && slot.file.is_some() {
            return Evicted::Later;
        }
        slot.file = None;
        Evicted::Gone
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.remove_dead(self.ino);
        }
    }
}

#[derive(Debug)]
struct Known {
    node: Weak<Node>,
    /// Kept alive by the kernel's references.
    pinned: Option<Arc<Node>>,
    lookups: u64,
}

/// All nodes in use, by number. A shard is never held across a system call or another lock.
#[derive(Debug)]
pub struct Table {
    nodes: DashMap<u64, Known>,
}

impl Default for Table {
    fn default() -> Self {
        Self { nodes: crate::shards::map() }
    }
}

impl Table {
    /// The node of this number, if it is in use.
    pub fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.nodes.get(&ino)?.node.upgrade()
    }

    /// The node of this number, made by `place` and `parts` if it is not in use. The flag tells whether it was made.
    pub fn intern(
        self: &Arc<Self>,
        ino: u64,
        kind: Kind,
        claimed: bool,
        make: impl FnOnce() -> (Place, Option<Parts>),
    ) -> (Arc<Node>, bool) {
        let build = || {
            let (place, parts) = make();
            let dir = parts.map(|parts| {
                Box::new(Directory {
                    namespace: Mutex::new(()),
                    disk: Mutex::new(()),
                    parts: RwLock::new(Arc::new(parts)),
                    names: RwLock::default(),
                    ctime: Mutex::new(None),
                    used: AtomicBool::new(false),
                    queued: AtomicBool::new(false),
                })
            });
            Arc::new(Node {
                ino,
                kind,
                claimed,
                place: RwLock::new(place),
                change: Mutex::new(()),
                link_bias: AtomicI32::new(0),
                mode: AtomicU32::new(u32::MAX),
                kernel_mtime: Mutex::new(None),
                capability_removed: AtomicBool::new(false),
                lacks_capability: AtomicBool::new(false),
                file: Mutex::default(),
                dir,
                table: Arc::downgrade(self),
            })
        };
        match self.nodes.entry(ino) {
            Slot::Occupied(mut slot) => match slot.get().node.upgrade() {
                Some(node) => (node, false),
                None => {
                    let node = build();
                    slot.insert(Known { node: Arc::downgrade(&node), pinned: None, lookups: 0 });
                    (node, true)
                }
            },
            Slot::Vacant(slot) => {
                let node = build();
                slot.insert(Known { node: Arc::downgrade(&node), pinned: None, lookups: 0 });
                (node, true)
            }
        }
    }

    /// The kernel takes one more reference.
    pub fn add_lookup(&self, node: &Arc<Node>) {
        if let Some(mut known) = self.nodes.get_mut(&node.ino) {
            known.lookups += 1;
            if known.pinned.is_none() {
                known.pinned = Some(node.clone());
            }
        }
    }

    /// The kernel gives `count` references back; true when it has none left.
    pub fn forget(&self, ino: u64, count: u64) -> bool {
        let unpinned = {
            let Some(mut known) = self.nodes.get_mut(&ino) else { return true };
            known.lookups = known.lookups.saturating_sub(count);
            if known.lookups > 0 {
                return false;
            }
            known.pinned.take()
        };
        // Dropping the last reference comes back into the table: the shard is free again here.
        drop(unpinned);
        true
    }

    /// True while the kernel holds references to the node.
    pub fn is_pinned(&self, ino: u64) -> bool {
        self.nodes.get(&ino).is_some_and(|known| known.lookups > 0)
    }

    /// Number of nodes in use.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True when no node is in use.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn remove_dead(&self, ino: u64) {
        self.nodes.remove_if(&ino, |_, known| known.node.strong_count() == 0);
    }
}

/// What [`Node::mode`] is before it was read.
pub const MODE_UNKNOWN: u32 = u32::MAX;

impl Node {
    /// Set-id bits may be set: the mode says so, or was never read.
    pub fn may_have_set_id(&self) -> bool {
        let mode = self.mode.load(Ordering::Relaxed);
        mode == MODE_UNKNOWN || mode & (libc::S_ISUID | libc::S_ISGID) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(parent: Option<Arc<Node>>) -> Place {
        Place { parent, name: Arc::from(&b"n"[..]), upper: None, lower: None }
    }

    #[test]
    fn nodes_live_while_referred_to() {
        let table = Arc::new(Table::default());
        let (root, made) = table.intern(1, Kind::Dir, false, || (place(None), Some(Parts::default())));
        assert!(made);
        let (child, _) = table.intern(2, Kind::File, false, || (place(Some(root.clone())), None));
        table.add_lookup(&child);
        table.add_lookup(&child);
        drop((child, root));
        assert_eq!(table.len(), 2, "the child keeps its parent");
        table.forget(2, 1);
        assert_eq!(table.len(), 2);
        table.forget(2, 1);
        assert!(table.is_empty(), "and lets it go");
    }

    #[test]
    fn one_number_is_one_node() {
        let table = Arc::new(Table::default());
        let (a, _) = table.intern(5, Kind::File, false, || (place(None), None));
        let (b, made) = table.intern(5, Kind::File, false, || (place(None), None));
        assert!(!made && Arc::ptr_eq(&a, &b));
        drop(a);
        drop(b);
        assert!(table.get(5).is_none());
    }
}
