//! Unpacking: one tar stream into one tree.
//!
//! Must hold, whatever the archive says: nothing outside of the tree is written, no symlink on disk is followed, what
//! the archive may ask for is bounded. Names are resolved in memory (see [`super::tree`]); the disk is reached one name
//! at a time beneath directories that were made here.
//!
//! Whiteouts follow the OCI image specification (layer.md): they hide what is in the layers below and never what the
//! same archive contains, whichever comes first.

mod finish;
mod limits;
mod links;
mod objects;

pub use limits::{Limits, UnpackError};

use std::collections::HashMap;
use std::ffi::CString;
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::disk::{self, Marks};
use super::index::ObjectStat;
use super::remove::remove_at;
use super::tree::{DirectoryPlan, Kind, NodeId, ROOT, Tree};
use crate::tar::{Entry, EntryKind, TarReader, lossy};
use links::PendingLink;

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
