//! Unpacked layers: one directory for each diff-id.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::ingest::{StagedBlob, StagedLayer};
use super::{Session, Store};
use crate::digest::{ChainId, DiffId};
use crate::error::Error;
use crate::layer::Stack;

/// What is known of an unpacked layer (`layer.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerRecord {
    /// Which one.
    pub diff_id: DiffId,
    /// Bytes of file data, as `images` counts them.
    pub size: u64,
    /// Entries of its archive.
    pub entries: u64,
    /// Owners and modes are kept in xattrs: it was unpacked without privileges.
    pub overrides: bool,
    /// The tree refers to what is below it (metadata-only copies, moved directories) and serves on top of
    /// these layers alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_on: Option<ChainId>,
    /// Its tar is not among the blobs: it is packed anew where it is needed, with this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed_size: Option<u64>,
}

/// A layer that stays where it is as long as this lives.
#[derive(Debug)]
pub struct LayerHold {
    directory: File,
    /// Its tree.
    pub tree: PathBuf,
    /// Its index.
    pub index: PathBuf,
}

impl LayerHold {
    /// The descriptor whose lock keeps the layer: a process that inherits it keeps the layer too.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Store {
    /// Where the layer is, if it is there.
    pub fn layer_path(&self, diff_id: &DiffId) -> PathBuf {
        self.root.join("layers").join(diff_id.0.algorithm().name()).join(diff_id.0.hex())
    }

    /// The layer's tree.
    pub fn layer_tree(&self, diff_id: &DiffId) -> PathBuf {
        self.layer_path(diff_id).join("tree")
    }

    /// What is known of a layer; `None` when it is not unpacked.
    pub fn layer(&self, diff_id: &DiffId) -> Option<LayerRecord> {
        let text = fs::read(self.layer_path(diff_id).join("layer.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The layer if it is unpacked and serves on top of `below`.
    pub fn usable_layer(&self, diff_id: &DiffId, below: Option<ChainId>) -> Option<LayerRecord> {
        self.layer(diff_id)
            .filter(|_| self.layer_tree(diff_id).is_dir())
            .filter(|record| record.only_on.is_none() || record.only_on == below)
    }

    /// Keeps a layer from being removed, for a mount of it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn hold_layer(&self, diff_id: &DiffId) -> Result<LayerHold, Error> {
        let path = self.layer_path(diff_id);
        let directory = File::open(&path).map_err(Error::io("open layer", &path))?;
        rustix::fs::flock(&directory, FlockOperation::LockShared).map_err(Error::io("lock layer", &path))?;
        let tree = path.join("tree");
        fs::metadata(&tree).map_err(Error::io("find the layer", &tree))?;
        Ok(LayerHold { directory, tree, index: path.join("tree.layerfs-index") })
    }

    /// The trees of `diff_ids` (the lowest first, as configs have them) as a stack.
    ///
    /// # Errors
    /// When one is not there.
    pub fn stack(&self, diff_ids: &[DiffId]) -> Result<Stack, Error> {
        self.stack_with(diff_ids, &HashMap::new())
    }

    /// As [`stack`](Self::stack), where some of the layers are not yet in their places but in these directories.
    pub(super) fn stack_with(
        &self,
        diff_ids: &[DiffId],
        staged: &HashMap<DiffId, PathBuf>,
    ) -> Result<Stack, Error> {
        // One that was published meanwhile is no longer where it was staged.
        let tree = |diff_id: &DiffId| match staged.get(diff_id).map(|directory| directory.join("tree")) {
            Some(tree) if tree.is_dir() => tree,
            _ => self.layer_tree(diff_id),
        };
        let paths: Vec<PathBuf> = diff_ids.iter().rev().map(tree).collect();
        let first = paths.first().cloned().unwrap_or_else(|| self.root.clone());
        Stack::open(&paths).map_err(Error::io("open the layers of", &first))
    }

    /// Writes down beside a staged tree what is known of it.
    pub(super) fn describe_layer(staged: &Path, record: &LayerRecord) -> Result<(), Error> {
        let text = serde_json::to_vec(record).map_err(Error::json("layer.json"))?;
        let path = staged.join("layer.json");
        fs::write(&path, text).map_err(Error::io("write", &path))
    }

    /// Puts a finished layer in its place: `staged` holds tree, index and record, and is on disk; its name is not yet. One
    /// that is there already stays, unless it serves elsewhere only.
    pub(super) fn place_layer(
        &self,
        session: &Session,
        staged: &Path,
        record: &LayerRecord,
    ) -> Result<(), Error> {
        session.note_unsynced();
        let place = self.layer_path(&record.diff_id);
        let directory = place.parent().map(Path::to_owned).unwrap_or_default();
        // Also where another program made the layout: see `Store::close_layers`.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(Error::io("make", &directory))?;
        match fs::rename(staged, &place) {
            Ok(()) => {}
            Err(_) if place.is_dir() => {
                let known = self.layer(&record.diff_id);
                let serves =
                    known.is_some_and(|known| known.only_on.is_none() || known.only_on == record.only_on);
                if serves && place.join("tree").is_dir() {
                    return Ok(());
                }
                // Changing places, so that there is never none; the old one goes with the session.
                let old = session.path().join(format!("old-{}", record.diff_id.0.hex()));
                fs::rename(staged, &old).map_err(Error::io("move aside", staged))?;
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &old,
                    rustix::fs::CWD,
                    &place,
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .map_err(Error::io("replace layer", &place))?;
            }
            Err(error) => return Err(Error::io("put in place", &place)(error)),
        }
        Ok(())
    }

    /// Publishes the layer of a commit: `directory` holds its tree, a copy of an upper, and perhaps its blob as `blob`.
    pub(crate) fn place_committed(
        &self,
        session: &Session,
        directory: &Path,
        record: &LayerRecord,
    ) -> Result<(), Error> {
        let tree = directory.join("tree");
        self.indexer
            .build_staged(&tree, &directory.join("tree.layerfs-index"))
            .map_err(|source| Error::Index { path: tree, source })?;
        Self::describe_layer(directory, record)?;
        let blob = directory.join("blob");
        let blobs = match blob.exists() {
            true => vec![StagedBlob { path: blob, digest: record.diff_id.0 }],
            false => Vec::new(),
        };
        let blob = record.diff_id.0;
        let layer = StagedLayer { directory: directory.to_owned(), record: record.clone(), blob };
        self.publish_layers(session, &blobs, &[layer])
    }
}
