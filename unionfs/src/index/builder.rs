//! Building an index: from a tree on disk, or entry by entry while a layer is unpacked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::error::IndexError;
use super::format::{self, Body, Head, Header, Kind};
use super::metadata::{self, IndexedStat, ObjectMetadata, Timestamp};
use super::view::View;
use super::walk::{Visitor, walk};
use super::writer::{self, IndexWriter};

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSummary {
    /// The index file.
    pub path: PathBuf,
    /// Names in the layer, the root included.
    pub entries: u32,
    /// How many of them are directories.
    pub directories: u32,
    /// Names beyond the first of hard-linked objects.
    pub extra_links: u32,
    /// Size of the index in bytes.
    pub bytes: u64,
}

/// Builds the index of the tree at `tree` and puts it at `out` (see [`super::default_index_path`]), replacing an
/// older one. Nothing may write to the tree meanwhile; what the timestamps of its directories show is refused.
///
/// The tree's filesystem is synced first: an index that survives a crash must not describe files that did not.
///
/// # Errors
/// `Tree`, `Changed`, `CrossesFilesystem` with the object's path; `File`; `WithinTree`; `TooLarge`; `Namespace`.
pub fn build_index(tree: &Path, out: &Path) -> Result<IndexSummary, IndexError> {
    build(tree, out, true)
}

/// As [`build_index`], for a tree and an index that are not yet in their place: nothing is synced. Before they are
/// published, the caller syncs their filesystem.
///
/// # Errors
/// As [`build_index`].
pub fn build_index_unsynced(tree: &Path, out: &Path) -> Result<IndexSummary, IndexError> {
    build(tree, out, false)
}

