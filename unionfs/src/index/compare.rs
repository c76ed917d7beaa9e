//! Comparing an index with a tree, entry by entry.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::IndexError;
use super::metadata::ObjectMetadata;
use super::reader::{Entry, LayerIndex};
use super::view::View;
use super::walk::{Visitor, walk};
use super::{EntryId, reader::Child};

/// One way in which a tree is not what its index says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Relative to the tree's root, empty for the root itself.
    pub path: PathBuf,
    /// What differs there.
    pub kind: DifferenceKind,
}

/// The kinds of [`Difference`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DifferenceKind {
    /// In the tree, not in the index; of a directory, nothing beneath it is named.
    OnlyInTree,
    /// In the index, not in the tree; of a directory, nothing beneath it is named.
    OnlyInIndex,
    /// In both, with these attributes different.
    Changed(Vec<&'static str>),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DifferenceKind::OnlyInTree => write!(f, "{:?}: not in the index", self.path),
            DifferenceKind::OnlyInIndex => write!(f, "{:?}: not in the layer", self.path),
            DifferenceKind::Changed(what) => write!(f, "{:?}: {} changed", self.path, what.join(", ")),
        }
    }
}

impl LayerIndex {
    /// Reads the whole tree at the directory `tree` and reports every entry that is not as the index says. What the
    /// filesystem changes of its own accord (atime, blocks, block size) is not compared, nor is the root's ctime.
    ///
    /// # Errors
    /// `Tree`, `Changed`, `CrossesFilesystem` when the tree cannot be read; `Damaged`.
    pub fn compare(&self, tree: impl AsFd) -> Result<Vec<Difference>, IndexError> {
        let tree: BorrowedFd<'_> = tree.as_fd();
        let root = ObjectMetadata::read(tree, c"").map_err(|source| IndexError::Tree {
            operation: "read metadata of",
            path: PathBuf::new(),
            source,
        })?;
        let sees_trusted = View::current()?.trusted_xattrs;
        let mut comparison = Comparison { index: self, sees_trusted, seen: Vec::new(), found: Vec::new() };
        comparison.compare(&self.entry(self.root())?, &root)?;
        if root.stat.is_dir() {
            walk(tree, self.root(), &root.stat, &mut comparison)?;
        }
        Ok(comparison.found)
    }
}

struct Comparison<'a> {
    index: &'a LayerIndex,
    sees_trusted: bool,
    /// Entries of the directory being listed that are in the tree.
    seen: Vec<EntryId>,
    found: Vec<Difference>,
}

impl Comparison<'_> {
    fn compare(&mut self, entry: &Entry<'_>, object: &ObjectMetadata) -> Result<(), IndexError> {
        let is_root = entry.id == self.index.root();
        let (then, now) = (&entry.stat, &object.stat);
        let visible = entry.xattrs()?.filter(|(name, _)| self.sees_trusted || !name.starts_with(b"trusted."));
        let xattrs = object.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        let what: Vec<&'static str> = [
            ("inode number", then.ino == now.ino),
            ("type", then.file_type() == now.file_type()),
            ("mode", then.mode & 0o7777 == now.mode & 0o7777),
            ("owner", (then.uid, then.gid) == (now.uid, now.gid)),
            ("device number", (then.rdev_major, then.rdev_minor) == (now.rdev_major, now.rdev_minor)),
            ("size", then.is_dir() || then.size == now.size),
            ("links", then.nlink == now.nlink),
            ("mtime", then.mtime == now.mtime),
            ("ctime", is_root || then.ctime == now.ctime),
            ("target", entry.symlink == object.symlink.as_deref()),
            ("xattrs", visible.eq(xattrs)),
        ]
        .into_iter()
        .filter_map(|(what, same)| (!same).then_some(what))
        .collect();
        if !what.is_empty() {
            self.report(entry.id, None, DifferenceKind::Changed(what))?;
        }
        Ok(())
    }

    fn report(&mut self, at: EntryId, name: Option<&[u8]>, kind: DifferenceKind) -> Result<(), IndexError> {
        let mut path = PathBuf::from(OsStr::from_bytes(&self.index.path(at)?));
        if let Some(name) = name {
            path.push(Path::new(OsStr::from_bytes(name)));
        }
        self.found.push(Difference { path, kind });
        Ok(())
    }
}

impl Visitor for Comparison<'_> {
    type Directory = EntryId;

    fn object(
        &mut self,
        directory: EntryId,
        name: &[u8],
        object: &ObjectMetadata,
    ) -> Result<Option<EntryId>, IndexError> {
        let Some(id) = self.index.lookup(directory, name)? else {
            self.report(directory, Some(name), DifferenceKind::OnlyInTree)?;
            return Ok(None);
        };
        self.seen.push(id);
        let entry = self.index.entry(id)?;
        self.compare(&entry, object)?;
        Ok(entry.stat.is_dir().then_some(id))
    }

    fn listed(&mut self, directory: EntryId) -> Result<(), IndexError> {
        let mut seen = std::mem::take(&mut self.seen);
        seen.sort_unstable();
        for child in self.index.children(directory)? {
            let Child { id, .. } = child?;
            if seen.binary_search(&id).is_err() {
                self.report(id, None, DifferenceKind::OnlyInIndex)?;
            }
        }
        seen.clear();
        self.seen = seen;
        Ok(())
    }
}
