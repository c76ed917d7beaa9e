//! Unpacking: one tar stream into one tree.
//!
//! Must hold, whatever the archive says: nothing outside of the tree is written, no symlink on disk is followed, what
//! the archive may ask for is bounded. Names are resolved in memory (see [`super::tree`]); the disk is reached one name
//! at a time beneath directories that were made here.
//!
//! Whiteouts follow the OCI image specification (layer.md): they hide what is in the layers below and never what the
//! same archive contains, whichever comes first.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use thiserror::Error;

use super::disk::{self, Attributes, Marks, Target};
use super::index::{IndexFailure, IndexedObject, LayerIndexer, ObjectStat};
use super::merged::Stack;
use super::remove::remove_at;
use super::tree::{DirectoryPlan, InodeId, Kind, NodeId, ROOT, Tree};
use crate::tar::{Entry, EntryKind, TarError, TarLimits, TarReader, lossy};

/// What one layer may ask for before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the archive, and directories that it does not have but needs.
    pub entries: u64,
    /// Bytes of file data, holes not counted.
    pub bytes: u64,
    /// Device nodes.
    pub devices: u64,
    /// Bytes of names and values of extended attributes.
    pub xattr_bytes: u64,
    /// Of the archive's form.
    pub tar: TarLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            bytes: 1 << 40,
            devices: 4096,
            xattr_bytes: 256 << 20,
            tar: TarLimits::default(),
        }
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The archive is not in order.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that no layer may have.
    #[error("entry {path:?}: {what}")]
    Refused {
        /// Name of the entry.
        path: String,
        /// Why.
        what: &'static str,
    },
    /// More than what is allowed.
    #[error("the layer has more than {limit} {what}; it is refused")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The disk.
    #[error("{operation} {path:?}")]
    Disk {
        /// What was attempted.
        operation: &'static str,
        /// Name within the layer.
        path: String,
        /// What came of it.
        source: Errno,
    },
    /// The index could not be made.
    #[error("make the layer's index")]
    Index(#[source] IndexFailure),
}

/// Symlinks followed in one name, as the kernel counts them.
const MAX_LINKS: usize = 40;
/// Levels of directories: as many as PATH_MAX lets a path have. Symlinks on the way would allow for any number, and all
/// work on a directory takes time in proportion.
const MAX_DEPTH: u32 = 2048;
/// Directories kept open.
const KEPT_OPEN: usize = 64;

/// Unpacks `archive`, an uncompressed tar stream, into the empty directory `root`. Reads to the end of the stream.
///
/// # Errors
/// Whatever [`UnpackError`] tells. What was written until then stays.
pub fn unpack<R: BufRead>(
    archive: R,
    root: OwnedFd,
    marks: Marks,
    limits: Limits,
) -> Result<Unpacked, UnpackError> {
    let mut unpacker = Unpacked::new(root, marks, limits);
    let mut reader = TarReader::new(archive, limits.tar);
    while let Some(entry) = reader.next_entry()? {
        unpacker.entry(&entry, &mut reader)?;
    }
    reader.drain()?;
    Ok(unpacker)
}

/// A tree whose directories have not got their attributes yet.
#[derive(Debug)]
pub struct Unpacked {
    tree: Tree,
    marks: Marks,
    limits: Limits,
    root: Arc<OwnedFd>,
    open: HashMap<NodeId, Arc<OwnedFd>>,
    pending: Vec<PendingLink>,
    /// Directories that no entry has described so far.
    implied: u64,
    entries: u64,
    /// Directories made because entries lie in them.
    parents: u64,
    bytes: u64,
    devices: u64,
    xattr_bytes: u64,
    warnings: Vec<String>,
}

#[derive(Debug)]
struct PendingLink {
    inode: InodeId,
    target: Vec<u8>,
}

impl Unpacked {
    fn new(root: OwnedFd, marks: Marks, limits: Limits) -> Self {
        Self {
            tree: Tree::new(),
            marks,
            limits,
            root: Arc::new(root),
            open: HashMap::new(),
            pending: Vec::new(),
            // The root.
            implied: 1,
            entries: 0,
            parents: 0,
            bytes: 0,
            devices: 0,
            xattr_bytes: 0,
            warnings: Vec::new(),
        }
    }