fn build(tree: &Path, out: &Path, sync: bool) -> Result<IndexSummary, IndexError> {
    let failed = |operation| move |source| IndexError::Tree { operation, path: PathBuf::new(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(tree, flags, Mode::empty()).map_err(failed("open"))?;
    refuse_within(root.as_fd(), out)?;
    if sync {
        rustix::fs::syncfs(&root).map_err(failed("sync the filesystem of"))?;
    }
    let metadata = ObjectMetadata::read(&root, c"").map_err(failed("read metadata of"))?;
    let mut builder = IndexBuilder::new(&metadata)?;
    walk(root.as_fd(), ROOT, &metadata.stat, &mut builder)?;
    builder.write(out, sync)
}

/// Collects the entries of a layer. Takes about 250 bytes of memory for each entry, and each distinct set of
/// xattrs once.
#[derive(Debug)]
pub struct IndexBuilder {
    view: View,
    root_birth: Option<Timestamp>,
    /// Later is newer. What was replaced or removed stays here, out of reach.
    nodes: Vec<Node>,
    xattrs: XattrSets,
}

#[derive(Debug)]
struct Node {
    stat: IndexedStat,
    symlink: Option<Box<[u8]>>,
    xattrs: Option<SetOffset>,
    children: BTreeMap<Box<[u8]>, NodeId>,
}

type NodeId = u32;
const ROOT: NodeId = 0;

impl IndexBuilder {
    /// Begins with the root directory.
    ///
    /// # Errors
    /// `BadPath` when `root` is not a directory's; `Namespace`.
    pub fn new(root: &ObjectMetadata) -> Result<Self, IndexError> {
        let mut builder = Self {
            view: View::current()?,
            root_birth: root.birth,
            nodes: Vec::new(),
            xattrs: XattrSets::default(),
        };
        if !root.stat.is_dir() {
            return Err(bad_path(&[], "the root must be a directory"));
        }
        builder.push_node(root)?;
        Ok(builder)
    }

    /// Adds the object at `path`, its names from the root on; the empty path is the root. Metadata is what the
    /// object has on disk in the end ([`ObjectMetadata::read`]): a directory's changes as long as entries are made in
    /// it, so give it again when that is over. Of the names of one inode, the newest metadata holds for all.
    ///
    /// What is there already is replaced: a directory by a directory keeps its entries, everything else
    /// goes with all beneath it.
    ///
    /// # Errors
    /// `BadPath` when the parent was not added, when a name is none, or when type and metadata disagree; `TooLarge`.
    pub fn insert(&mut self, path: &[&[u8]], metadata: &ObjectMetadata) -> Result<(), IndexError> {
        let Some((name, parents)) = path.split_last() else {
            if !metadata.stat.is_dir() {
                return Err(bad_path(path, "the root must be a directory"));
            }
            self.root_birth = metadata.birth;
            return self.update_node(ROOT, metadata);
        };
        let parent = self.find(parents).ok_or_else(|| bad_path(path, "its parent is not in the layer"))?;
        if !self.nodes[parent as usize].stat.is_dir() {
            return Err(bad_path(path, "its parent is not a directory"));
        }
        check_object(name, metadata).map_err(|why| bad_path(path, why))?;
        match self.nodes[parent as usize].children.get(*name) {
            Some(&old) if metadata.stat.is_dir() && self.nodes[old as usize].stat.is_dir() => {
                self.update_node(old, metadata)
            }
            _ => self.add_child(parent, name, metadata).map(|_| ()),
        }
    }

    /// Removes the object at `path` with all beneath it; false when there is none. The root cannot be removed.
    pub fn remove(&mut self, path: &[&[u8]]) -> bool {
        let Some((name, parents)) = path.split_last() else { return false };
        let parent = self.find(parents);
        parent.is_some_and(|parent| self.nodes[parent as usize].children.remove(*name).is_some())
    }

    /// Writes the index to `out`: into a temporary file beside it, synced, then renamed. The tree itself must be on
    /// disk already.
    ///
    /// # Errors
    /// `File`, `TooLarge`.
    pub fn finish(self, out: &Path) -> Result<IndexSummary, IndexError> {
        self.write(out, true)
    }

    /// As [`finish`](Self::finish), for a tree that is not yet in its place: nothing is synced. Before tree and index are
    /// published, the caller syncs their filesystem.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_unsynced(self, out: &Path) -> Result<IndexSummary, IndexError> {
        self.write(out, false)
    }

    fn write(mut self, out: &Path, sync: bool) -> Result<IndexSummary, IndexError> {
        self.unite_links();
        let order = Order::of(&self.nodes)?;
        let mut file = IndexWriter::create(out)?;
        let mut header = Header {
            byte_order: format::BYTE_ORDER,
            entry_count: order.entries.len() as u32,
            block_len: format::BLOCK_LEN as u32,
            id_maps: self.view.id_maps,
            trusted_xattrs: self.view.trusted_xattrs,
            root_birth: self.root_birth,
            built_at: now(),
            xattrs_at: file.position(),
            ..Header::default()
        };
        file.write(&self.xattrs.bytes)?;
        header.xattrs_len = file.position() - header.xattrs_at;
        header.records_at = file.position();
        let mut offsets = Vec::with_capacity((order.entries.len() + 1) * format::OFFSET_LEN);
        let mut record = Vec::new();
        for (number, entry) in order.entries.iter().enumerate() {
            offsets.extend_from_slice(&(file.position() - header.records_at).to_le_bytes());
            let node = &self.nodes[entry.node as usize];
            let next_link = order.links.get(&node.stat.ino).and_then(|l| next_link(l, number as u32));
            let head = Head {
                name: entry.name,
                mode: node.stat.mode,
                ino: node.stat.ino,
                kind: node.kind(entry.first_child),
            };
            let next_link = next_link.filter(|_| !node.stat.is_dir());
            let body = Body::new(&node.stat, entry.parent, next_link, node.xattrs);
            record.clear();
            format::encode_record(&head, &body, &mut record)
                .ok_or(IndexError::TooLarge { what: "bytes in a name" })?;
            file.write(&record)?;
        }
        header.records_len = file.position() - header.records_at;
        offsets.extend_from_slice(&header.records_len.to_le_bytes());
        header.offsets_at = file.position();
        file.write(&offsets)?;
        Ok(IndexSummary {
            path: out.to_path_buf(),
            entries: header.entry_count,
            directories: order.directories,
            extra_links: order.links.values().map(|names| names.len() as u32 - 1).sum(),
            bytes: file.publish(header, sync)?,
        })
    }

    fn find(&self, path: &[&[u8]]) -> Option<NodeId> {
        path.iter().try_fold(ROOT, |at, name| self.nodes[at as usize].children.get(*name).copied())
    }

    fn add_child(
        &mut self,
        parent: NodeId,
        name: &[u8],
        metadata: &ObjectMetadata,
    ) -> Result<NodeId, IndexError> {
        let id = self.push_node(metadata)?;
        self.nodes[parent as usize].children.insert(name.into(), id);
        Ok(id)
    }

    fn push_node(&mut self, metadata: &ObjectMetadata) -> Result<NodeId, IndexError> {
        let too_many = IndexError::TooLarge { what: "entries" };
        let id =
            NodeId::try_from(self.nodes.len()).ok().filter(|id| *id < NodeId::MAX - 1).ok_or(too_many)?;
        let xattrs = self.xattrs.add(&metadata.xattrs)?;
        let symlink = metadata.symlink.as_deref().map(Box::from);
        self.nodes.push(Node { stat: metadata.stat, symlink, xattrs, children: BTreeMap::new() });
        Ok(id)
    }

    fn update_node(&mut self, id: NodeId, metadata: &ObjectMetadata) -> Result<(), IndexError> {
        let xattrs = self.xattrs.add(&metadata.xattrs)?;
        let node = &mut self.nodes[id as usize];
        node.stat = metadata.stat;
        node.xattrs = xattrs;
        Ok(())
    }

    /// Gives all names of an inode the metadata that was read last: an earlier name was read when there were
    /// fewer links.
    fn unite_links(&mut self) {
        let reachable = self.reachable();
        let mut newest: HashMap<u64, NodeId> = HashMap::new();
        for &id in &reachable {
            let stat = &self.nodes[id as usize].stat;
            if stat.nlink > 1 && !stat.is_dir() {
                let known = newest.entry(stat.ino).or_insert(id);
                *known = (*known).max(id);
            }
        }
        for id in reachable {
            let stat = &self.nodes[id as usize].stat;
            if let Some(&source) = newest.get(&stat.ino).filter(|source| **source != id && !stat.is_dir()) {
                let Node { stat, xattrs, .. } = &self.nodes[source as usize];
                let (stat, xattrs, symlink) = (*stat, *xattrs, self.nodes[source as usize].symlink.clone());
                let node = &mut self.nodes[id as usize];
                (node.stat, node.xattrs, node.symlink) = (stat, xattrs, symlink);
            }
        }
    }

    fn reachable(&self) -> Vec<NodeId> {
        let mut found = vec![ROOT];
        let mut at = 0;
        while let Some(&id) = found.get(at) {
            found.extend(self.nodes[id as usize].children.values());
            at += 1;
        }
        found
    }
}

impl Visitor for IndexBuilder {
    type Directory = NodeId;

    fn object(
        &mut self,
        directory: NodeId,
        name: &[u8],
        object: &ObjectMetadata,
    ) -> Result<Option<NodeId>, IndexError> {
        self.add_child(directory, name, object).map(Some)
    }

    fn listed(&mut self, _directory: NodeId) -> Result<(), IndexError> {
        Ok(())
    }
}

impl Node {
    fn kind(&self, first_child: u32) -> Kind<'_> {
        match self.stat.file_type() {
            FileType::Directory => Kind::Directory { first_child, children: self.children.len() as u32 },
            FileType::Symlink => Kind::Symlink(self.symlink.as_deref().unwrap_or_default()),
            FileType::CharacterDevice | FileType::BlockDevice => {
                Kind::Device { major: self.stat.rdev_major, minor: self.stat.rdev_minor }
            }
            FileType::RegularFile | FileType::Fifo | FileType::Socket | FileType::Unknown => Kind::Plain,
        }
    }
}

