//! Layers: from a tar stream to a tree on disk in the marks of overlayfs, and back.
//!
//! A layer's tree is a lower of a union mount as it stands. What a tar says with `.wh.` names is a device 0:0 or an
//! opaque xattr in the tree. A tree that was unpacked here is packed to a tar of the same meaning, not
//! of the same bytes: digests are those of the tar that was unpacked, or of the first packing.

mod changes;
mod copy;
mod disk;
mod index;
mod merged;
mod pack;
mod remove;
mod tree;
mod unpack;

pub(crate) use copy::copy_data;
pub(crate) use disk::{all_xattrs, copy_name_xattrs};
pub(crate) use remove::list as list_directory;

pub use changes::{Change, ChangeKind, changes};
pub use disk::Marks;
pub use index::{IndexFailure, IndexedObject, LayerIndexBuilder, LayerIndexer, ObjectStat, WithoutIndex};
pub use merged::{Layer, MergedDirectory, MergedObject, Stack};
pub use pack::{PackError, is_plain_root, pack_changes, pack_merged, pack_step};
pub use remove::remove_tree;
pub use unpack::{Limits, UnpackError, Unpacked, unpack};

#[cfg(test)]
mod tests;
