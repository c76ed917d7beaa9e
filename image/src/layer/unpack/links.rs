//! Hard links: to what the same archive has, and to what only the layers below have.
//!
//! A file of a layer below cannot get another name here: it becomes a copy, one for all links that lead to it. What a
//! link leads to is found as the kernel would find it in the mounted image: through symlinks on the way, in this layer
//! and below it.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{MAX_LINKS, UP, UnpackError, Unpacked, components, parts};
use crate::layer::copy::copy_data;
use crate::layer::disk::{self, Target};
use crate::layer::merged::{MergedDirectory, MergedObject, Stack};
use crate::layer::tree::{InodeId, Kind, NodeId, ROOT};
use crate::tar::{Entry, EntryKind, lossy};

/// A link to what must be in a layer below.
#[derive(Debug)]
pub(super) struct PendingLink {
    inode: InodeId,
    target: Vec<u8>,
}

/// A directory of the mounted image: its part in this layer, and what shows of it from below.
type Place = (Option<NodeId>, Option<MergedDirectory>);

/// The directory that the last target was in: links come in groups.
type LastDirectory = Option<(Vec<Vec<u8>>, Option<MergedDirectory>)>;

impl Unpacked {
    pub(super) fn hard_link(
        &mut self,
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
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
        match self.tree.kind(target) {
            Kind::Directory(_) => return Err(refused("a hard link to a directory")),
            Kind::Whiteout => return Err(refused("a hard link to what the same layer removes")),
            Kind::Pending => {
                let inode = self.tree.node(target).inode;
                self.tree.add_name(parent, name, inode);
                return Ok(());
            }
            Kind::Symlink(_) | Kind::File | Kind::Special => {}
        }
        self.link(target, parent, name)
    }

    /// Puts another name for the object at `target`, which is on disk.
    fn link(&mut self, target: NodeId, parent: NodeId, name: &[u8]) -> Result<(), UnpackError> {
        let (from, to) = (self.fd(self.tree.node(target).parent)?, self.fd(parent)?);
        let from_name = self.c_name(self.tree.node(target).parent, &self.tree.node(target).name)?;
        let to_name = self.c_name(parent, name)?;
        let linked = rustix::fs::linkat(&*from, &from_name, &*to, &to_name, rustix::fs::AtFlags::empty());
        self.on_disk("link", parent, name, linked)?;
        let inode = self.tree.node(target).inode;
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

    pub(super) fn links_to_itself(&self, id: NodeId, link: &[u8]) -> bool {
        let target = components(link).ok().and_then(|names| self.find(&names));
        target.is_some_and(|target| self.tree.node(target).inode == self.tree.node(id).inode)
    }

    /// Links to files of the layers below (`lowers`, the topmost first) become copies of them.
    pub(super) fn complete_links(&mut self, lowers: &Stack) -> Result<(), UnpackError> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let mut names: HashMap<InodeId, Vec<NodeId>> = HashMap::new();
        for id in self.tree.reachable() {
            if matches!(self.tree.kind(id), Kind::Pending) {
                names.entry(self.tree.node(id).inode).or_default().push(id);
            }
        }
        // By layer and inode number there: the first name of its copy.
        let mut copies: HashMap<(usize, u64), NodeId> = HashMap::new();
        let mut last = None;
        for link in pending {
            let Some(ids) = names.remove(&link.inode) else { continue };
            let mut ids = ids.into_iter();
            let Some(first) = ids.next() else { continue };
            let shown = lossy(&self.tree.path(first).join(&b'/'));
            let failed = |source| UnpackError::Disk {
                operation: "look up the target of",
                path: shown.clone(),
                source,
            };
            let object = self.below(&link.target, lowers, &mut last).map_err(failed)?;
            let Some(object) = object else {
                let what = "a hard link to something that is neither in this layer nor below it";
                return Err(UnpackError::Refused { path: shown, what });
            };
            let made = match copies.get(&object.identity()) {
                Some(&made) => {
                    self.rename_pending(first, made)?;
                    made
                }
                None => {
                    let made = self.copy_up(first, &object, lowers)?;
                    copies.insert(object.identity(), made);
                    made
                }
            };
            for id in ids {
                self.rename_pending(id, made)?;
            }
        }
        Ok(())
    }

    /// The name of a pending link becomes one of `made`.
    fn rename_pending(&mut self, id: NodeId, made: NodeId) -> Result<(), UnpackError> {
        let (parent, name) = (self.tree.node(id).parent, self.tree.node(id).name.clone());
        self.tree.remove(id);
        self.link(made, parent, &name)
    }