/// The entries in the order of their numbers: level by level, the children of one directory together, sorted.
struct Order<'a> {
    entries: Vec<Ordered<'a>>,
    directories: u32,
    /// Numbers of the names of each inode that has several in the layer, rising.
    links: HashMap<u64, Vec<u32>>,
}

struct Ordered<'a> {
    node: NodeId,
    parent: u32,
    /// 0 without children.
    first_child: u32,
    name: &'a [u8],
}

impl<'a> Order<'a> {
    fn of(nodes: &'a [Node]) -> Result<Self, IndexError> {
        let mut entries = vec![Ordered { node: ROOT, parent: 0, first_child: 0, name: b"" }];
        let mut directories = 0;
        let mut links: HashMap<u64, Vec<u32>> = HashMap::new();
        let mut number: u32 = 0;
        while let Some(entry) = entries.get(number as usize) {
            let node = &nodes[entry.node as usize];
            directories += u32::from(node.stat.is_dir());
            if node.stat.nlink > 1 && !node.stat.is_dir() {
                links.entry(node.stat.ino).or_default().push(number);
            }
            if !node.children.is_empty() {
                // There are no more entries than nodes, which are counted by u32.
                entries[number as usize].first_child = entries.len() as u32;
                entries.extend(node.children.iter().map(|(name, &child)| Ordered {
                    node: child,
                    parent: number,
                    first_child: 0,
                    name,
                }));
            }
            number += 1;
        }
        links.retain(|_, names| names.len() > 1);
        Ok(Self { entries, directories, links })
    }
}

