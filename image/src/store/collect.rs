//! Removing what no image leads to.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

use rustix::fs::FlockOperation;
use serde_json::Value;

use super::Store;
use crate::config;
use crate::digest::{Algorithm, DiffId, Digest};
use crate::error::Error;
use crate::layer::remove_tree;

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers.
    pub layers: Vec<DiffId>,
    /// Blobs.
    pub blobs: Vec<Digest>,
    /// Bytes that came free, as far as sizes are known.
    pub bytes: u64,
    /// Somebody uses the store: nothing was removed, and the next one does it.
    pub postponed: bool,
}

/// What must stay.
#[derive(Debug, Default)]
pub(super) struct Reached {
    pub(super) blobs: HashSet<Digest>,
    pub(super) layers: HashSet<DiffId>,
    /// An image's config cannot be read: which layers it has is not known, so that none may go.
    pub(super) has_unknown_layers: bool,
}

impl Store {
    /// Removes blobs and layers that no image leads to, unless they are in use. Never waits.
    ///
    /// # Errors
    /// When the index or a manifest cannot be read: then nothing is removed. (Where a config cannot, no layer is.)
    pub fn collect(&self) -> Result<Collected, Error> {
        let Some(_lock) = self.try_lock_exclusive()? else {
            return Ok(Collected { postponed: true, ..Collected::default() });
        };
        let reached = self.reached()?;
        let mut collected = Collected::default();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.root.join("layers").join(algorithm.name());
            for (path, digest) in digests_in(&directory, algorithm)? {
                let diff_id = DiffId(digest);
                if reached.has_unknown_layers || reached.layers.contains(&diff_id) || !is_free(&path) {
                    continue;
                }
                collected.bytes += self.layer(&diff_id).map_or(0, |layer| layer.size);
                // Out of sight in one step, so that a crash leaves no half of it.
                let trash = self.root.join("tmp").join(format!("trash-{}", digest.hex()));
                remove_tree(&trash).map_err(Error::io("remove", &trash))?;
                fs::rename(&path, &trash).map_err(Error::io("remove layer", &path))?;
                remove_tree(&trash).map_err(Error::io("remove layer", &trash))?;
                collected.layers.push(diff_id);
            }
            let directory = self.root.join("blobs").join(algorithm.name());
            for (path, digest) in digests_in(&directory, algorithm)? {
                if reached.blobs.contains(&digest) {
                    continue;
                }
                collected.bytes += fs::metadata(&path).map_or(0, |blob| blob.len());
                fs::remove_file(&path).map_err(Error::io("remove blob", &path))?;
                collected.blobs.push(digest);
            }
        }
        Ok(collected)
    }

    /// Everything that index.json, or a step of a build, leads to.
    pub(super) fn reached(&self) -> Result<Reached, Error> {
        let mut reached = Reached::default();
        for named in self.named()? {
            self.reach(&named.manifest, &mut reached, 0)?;
        }
        for (layer, blob) in self.kept_by_steps()? {
            reached.layers.insert(layer);
            reached.blobs.insert(blob);
        }
        Ok(reached)
    }

    fn reach(&self, manifest: &Digest, reached: &mut Reached, depth: usize) -> Result<(), Error> {
        if !reached.blobs.insert(*manifest) || depth > 4 {
            return Ok(());
        }
        let bytes = self.read_blob(manifest)?;
        let value: Value = serde_json::from_slice(&bytes).map_err(Error::json(format!("blob {manifest}")))?;
        let digest = |entry: &Value| entry["digest"].as_str().and_then(|digest| Digest::parse(digest).ok());
        for entry in value["manifests"].as_array().into_iter().flatten() {
            // Lists are kept with what there is of them.
            if let Some(digest) = digest(entry).filter(|digest| self.blob_size(digest).is_some()) {
                self.reach(&digest, reached, depth + 1)?;
            }
        }
        reached.blobs.extend(value["layers"].as_array().into_iter().flatten().filter_map(digest));
        if let Some(id) = digest(&value["config"]) {
            reached.blobs.insert(id);
            match self.read_blob(&id) {
                // What is no image's config has no layers.
                Ok(bytes) => reached
                    .layers
                    .extend(config::Config::parse(&bytes).into_iter().flat_map(|c| c.rootfs.diff_ids)),
                Err(error) => {
                    tracing::warn!(%error, config = %id, "no layer is removed until the store is repaired");
                    reached.has_unknown_layers = true;
                }
            }
        }
        Ok(())
    }
}

/// Content of a directory that is named by digests.
pub(super) fn digests_in(
    directory: &Path,
    algorithm: Algorithm,
) -> Result<Vec<(std::path::PathBuf, Digest)>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(digest) = Digest::from_hex(algorithm, name) {
            found.push((path, digest));
        }
    }
    found.sort();
    Ok(found)
}

/// True when no mount holds the layer.
pub(super) fn is_free(path: &Path) -> bool {
    File::open(path)
        .is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
}
