//! Layers: from a tar stream to a tree on disk in the marks of overlayfs, and back.
//!
//! A layer's tree is a lower of a union mount as it stands. What a tar says with `.wh.` names is a device 0:0 or an
//! opaque xattr in the tree. A tree that was unpacked here is packed to a tar of the same meaning, not
//! of the same bytes: digests are those of the tar that was unpacked, or of the first packing.

pub mod apply;
mod changes;
mod copy;
mod disk;
mod forget;
mod index;
mod merged;
mod pack;
mod patch;
mod remove;
mod tree;
mod tree_copy;
mod unpack;

pub(crate) use remove::list as list_directory;

pub use changes::{Change, ChangeKind, changes, visible};
pub use disk::{Marks, set_mode};
pub use forget::{drop_applied, forget};
pub use index::{IndexFailure, IndexedObject, LayerIndexBuilder, LayerIndexer, ObjectStat, WithoutIndex};
pub use merged::{Layer, MergedDirectory, MergedObject, Stack};
pub use pack::{PackError, is_plain_root, pack_changes, pack_joined, pack_merged, pack_step};
pub use patch::write_patch;
pub use remove::remove_tree;
pub use tree_copy::{TreeCopied, TreeCopy};
pub use unpack::{Limits, UnpackError, Unpacked, unpack};

#[cfg(test)]
mod tests;