/// The number after `number` in the ring of `names`.
fn next_link(names: &[u32], number: u32) -> Option<u32> {
    let at = names.binary_search(&number).ok()?;
    names.get(at + 1).or(names.first()).copied()
}

/// Where a set begins in the section of xattrs.
type SetOffset = u64;

/// Sets of xattrs, each kept once: whole layers share a handful of security labels.
#[derive(Debug, Default)]
struct XattrSets {
    bytes: Vec<u8>,
    /// By hash. Where two sets share one, the second is not shared with later ones.
    known: HashMap<u64, SetOffset>,
}

impl XattrSets {
    fn add(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<Option<SetOffset>, IndexError> {
        if xattrs.is_empty() {
            return Ok(None);
        }
        let set = format::encode_xattrs(xattrs).ok_or(IndexError::TooLarge { what: "bytes of xattrs" })?;
        let mut hasher = DefaultHasher::new();
        set.hash(&mut hasher);
        let end = self.bytes.len() as u64;
        let known = *self.known.entry(hasher.finish()).or_insert(end);
        if self.bytes.get(known as usize..).is_some_and(|there| there.starts_with(&set)) {
            return Ok(Some(known));
        }
        self.bytes.extend_from_slice(&set);
        Ok(Some(end))
    }
}

fn check_object(name: &[u8], metadata: &ObjectMetadata) -> Result<(), &'static str> {
    let file_type = metadata.stat.file_type();
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/')) {
        Err("not a file name")
    } else if file_type == FileType::Unknown {
        Err("its mode names no type")
    } else if (file_type == FileType::Symlink) != metadata.symlink.is_some() {
        Err("a symlink, and nothing else, has a target")
    } else {
        Ok(())
    }
}

fn bad_path(path: &[&[u8]], why: &'static str) -> IndexError {
    IndexError::BadPath { path: OsString::from_vec(path.join(&b'/')).into(), why }
}

/// Refuses a place for the index that is in the tree, whatever ways lead there.
fn refuse_within(root: BorrowedFd<'_>, out: &Path) -> Result<(), IndexError> {
    let failed = |source: Errno| IndexError::file("find the place of", out)(source.into());
    let identity = |fd: BorrowedFd<'_>| {
        metadata::stat_at(fd, c"").map(|st| (st.stx_dev_major, st.stx_dev_minor, st.stx_ino)).map_err(failed)
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = identity(root)?;
    let mut seen = HashSet::new();
    let mut at: OwnedFd =
        rustix::fs::open(writer::directory_of(out), flags, Mode::empty()).map_err(failed)?;
    loop {
        let here = identity(at.as_fd())?;
        if here == tree {
            return Err(IndexError::WithinTree { path: out.to_path_buf() });
        }
        // The root of the machine is its own parent.
        if !seen.insert(here) {
            return Ok(());
        }
        at = rustix::fs::openat(&at, c"..", flags, Mode::empty()).map_err(failed)?;
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs() as i64, since.subsec_nanos())
}
