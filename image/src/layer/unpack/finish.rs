//! The end of unpacking: what needed to see the whole archive first.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::Mode;

use super::{UnpackError, Unpacked};
use crate::layer::disk::{self, Attributes, Target};
use crate::layer::index::{IndexFailure, IndexedObject, LayerIndexer};
use crate::layer::merged::Stack;
use crate::layer::tree::{Kind, NodeId, ROOT};
use crate::tar::lossy;

impl Unpacked {
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
        self.complete_links(lowers)?;
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
}