    /// Copies `object` of a layer below to where the pending link `id` is.
    fn copy_up(&mut self, id: NodeId, object: &MergedObject, lowers: &Stack) -> Result<NodeId, UnpackError> {
        let (parent, name) = (self.tree.node(id).parent, self.tree.node(id).name.clone());
        let described = object.describe(lowers);
        let mut entry = self.on_disk("read the target of", parent, &name, described)?;
        entry.path = self.tree.path(id).join(&b'/');
        self.tree.remove(id);
        match entry.kind {
            EntryKind::File => {
                let opened = object.open(lowers);
                let source = File::from(self.on_disk("open the target of", parent, &name, opened)?);
                let stat = rustix::fs::fstat(&source);
                let stat = self.on_disk("look at the target of", parent, &name, stat)?;
                // Holes take no space here either.
                let data = stat.st_size.min(stat.st_blocks.saturating_mul(512)).cast_unsigned();
                self.bytes = self.bytes.saturating_add(data);
                self.check_bytes()?;
                let dir = self.fd(parent)?;
                let c_name = self.c_name(parent, &name)?;
                let file = disk::create_file(dir.as_fd(), &c_name);
                let file = File::from(self.on_disk("create", parent, &name, file)?);
                let copied = copy_data(&source, &file)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
                self.on_disk("copy", parent, &name, copied)?;
                let inode = self.tree.add_inode(Kind::File);
                self.tree.add_name(parent, &name, inode);
                self.settle(inode, Target::Open(file.as_fd()), &entry, "file", parent, &name)?;
            }
            EntryKind::Symlink => self.symlink(parent, &name, &entry)?,
            EntryKind::Directory | EntryKind::HardLink => {
                let what = "a hard link to a directory";
                return Err(UnpackError::Refused { path: lossy(&entry.path), what });
            }
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.special(parent, &name, &entry)?;
            }
        }
        Ok(self.tree.child(parent, &name).unwrap_or(ROOT))
    }

    /// What `target` leads to in the layers below, when this layer is on top of them.
    fn below(
        &self,
        target: &[u8],
        lowers: &Stack,
        last: &mut LastDirectory,
    ) -> Result<Option<MergedObject>, Errno> {
        let names: Vec<Vec<u8>> = parts(target).map(<[u8]>::to_vec).collect();
        let Some((name, parents)) = names.split_last() else { return Ok(None) };
        let directory = match last {
            Some((known, directory)) if known == parents => directory.clone(),
            _ => {
                let directory = self.directory_below(parents, lowers)?;
                *last = Some((parents.to_vec(), directory.clone()));
                directory
            }
        };
        directory.map_or(Ok(None), |directory| lowers.child(&directory, name))
    }

    /// What shows from below of the directory that `names` lead to.
    fn directory_below(&self, names: &[Vec<u8>], lowers: &Stack) -> Result<Option<MergedDirectory>, Errno> {
        let mut left: Vec<Vec<u8>> = names.iter().rev().cloned().collect();
        let mut way: Vec<Place> = Vec::new();
        let mut at: Place = (Some(ROOT), self.shows_below(ROOT).then(|| lowers.root()).transpose()?);
        let root = at.clone();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                at = way.pop().unwrap_or_else(|| root.clone());
                continue;
            }
            let own = at.0.and_then(|id| self.tree.child(id, &name));
            let lower = || at.1.as_ref().map_or(Ok(None), |directory| lowers.child(directory, &name));
            let (next, symlink) = match own.map(|id| (id, self.tree.kind(id))) {
                Some((id, Kind::Directory(_))) => {
                    let below = if self.shows_below(id) { lower()? } else { None };
                    ((Some(id), below.and_then(|object| object.directory().cloned())), None)
                }
                Some((_, Kind::Symlink(target))) => ((None, None), Some(target.to_vec())),
                Some(_) => return Ok(None),
                None => match lower()? {
                    Some(object) if object.kind() == FileType::Symlink => {
                        ((None, None), Some(object.describe(lowers)?.link))
                    }
                    Some(object) => ((None, object.directory().cloned()), None),
                    None => return Ok(None),
                },
            };
            match symlink {
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.first() == Some(&b'/') {
                        at = root.clone();
                        way.clear();
                    }
                    left.extend(parts(&target).rev().map(<[u8]>::to_vec));
                }
                None if next.0.is_none() && next.1.is_none() => return Ok(None),
                None => way.push(std::mem::replace(&mut at, next)),
            }
        }
        Ok(at.1)
    }

    fn shows_below(&self, id: NodeId) -> bool {
        !matches!(self.tree.kind(id), Kind::Directory(plan) if plan.is_opaque)
    }
}
