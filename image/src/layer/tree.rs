//! The tree of a layer in memory while it is unpacked: what is where, and what each object looks like on disk.
//!
//! Names are resolved here and not on disk. A symlink that an entry's name leads through is followed within this
//! tree, whose root is its own parent: no name leads out.

use std::collections::BTreeMap;

use super::index::ObjectStat;
use crate::tar::Timestamp;

/// Index of a node. What was replaced or removed keeps its number, out of reach.
pub(super) type NodeId = u32;
/// Index of an inode.
pub(super) type InodeId = u32;

pub(super) const ROOT: NodeId = 0;

/// One name.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: NodeId,
    pub(super) name: Box<[u8]>,
    pub(super) inode: InodeId,
    /// Names that lead to it from the root.
    pub(super) depth: u32,
    pub(super) children: BTreeMap<Box<[u8]>, NodeId>,
}

/// One object, which may have several names.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) stat: ObjectStat,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A name came or went since `stat` was read.
    pub(super) is_stale: bool,
}

/// What an object is.
#[derive(Debug)]
pub(super) enum Kind {
    /// Its attributes are applied when nothing more comes into it.
    Directory(Box<DirectoryPlan>),
    Symlink(Box<[u8]>),
    File,
    Special,
    Whiteout,
    /// A hard link to what must be in a layer below; nothing is on disk yet.
    Pending,
}

/// How a directory is to look in the end.
#[derive(Debug, Default)]
pub(super) struct DirectoryPlan {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) atime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) is_opaque: bool,
    /// The archive does not describe it: it looks as below, where it is there too.
    pub(super) is_implied: bool,
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    inodes: Vec<Inode>,
}

impl Tree {
    /// A root that nothing described: 0755, root's.
    pub(super) fn new() -> Self {
        let plan = DirectoryPlan { mode: 0o755, is_implied: true, ..DirectoryPlan::default() };
        let mut tree = Self { nodes: Vec::new(), inodes: Vec::new() };
        let inode = tree.add_inode(Kind::Directory(Box::new(plan)));
        tree.nodes.push(Node {
            parent: ROOT,
            name: Box::default(),
            inode,
            depth: 0,
            children: BTreeMap::new(),
        });
        tree
    }

    pub(super) fn add_inode(&mut self, kind: Kind) -> InodeId {
        let stat = ObjectStat::default();
        self.inodes.push(Inode { kind, stat, xattrs: Vec::new(), is_stale: false });
        (self.inodes.len() - 1) as InodeId
    }

    /// Puts a name for `inode` where there is none.
    pub(super) fn add_name(&mut self, parent: NodeId, name: &[u8], inode: InodeId) -> NodeId {
        let id = self.nodes.len() as NodeId;
        let depth = self.node(parent).depth + 1;
        self.nodes.push(Node { parent, name: name.into(), inode, depth, children: BTreeMap::new() });
        self.nodes[parent as usize].children.insert(name.into(), id);
        id
    }

    pub(super) fn remove(&mut self, id: NodeId) {
        let (parent, name) = (self.node(id).parent, self.node(id).name.clone());
        self.nodes[parent as usize].children.remove(&name);
        // Other names of what is beneath lose a link.
        let mut at = vec![id];
        while let Some(id) = at.pop() {
            let inode = self.node(id).inode;
            self.inode_mut(inode).is_stale = true;
            at.extend(std::mem::take(&mut self.nodes[id as usize].children).into_values());
        }
    }

    pub(super) fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node(parent).children.get(name).copied()
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id as usize]
    }

    pub(super) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id as usize]
    }

    pub(super) fn kind(&self, id: NodeId) -> &Kind {
        &self.inode(self.node(id).inode).kind
    }

    pub(super) fn plan_mut(&mut self, id: NodeId) -> Option<&mut DirectoryPlan> {
        let inode = self.node(id).inode;
        match &mut self.inode_mut(inode).kind {
            Kind::Directory(plan) => Some(plan),
            _ => None,
        }
    }

    /// All nodes in reach, parents before children, the children of one directory in the order of their names.
    pub(super) fn reachable(&self) -> Vec<NodeId> {
        let mut found = vec![ROOT];
        let mut at = 0;
        while let Some(&id) = found.get(at) {
            found.extend(self.node(id).children.values());
            at += 1;
        }
        found
    }

    /// The names that lead to a node.
    pub(super) fn path(&self, id: NodeId) -> Vec<&[u8]> {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            names.push(&*self.node(at).name);
            at = self.node(at).parent;
        }
        names.reverse();
        names
    }
}
