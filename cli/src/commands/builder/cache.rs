//! The build cache as a whole: how much it takes, and removing what is not needed of it. For `builder` and `system`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use layerfs_image::digest::DiffId;
use layerfs_image::store::{KeptStep, Store};

use crate::commands::build::{DIRECTORY, cache_mount};
use crate::commands::container::step;
use crate::commands::run::store_root;

/// A directory that steps find again (`RUN --mount=type=cache`).
#[derive(Debug)]
pub(crate) struct CacheDirectory {
    pub(crate) kept: cache_mount::Kept,
    /// Bytes on disk.
    pub(crate) size: u64,
    /// A step is at it.
    pub(crate) is_used: bool,
}

/// Everything that builds keep.
#[derive(Debug)]
pub(crate) struct BuildCache {
    /// Those used last come first.
    pub(crate) steps: Vec<KeptStep>,
    pub(crate) directories: Vec<CacheDirectory>,
    /// Layers that images have, too.
    shared: HashSet<DiffId>,
}

impl BuildCache {
    pub(crate) fn of(store: &Store) -> anyhow::Result<Self> {
        let shared = store.images()?.0.iter().flat_map(|image| image.diff_ids().to_vec()).collect();
        let steps = store.steps()?.into_iter().rev().collect();
        let directories = cache_mount::all(&root()?.join("cache"))?
            .into_iter()
            .map(|kept| CacheDirectory {
                size: tree_size(&kept.directory),
                is_used: cache_mount::is_used(&kept),
                kept,
            })
            .collect();
        Ok(Self { steps, directories, shared })
    }

    /// An image has the step's layer: removing the step frees nothing.
    pub(crate) fn is_shared(&self, step: &KeptStep) -> bool {
        self.shared.contains(&step.record.layer)
    }

    /// Bytes that the cache takes beside the images, and how many of them a prune would free.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        // Several steps may have made the same layer.
        let mut seen = HashSet::new();
        let own = self.steps.iter().filter(|step| !self.is_shared(step) && seen.insert(step.record.layer));
        let steps: u64 = own.map(|step| step.size).sum();
        let free = |directory: &&CacheDirectory| !directory.is_used;
        let all: u64 = self.directories.iter().map(|directory| directory.size).sum();
        let unused: u64 = self.directories.iter().filter(free).map(|directory| directory.size).sum();
        (steps + all, steps + unused)
    }
}

/// What is to be removed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Removal {
    /// Also steps whose layers images have, and cache directories.
    pub(crate) all: bool,
    /// Only what was last used before this, in seconds since 1970.
    pub(crate) before: Option<i64>,
    /// So many bytes of what was used last stay.
    pub(crate) keep: u64,
}

/// What was removed.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) names: Vec<String>,
    pub(crate) bytes: u64,
    /// Somebody uses the store: layers go with the next removal.
    pub(crate) postponed: bool,
}

/// Removes what builds keep and nobody uses.
pub(crate) fn remove(store: &Store, what: Removal) -> anyhow::Result<Removed> {
    let root = root()?;
    step::sweep(&root.join("steps"))?;
    let cache = BuildCache::of(store)?;
    let is_old = |last_used: u64| {
        what.before.is_none_or(|before| i64::try_from(last_used).is_ok_and(|last_used| last_used <= before))
    };
    let mut removed = Removed::default();
    let mut keep = what.keep;
    // What was used last is kept first.
    for step in &cache.steps {
        if !what.all && cache.is_shared(step) || !is_old(step.last_used) {
            continue;
        }
        if keep >= step.size && keep > 0 {
            keep -= step.size;
            continue;
        }
        store.forget_step(&step.record.key)?;
        removed.names.push(step.record.key.hex());
    }
    if what.all && what.before.is_none() {
        for directory in &cache.directories {
            if cache_mount::remove(&directory.kept)? {
                removed.bytes += directory.size;
                removed.names.push(format!("cache {}", directory.kept.id));
            }
        }
        match std::fs::remove_file(root.join("hashes")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let collected = store.collect()?;
    removed.bytes += collected.bytes;
    removed.postponed = collected.postponed;
    Ok(removed)
}

fn root() -> anyhow::Result<PathBuf> {
    Ok(store_root()?.join(DIRECTORY))
}

/// Bytes on disk of a tree, as `du` has it.
fn tree_size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| {
            metadata.blocks() * 512 + if metadata.is_dir() { tree_size(&path) } else { 0 }
        })
        .sum()
}
