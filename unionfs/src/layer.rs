//! Layers: trees reached by descriptor, read with their marks.
//!
//! A lower is never written. An *indexed* lower answers from its layer index: wholly when its owner guarantees
//! that it never changes, else only for listings, and only after the directory was compared with the index.

pub mod dir;
pub mod hardlinks;
pub mod mark_io;
pub mod object;
pub mod scan;
pub mod stack;
pub mod upper;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::index::LayerIndex;
use dir::{FdContext, LayerDir, LayerNo, UPPER};
use hardlinks::HardLinks;
use upper::Upper;

use crate::config::Config;
use crate::marks::MarkNames;

/// A read-only layer.
#[derive(Debug)]
pub struct Lower {
    /// As the user named it, for messages.
    pub path: PathBuf,
    /// Its root directory.
    pub root: Arc<LayerDir>,
    index: Option<LayerIndex>,
    /// The index was found damaged or stale: everything is read from the directory from then on.
    index_bad: AtomicBool,
    /// Nobody changes the layer: the index is believed without looking at the directory.
    pub immutable: bool,
    /// Owner, mode and type come from `override_stat` xattrs (the root carries one).
    pub override_stat: bool,
    hard_links: OnceLock<HardLinks>,
}

impl Lower {
    /// The index, while it can be believed.
    pub fn index(&self) -> Option<&LayerIndex> {
        if self.index_bad.load(Ordering::Relaxed) { None } else { self.index.as_ref() }
    }

    /// Stops using the index.
    pub fn distrust_index(&self, why: &dyn std::fmt::Display) {
        if !self.index_bad.swap(true, Ordering::Relaxed) {
            tracing::warn!(layer = %self.path.display(), "layer index not used any more: {why}; rebuild it with `layerfs index`");
        }
    }
}

/// All layers of a mount.
#[derive(Debug)]
pub struct Layers {
    /// Top first.
    pub lowers: Vec<Lower>,
    /// The writable layer.
    pub upper: Option<Upper>,
    /// Names of the marks in the mount's namespace.
    pub names: MarkNames,
    /// Descriptors.
    pub context: FdContext,
    /// The mount as asked for.
    pub config: Config,
}

impl Layers {
    /// The lower of this number; `None` for the upper's.
    pub fn lower(&self, layer: LayerNo) -> Option<&Lower> {
        if layer == UPPER { None } else { self.lowers.get(usize::from(layer)) }
    }

    /// The layer's index, if it can be believed.
    pub fn index_of(&self, layer: LayerNo) -> Option<&LayerIndex> {
        self.lower(layer)?.index()
    }

    /// The layer's index, if it may answer without a look at the directory.
    pub fn immutable_index(&self, layer: LayerNo) -> Option<&LayerIndex> {
        let lower = self.lower(layer)?;
        if lower.immutable { lower.index() } else { None }
    }

    /// True where the layer keeps owner, mode and type in `override_stat` xattrs.
    pub fn overrides(&self, layer: LayerNo) -> bool {
        match self.lower(layer) {
            Some(lower) => lower.override_stat || self.config.xattr_permissions,
            None => self.config.xattr_permissions,
        }
    }

    /// The layer's number as messages show it.
    pub fn number(layer: LayerNo) -> i32 {
        if layer == UPPER { -1 } else { i32::from(layer) }
    }
}