    /// Bytes of file data in the layer.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries of the archive.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// What could not be kept, in words.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The form of the marks.
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// True when the tree cannot be completed without the layers below: the archive links to files there, or says
    /// nothing of directories that may be there.
    pub fn needs_lowers(&self) -> bool {
        self.links_below() || self.implied > 0
    }

    /// True when the archive links to files that must be in a layer below.
    pub fn links_below(&self) -> bool {
        !self.pending.is_empty()
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<(), UnpackError> {
        self.entries += 1;
        self.check_entries()?;
        let xattr_bytes =
            entry.xattrs.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum::<u64>();
        self.xattr_bytes = self.xattr_bytes.saturating_add(xattr_bytes);
        if self.xattr_bytes > self.limits.xattr_bytes {
            let (what, limit) = ("bytes of extended attributes", self.limits.xattr_bytes);
            return Err(UnpackError::Limit { what, limit });
        }
        let refused = |what| UnpackError::Refused { path: lossy(&entry.path), what };
        if entry.path.first() == Some(&b'/') {
            return Err(refused("its name is absolute"));
        }
        let names = components(&entry.path).map_err(refused)?;
        let Some((name, parents)) = names.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(refused("the root of a layer is a directory"));
            }
            return self.plan(ROOT, entry);
        };
        // What is in AUFS' own directories is none either.
        if parents.first().is_some_and(|first| first.starts_with(b".wh..wh.") && *first != b".wh..wh..opq") {
            return Ok(());
        }
        // In front of whiteouts too, so that they mean what they would mean anywhere.
        let parent = match self.directory(parents, &entry.path) {
            // umoci notes what was in a directory that the layer replaces by a file: all of that is gone anyway.
            Err(UnpackError::Refused { what: NOT_A_DIRECTORY, .. }) if name.starts_with(b".wh.") => {
                return Ok(());
            }
            other => other?,
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return match hidden {
                b".wh..opq" => {
                    if let Some(plan) = self.tree.plan_mut(parent) {
                        plan.is_opaque = true;
                    }
                    Ok(())
                }
                b"" | b"." | b".." => Err(refused("a whiteout of the directory it is in")),
                // What AUFS kept for itself (`.wh..wh.plnk`, `.wh..wh.orph`): no object of the tree.
                own if own.starts_with(b".wh.") => Ok(()),
                name => self.whiteout(parent, name),
            };
        }
        let existing = self.tree.child(parent, name);
        let mut hides = false;
        if let Some(id) = existing {
            match (self.tree.kind(id), entry.kind) {
                (Kind::Directory(_), EntryKind::Directory) => return self.plan(id, entry),
                (Kind::Whiteout, EntryKind::Directory) => hides = true,
                // A name that links to itself stays what it is.
                (_, EntryKind::HardLink) if self.links_to_itself(id, &entry.link) => return Ok(()),
                _ => {}
            }
            self.remove(id)?;
        }
        match entry.kind {
            EntryKind::Directory => {
                let id = self.make_directory(parent, name, hides)?;
                self.plan(id, entry)
            }
            EntryKind::File => self.file(parent, name, entry, reader),
            EntryKind::HardLink => self.hard_link(parent, name, entry),
            EntryKind::Symlink => self.symlink(parent, name, entry),
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.special(parent, name, entry)
            }
        }
    }

    /// Directories that the archive only takes for granted cost as much as those it has.
    fn check_entries(&self) -> Result<(), UnpackError> {
        if self.entries + self.parents > self.limits.entries {
            return Err(UnpackError::Limit { what: "entries", limit: self.limits.entries });
        }
        Ok(())
    }

    fn make_parent(&mut self, parent: NodeId, name: &[u8], opaque: bool) -> Result<NodeId, UnpackError> {
        self.parents += 1;
        self.check_entries()?;
        self.make_directory(parent, name, opaque)
    }

    /// The directory that `names` lead to, made where it is missing.
    fn directory(&mut self, names: &[&[u8]], of: &[u8]) -> Result<NodeId, UnpackError> {
        let refused = |what| UnpackError::Refused { path: lossy(of), what };
        let mut left: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut at = ROOT;
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                at = self.tree.node(at).parent;
                continue;
            }
            if name.starts_with(b".wh.") {
                return Err(refused("its name leads through a whiteout (`.wh.`), which is no directory"));
            }
            let Some(id) = self.tree.child(at, &name) else {
                at = self.make_parent(at, &name, false)?;
                continue;
            };
            match self.tree.kind(id) {
                Kind::Directory(_) => at = id,
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(refused("its name leads through too many symlinks"));
                    }
                    if target.first() == Some(&b'/') {
                        at = ROOT;
                    }
                    let target = target.to_vec();
                    left.extend(parts(&target).rev().map(<[u8]>::to_vec));
                }
                Kind::Whiteout => {
                    self.remove(id)?;
                    at = self.make_parent(at, &name, true)?;
                }
                Kind::File | Kind::Special | Kind::Pending => {
                    return Err(refused(NOT_A_DIRECTORY));
                }
            }
        }
        Ok(at)
    }

    fn make_directory(&mut self, parent: NodeId, name: &[u8], opaque: bool) -> Result<NodeId, UnpackError> {
        if self.tree.node(parent).depth >= MAX_DEPTH {
            let mut names = self.tree.path(parent);
            names.push(name);
            let what = "a directory more than 2048 levels deep, deeper than any path leads";
            return Err(UnpackError::Refused { path: lossy(&names.join(&b'/')), what });
        }
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        self.on_disk("make directory", parent, name, rustix::fs::mkdirat(&*dir, &c_name, Mode::RWXU))?;
        let plan =
            DirectoryPlan { mode: 0o755, is_opaque: opaque, is_implied: true, ..DirectoryPlan::default() };
        self.implied += 1;
        let inode = self.tree.add_inode(Kind::Directory(Box::new(plan)));
        Ok(self.tree.add_name(parent, name, inode))
    }

    /// Notes what a directory is to look like.
    fn plan(&mut self, id: NodeId, entry: &Entry) -> Result<(), UnpackError> {
        if let Some(plan) = self.tree.plan_mut(id) {
            self.implied -= u64::from(std::mem::take(&mut plan.is_implied));
            plan.mode = entry.mode;
            (plan.uid, plan.gid) = (entry.uid, entry.gid);
            (plan.mtime, plan.atime) = (entry.mtime, entry.atime);
            plan.xattrs.clone_from(&entry.xattrs);
        }
        Ok(())
    }

    fn whiteout(&mut self, parent: NodeId, name: &[u8]) -> Result<(), UnpackError> {
        if let Some(id) = self.tree.child(parent, name) {
            // It hides what is below, not what this layer has. Only a directory would show more than its own.
            if let Some(plan) = self.tree.plan_mut(id) {
                plan.is_opaque = true;
            }
            return Ok(());
        }
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        let made = disk::whiteout(self.marks, dir.as_fd(), &c_name);
        self.on_disk("make whiteout", parent, name, made)?;
        let inode = self.tree.add_inode(Kind::Whiteout);
        self.tree.add_name(parent, name, inode);
        self.record(inode, Target::Name(dir.as_fd(), &disk::whiteout_name(self.marks, &c_name)))
            .map_err(|source| self.disk_error("look at", parent, name, source))
    }

    fn file<R: BufRead>(
        &mut self,
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(entry.data_len());
        if self.bytes > self.limits.bytes {
            return Err(UnpackError::Limit { what: "bytes of data", limit: self.limits.bytes });
        }
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        let file = disk::create_file(dir.as_fd(), &c_name);
        let file = self.on_disk("create", parent, name, file)?;
        let failed = |source| self.disk_error("write", parent, name, source);
        match &entry.sparse {
            None => loop {
                let bytes = reader.data()?;
                if bytes.is_empty() {
                    break;
                }
                let len = bytes.len();
                write_all(&file, bytes).map_err(failed)?;
                reader.consume(len);
            },
            Some(pieces) => {
                for &(mut at, mut left) in pieces {
                    while left > 0 {
                        let bytes = reader.data()?;
                        let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                        write_all_at(&file, &bytes[..len], at).map_err(failed)?;
                        reader.consume(len);
                        at += len as u64;
                        left -= len as u64;
                    }
                }
                rustix::fs::ftruncate(&file, entry.size).map_err(failed)?;
            }
        }
        let inode = self.tree.add_inode(Kind::File);
        self.tree.add_name(parent, name, inode);
        self.settle(inode, Target::Open(file.as_fd()), entry, "file", parent, name)
    }

    fn symlink(&mut self, parent: NodeId, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let refused = |what| UnpackError::Refused { path: lossy(&entry.path), what };
        if entry.link.is_empty() {
            return Err(refused("a symlink without target"));
        }
        let target =
            CString::new(entry.link.as_slice()).map_err(|_| refused("a symlink with a NUL in its target"))?;
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        let inode = self.tree.add_inode(Kind::Symlink(entry.link.as_slice().into()));
        if self.marks.overrides {
            // User xattrs cannot be set on a symlink: it is kept as a file.
            let file = disk::create_file(dir.as_fd(), &c_name)
                .and_then(|file| write_all(&file, target.to_bytes()).map(|()| file));
            let file = self.on_disk("create", parent, name, file)?;
            self.tree.add_name(parent, name, inode);
            return self.settle(inode, Target::Open(file.as_fd()), entry, "symlink", parent, name);
        }
        self.on_disk("make symlink", parent, name, rustix::fs::symlinkat(&target, &*dir, &c_name))?;
        self.tree.add_name(parent, name, inode);
        self.settle(inode, Target::Name(dir.as_fd(), &c_name), entry, "symlink", parent, name)
    }

    fn special(&mut self, parent: NodeId, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let refused = |what| UnpackError::Refused { path: lossy(&entry.path), what };
        let (major, minor) = entry.device;
        let (kind, word) = match entry.kind {
            EntryKind::CharDevice if (major, minor) == (0, 0) => {
                return Err(refused("a device 0:0, which means a whiteout in a layer on disk"));
            }
            EntryKind::CharDevice => (FileType::CharacterDevice, format!("char-{major}-{minor}")),
            EntryKind::BlockDevice => (FileType::BlockDevice, format!("block-{major}-{minor}")),
            _ => (FileType::Fifo, "pipe".to_owned()),
        };
        if kind != FileType::Fifo {
            // The kernel's own width of the two numbers.
            if major >= 1 << 12 || minor >= 1 << 20 {
                return Err(refused("a device number that Linux does not have"));
            }
            self.devices += 1;
            if self.devices > self.limits.devices {
                return Err(UnpackError::Limit { what: "devices", limit: self.limits.devices });
            }
        }
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        let inode = self.tree.add_inode(Kind::Special);
        if self.marks.overrides {
            let file = self.on_disk("create", parent, name, disk::create_file(dir.as_fd(), &c_name))?;
            self.tree.add_name(parent, name, inode);
            return self.settle(inode, Target::Open(file.as_fd()), entry, &word, parent, name);
        }
        let device = rustix::fs::makedev(major, minor);
        let made = rustix::fs::mknodat(&*dir, &c_name, kind, Mode::RUSR | Mode::WUSR, device);
        self.on_disk("make device", parent, name, made)?;
        self.tree.add_name(parent, name, inode);
        self.settle(inode, Target::Name(dir.as_fd(), &c_name), entry, &word, parent, name)
    }

    fn hard_link(&mut self, parent: NodeId, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let refused = |what| UnpackError::Refused { path: lossy(&entry.path), what };
        // A slash in front means the layer's root, as docker reads it.
        let names = components(&entry.link).map_err(|what| match what {
            UP => refused("a hard link that leads out of the layer"),
            what => refused(what),
        })?;
        if names.is_empty() {
            return Err(refused("a hard link to the root"));
        }
        let Some(target) = self.find(&names) else {
            let inode = self.tree.add_inode(Kind::Pending);
            self.tree.add_name(parent, name, inode);
            self.pending.push(PendingLink { inode, target: entry.link.clone() });
            return Ok(());
        };
        let inode = self.tree.node(target).inode;
        match self.tree.kind(target) {
            Kind::Directory(_) => return Err(refused("a hard link to a directory")),
            Kind::Whiteout => return Err(refused("a hard link to what the same layer removes")),
            Kind::Pending => {
                self.tree.add_name(parent, name, inode);
                return Ok(());
            }
            Kind::Symlink(_) | Kind::File | Kind::Special => {}
        }
        let (from, to) = (self.fd(self.tree.node(target).parent)?, self.fd(parent)?);
        let from_name = self.c_name(self.tree.node(target).parent, &self.tree.node(target).name)?;
        let to_name = self.c_name(parent, name)?;
        let linked = rustix::fs::linkat(&*from, &from_name, &*to, &to_name, rustix::fs::AtFlags::empty());
        self.on_disk("link", parent, name, linked)?;
        self.tree.add_name(parent, name, inode);
        self.tree.inode_mut(inode).is_stale = true;
        Ok(())
    }

    /// Follows symlinks on the way and not at the end, as link(2).
    fn find(&self, names: &[&[u8]]) -> Option<NodeId> {
        let mut left: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let (mut at, mut links) = (ROOT, 0);
        while let Some(name) = left.pop() {
            if name == b".." {
                at = self.tree.node(at).parent;
                continue;
            }
            let id = self.tree.child(at, &name)?;
            match self.tree.kind(id) {
                Kind::Symlink(target) if !left.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    if target.first() == Some(&b'/') {
                        at = ROOT;
                    }
                    left.extend(parts(target).rev().map(<[u8]>::to_vec));
                }
                _ => at = id,
            }
        }
        Some(at)
    }

    fn links_to_itself(&self, id: NodeId, link: &[u8]) -> bool {
        let target = components(link).ok().and_then(|names| self.find(&names));
        target.is_some_and(|target| self.tree.node(target).inode == self.tree.node(id).inode)
    }

    fn remove(&mut self, id: NodeId) -> Result<(), UnpackError> {
        let node = self.tree.node(id);
        let (parent, name) = (node.parent, node.name.clone());
        let dir = self.fd(parent)?;
        let mut c_name = self.c_name(parent, &name)?;
        if matches!(self.tree.kind(id), Kind::Whiteout) {
            c_name = disk::whiteout_name(self.marks, &c_name);
        }
        // Whatever of it is open would keep its space.
        self.open.clear();
        let removed = remove_at(dir.as_fd(), &c_name);
        self.on_disk("replace", parent, &name, removed)?;
        self.tree.remove(id);
        Ok(())
    }

    /// Attributes of a new object, and what it looks like then.
    fn settle(
        &mut self,
        inode: InodeId,
        target: Target<'_>,
        entry: &Entry,
        type_word: &str,
        parent: NodeId,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let attributes = Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            atime: entry.atime,
            xattrs: &entry.xattrs,
            type_word,
        };
        let applied = disk::apply(self.marks, target, entry.kind == EntryKind::Symlink, &attributes);
        let refused = self.on_disk("give attributes to", parent, name, applied)?;
        self.warn_of(&entry.path, refused);
        self.record(inode, target).map_err(|source| self.disk_error("look at", parent, name, source))
    }

    fn warn_of(&mut self, path: &[u8], xattrs: Vec<Vec<u8>>) {
        for name in xattrs {
            self.warnings.push(format!("{:?}: xattr {:?} cannot be kept here", lossy(path), lossy(&name)));
        }
    }

    fn record(&mut self, inode: InodeId, target: Target<'_>) -> Result<(), Errno> {
        let (stat, xattrs) = (disk::stat(target)?, disk::xattrs(target)?);
        let inode = self.tree.inode_mut(inode);
        (inode.stat, inode.xattrs, inode.is_stale) = (stat, xattrs, false);
        Ok(())
    }

    /// The directory `id`, open.
    fn fd(&mut self, id: NodeId) -> Result<Arc<OwnedFd>, UnpackError> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        if let Some(fd) = self.open.get(&id) {
            return Ok(fd.clone());
        }
        let mut way = vec![id];
        let mut above = self.tree.node(id).parent;
        let mut fd = loop {
            if above == ROOT {
                break self.root.clone();
            }
            if let Some(fd) = self.open.get(&above) {
                break fd.clone();
            }
            way.push(above);
            above = self.tree.node(above).parent;
        };
        if self.open.len() >= KEPT_OPEN {
            self.open.clear();
        }
        for id in way.into_iter().rev() {
            let parent = self.tree.node(id).parent;
            let name = self.tree.node(id).name.clone();
            let opened = disk::open_directory(&*fd, &self.c_name(parent, &name)?);
            fd = Arc::new(self.on_disk("open", parent, &name, opened)?);
        }
        self.open.insert(id, fd.clone());
        Ok(fd)
    }

    fn c_name(&self, parent: NodeId, name: &[u8]) -> Result<CString, UnpackError> {
        // `components` lets no NUL through, and targets of symlinks were C strings.
        CString::new(name).map_err(|_| self.disk_error("name", parent, name, Errno::INVAL))
    }

    fn on_disk<T>(
        &self,
        operation: &'static str,
        parent: NodeId,
        name: &[u8],
        result: Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        result.map_err(|source| self.disk_error(operation, parent, name, source))
    }

    fn disk_error(&self, operation: &'static str, parent: NodeId, name: &[u8], source: Errno) -> UnpackError {
        let mut names = self.tree.path(parent);
        names.push(name);
        UnpackError::Disk { operation, path: lossy(&names.join(&b'/')), source }
    }

    /// Completes the tree: links to files of the layers below (`lowers`, the topmost first) become copies of
    /// them, directories get their attributes, and the index is put at `index`.
    ///
    /// # Errors
    /// `Refused` when a link's target is nowhere; `Disk`; `Index`.
    pub fn finish(
        &mut self,
        lowers: &Stack,
        indexer: &dyn LayerIndexer,
        index: &Path,
    ) -> Result<(), UnpackError> {
        for link in std::mem::take(&mut self.pending) {
            self.complete_link(&link, lowers)?;
        }
        let nodes = self.tree.reachable();
        if self.implied > 0 && !lowers.is_empty() {
            self.take_after_lowers(&nodes, lowers)?;
        }
        // Children first: what is in a directory must not change any more when its times are set.
        for &id in nodes.iter().rev() {
            self.finish_directory(id)?;
        }
        let stale: Vec<NodeId> =
            nodes.iter().copied().filter(|id| self.tree.inode(self.tree.node(*id).inode).is_stale).collect();
        for id in stale {
            let (parent, name) = (self.tree.node(id).parent, self.tree.node(id).name.clone());
            let (dir, c_name) = (self.fd(parent)?, self.c_name(parent, &name)?);
            let inode = self.tree.node(id).inode;
            self.record(inode, Target::Name(dir.as_fd(), &c_name))
                .map_err(|source| self.disk_error("look at", parent, &name, source))?;
        }
        self.open.clear();
        self.write_index(&nodes, indexer, index).map_err(UnpackError::Index)
    }

    /// Directories that the archive takes for granted look as they do in the layers below.
    fn take_after_lowers(&mut self, nodes: &[NodeId], lowers: &Stack) -> Result<(), UnpackError> {
        for &id in nodes {
            if !matches!(self.tree.kind(id), Kind::Directory(plan) if plan.is_implied && !plan.is_opaque) {
                continue;
            }
            let names = self.tree.path(id);
            let shown = lossy(&names.join(&b'/'));
            let failed =
                |source| UnpackError::Disk { operation: "look below for", path: shown.clone(), source };
            let found = match names.as_slice() {
                [] => lowers.root_entry().map_err(failed)?,
                names => match lowers.lookup(names).map_err(failed)? {
                    Some(object) if object.directory().is_some() => {
                        Some(object.describe(lowers).map_err(failed)?)
                    }
                    _ => None,
                },
            };
            if let Some(entry) = found {
                self.plan(id, &entry)?;
            }
        }
        Ok(())
    }

    fn complete_link(&mut self, link: &PendingLink, lowers: &Stack) -> Result<(), UnpackError> {
        let names: Vec<NodeId> =
            self.tree.reachable().into_iter().filter(|id| self.tree.node(*id).inode == link.inode).collect();
        let Some((&first, others)) = names.split_first() else { return Ok(()) };
        let target = components(&link.target)
            .map_err(|what| UnpackError::Refused { path: lossy(&link.target), what })?;
        let (parent, name) = (self.tree.node(first).parent, self.tree.node(first).name.clone());
        let shown = lossy(&self.tree.path(first).join(&b'/'));
        let found = lowers.lookup(&target);
        let Some(object) = self.on_disk("look up the target of", parent, &name, found)? else {
            return Err(UnpackError::Refused {
                path: shown,
                what: "a hard link to something that is neither in this layer nor below it",
            });
        };
        let described = object.describe(lowers);
        let mut entry = self.on_disk("read the target of", parent, &name, described)?;
        entry.path = shown.into_bytes();
        self.tree.remove(first);
        match entry.kind {
            EntryKind::File => {
                let opened = object.open(lowers);
                let source = self.on_disk("open the target of", parent, &name, opened)?;
                let dir = self.fd(parent)?;
                let c_name = self.c_name(parent, &name)?;
                let file = disk::create_file(dir.as_fd(), &c_name);
                let file = File::from(self.on_disk("create", parent, &name, file)?);
                let copied = std::io::copy(&mut File::from(source), &mut &file)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
                self.bytes += self.on_disk("copy", parent, &name, copied)?;
                let inode = self.tree.add_inode(Kind::File);
                self.tree.add_name(parent, &name, inode);
                self.settle(inode, Target::Open(file.as_fd()), &entry, "file", parent, &name)?;
            }
            EntryKind::Symlink => self.symlink(parent, &name, &entry)?,
            EntryKind::Directory | EntryKind::HardLink => {
                return Err(UnpackError::Refused {
                    path: lossy(&entry.path),
                    what: "a hard link to a directory",
                });
            }
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.special(parent, &name, &entry)?;
            }
        }
        let made = self.tree.path(self.tree.child(parent, &name).unwrap_or(ROOT)).join(&b'/');
        for &other in others {
            let (parent, name) = (self.tree.node(other).parent, self.tree.node(other).name.clone());
            self.tree.remove(other);
            let mut link = Entry::new(name.to_vec(), EntryKind::HardLink);
            link.link.clone_from(&made);
            self.hard_link(parent, &name, &link)?;
        }
        Ok(())
    }

    fn finish_directory(&mut self, id: NodeId) -> Result<(), UnpackError> {
        let inode = self.tree.node(id).inode;
        let Kind::Directory(plan) = &mut self.tree.inode_mut(inode).kind else { return Ok(()) };
        let plan = std::mem::take(plan);
        let (parent, name) = (self.tree.node(id).parent, self.tree.node(id).name.clone());
        let fd = self.fd(id)?;
        let target = Target::Open(fd.as_fd());
        let attributes = Attributes {
            mode: plan.mode,
            uid: plan.uid,
            gid: plan.gid,
            mtime: plan.mtime,
            atime: plan.atime,
            xattrs: &plan.xattrs,
            type_word: "dir",
        };
        if plan.is_opaque {
            let marked = disk::set_xattr(target, self.marks.opaque(), b"y");
            self.on_disk("mark as opaque", parent, &name, marked)?;
        }
        if self.marks.overrides {
            // The owner, who is nobody else than this user, must get in.
            let opened = rustix::fs::fchmod(&*fd, Mode::from_raw_mode(0o700 | plan.mode & 0o777));
            self.on_disk("open to its owner", parent, &name, opened)?;
        }
        let applied = disk::apply(self.marks, target, false, &attributes);
        let refused = self.on_disk("give attributes to", parent, &name, applied)?;
        self.warn_of(&name, refused);
        self.record(inode, target).map_err(|source| self.disk_error("look at", parent, &name, source))
    }

    fn write_index(
        &self,
        nodes: &[NodeId],
        indexer: &dyn LayerIndexer,
        index: &Path,
    ) -> Result<(), IndexFailure> {
        let root = self.tree.inode(self.tree.node(ROOT).inode);
        let mut builder =
            indexer.begin(IndexedObject { stat: &root.stat, symlink: None, xattrs: &root.xattrs })?;
        for &id in nodes.iter().skip(1) {
            let inode = self.tree.inode(self.tree.node(id).inode);
            let symlink = match &inode.kind {
                Kind::Symlink(target) if !self.marks.overrides => Some(&**target),
                _ => None,
            };
            let object = IndexedObject { stat: &inode.stat, symlink, xattrs: &inode.xattrs };
            let mut path = self.tree.path(id);
            let file = match (&inode.kind, path.last().map(|name| CString::new(*name))) {
                (Kind::Whiteout, Some(Ok(name))) => disk::whiteout_name(self.marks, &name),
                _ => CString::default(),
            };
            if let (Kind::Whiteout, Some(last)) = (&inode.kind, path.last_mut()) {
                *last = file.to_bytes();
            }
            builder.insert(&path, object)?;
        }
        builder.finish(index)
    }

    /// Attributes of the root directory, once finished.
    pub fn root_stat(&self) -> &ObjectStat {
        &self.tree.inode(self.tree.node(ROOT).inode).stat
    }
}

const NOT_A_DIRECTORY: &str = "its name leads through something that is no directory";
const UP: &str = "its name leads upwards with `..`";

/// The names in a path, `.` and empty ones left out.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.contains(&0) {
        return Err("its name has a NUL in it");
    }
    let names: Vec<&[u8]> = parts(path).collect();
    if names.contains(&&b".."[..]) {
        return Err(UP);
    }
    if names.iter().any(|name| name.len() > 255) {
        return Err("its name has a part of more than 255 bytes");
    }
    Ok(names)
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn write_all_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(len) => {
                bytes = &bytes[len..];
                at += len as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
