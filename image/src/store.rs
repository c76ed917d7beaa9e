//! The image store: an OCI image layout that other programs read as it stands, and beside it the unpacked layers.
//!
//! ```text
//! STORE/oci-layout, index.json      the layout; index.json has one descriptor for each name
//! STORE/blobs/sha256/HEX            manifests, configs, layers as they came
//! STORE/layers/sha256/HEX/          a layer by its diff-id: tree/, tree.layerfs-index, layer.json
//! STORE/steps/HEX.json              a step of a build by its key, whose layer it keeps
//! STORE/tmp/NAME/                   work of one process, which holds a lock on it
//! STORE/lock                        shared: somebody adds or reads; exclusive: unused content is removed
//! STORE/index.lock                  exclusive: index.json is replaced
//! ```
//!
//! Must hold: what is in `blobs`, `layers` and `index.json` is complete, was verified and is on disk: it is made in
//! `tmp`, synced, and renamed. What index.json does not lead to may be removed by whoever has the exclusive lock.
//! A layer in use by a mount carries a shared lock on its directory and stays. Locks end with their process.

mod blobs;
mod check;
mod collect;
mod compressed;
mod expansions;
mod images;
mod ingest;
mod layers;
mod lock;
mod names;
mod restore;
mod steps;

pub use check::{CheckReport, Problem};
pub use collect::Collected;
pub use compressed::CompressedBlob;
pub use images::Image;
pub(crate) use images::choose_from_index;
pub use ingest::{IngestedLayer, LayerInput, StagedBlob, StagedLayer};
pub use layers::{LayerHold, LayerRecord};
pub use lock::UseLock;
pub use names::NamedImage;
pub use steps::{KeptStep, StagedStep, StepRecord};

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Error;
use crate::layer::{LayerIndexer, Limits, Marks};

/// A store, open.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    indexer: Arc<dyn LayerIndexer>,
    limits: Limits,
}

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

impl Store {
    /// Opens the store at `root`, which is made if it is missing.
    ///
    /// # Errors
    /// When it cannot be made or is no store of this version.
    pub fn open(root: &Path, indexer: Arc<dyn LayerIndexer>) -> Result<Self, Error> {
        let store = Self { root: root.to_owned(), indexer, limits: Limits::default() };
        let layout = store.root.join("oci-layout");
        if let Ok(text) = fs::read_to_string(&layout) {
            let version = serde_json::from_str::<serde_json::Value>(&text)
                .ok()
                .and_then(|layout| layout["imageLayoutVersion"].as_str().map(str::to_owned));
            if version.as_deref() != Some("1.0.0") {
                return Err(Error::document(
                    layout.display().to_string(),
                    "not an OCI image layout of version 1.0.0; the store was made by another program",
                ));
            }
            store.close_layers()?;
            return Ok(store);
        }
        for (directory, mode) in
            [("", 0o711), ("blobs/sha256", 0o711), ("layers/sha256", 0o700), ("tmp", 0o700)]
        {
            let path = store.root.join(directory);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&path)
                .map_err(Error::io("make store directory", &path))?;
        }
        store.close_layers()?;
        // Last, as the sign that all of it is there.
        let lock = store.lock_names()?;
        if !store.index_path().exists() {
            store.write_index(&names::empty_index()?, Barrier::File, &lock)?;
        }
        store.write_file(&layout, LAYOUT.as_bytes(), Barrier::File)?;
        Ok(store)
    }

    /// Lets nobody but the owner in to the unpacked trees: they hold set-id files of images that nobody has chosen
    /// to run here. Earlier versions left the directory open.
    fn close_layers(&self) -> Result<(), Error> {
        let path = self.root.join("layers");
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.permissions().mode(),
            // A plain OCI layout: the directory is made with the first layer.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("look at", &path)(error)),
        };
        if mode & 0o077 == 0 {
            return Ok(());
        }
        match fs::set_permissions(&path, fs::Permissions::from_mode(0o700)) {
            // Another user's store, or one that is mounted read-only, can still be read.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                tracing::warn!(%error, path = %path.display(), "other users can enter; remedy: chmod 0700");
                Ok(())
            }
            result => result.map_err(Error::io("close to other users", &path)),
        }
    }

    /// With other limits for layers.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    fn marks(&self, session: &Session) -> Result<Marks, Error> {
        let directory = fs::File::open(session.path()).map_err(Error::io("open", session.path()))?;
        Marks::probe(directory.as_fd()).map_err(Error::io("try what can be stored in", session.path()))
    }

    /// Replaces `path` by `content`, whole or not at all.
    fn write_file(&self, path: &Path, content: &[u8], barrier: Barrier) -> Result<(), Error> {
        use std::io::Write;
        let directory = path.parent().unwrap_or(Path::new("."));
        let failed = |operation| move |source| Error::Io { operation, path: path.to_owned(), source };
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(directory)
            .map_err(failed("write"))?;
        file.write_all(content).map_err(failed("write"))?;
        match barrier {
            Barrier::None => {}
            Barrier::File => file.as_file().sync_all().map_err(failed("sync"))?,
            Barrier::Filesystem => rustix::fs::syncfs(file.as_file())
                .map_err(|errno| failed("sync the filesystem of")(errno.into()))?,
        }
        file.persist(path).map_err(|error| failed("put in place")(error.error))?;
        if barrier == Barrier::None {
            return Ok(());
        }
        sync_directory(directory)
    }
}

/// What must be on disk before a file is put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Barrier {
    /// Nothing: the file is verified whenever it is read, and nothing refers to it yet.
    None,
    /// The file itself.
    File,
    /// All that was written and renamed before: the file refers to it.
    Filesystem,
}

/// What is renamed into a directory is there after a crash too.
fn sync_directory(directory: &Path) -> Result<(), Error> {
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("sync directory", directory))
}

/// A process's own directory in `tmp`, locked while it lives, removed when it is dropped.
#[derive(Debug)]
pub struct Session {
    directory: tempfile::TempDir,
    _lock: fs::File,
    _use: UseLock,
    /// Something was put in its place that a crash could still take away.
    unsynced: std::sync::atomic::AtomicBool,
}

impl Session {
    pub(crate) fn note_unsynced(&self) {
        self.unsynced.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The guard of the directory does not manage what layers can contain.
        if let Err(error) = crate::layer::remove_tree(self.directory.path()) {
            tracing::warn!(%error, path = %self.directory.path().display(), "remove");
        }
    }
}

impl Store {
    /// Begins work that adds to the store. While it lives nothing is collected; what killed processes left in
    /// `tmp` is removed.
    ///
    /// # Errors
    /// When nothing can be made in the store.
    pub fn session(&self) -> Result<Session, Error> {
        let lock = self.lock_shared()?;
        let tmp = self.root.join("tmp");
        self.sweep_sessions(&tmp)?;
        let names = self.lock_sessions()?;
        let directory = tempfile::Builder::new()
            .prefix("work-")
            .tempdir_in(&tmp)
            .map_err(Error::io("make a work directory in", &tmp))?;
        let held = fs::File::open(directory.path()).map_err(Error::io("open", directory.path()))?;
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockShared)
            .map_err(Error::io("lock", directory.path()))?;
        drop(names);
        Ok(Session { directory, _lock: held, _use: lock, unsynced: false.into() })
    }

    fn sweep_sessions(&self, tmp: &Path) -> Result<(), Error> {
        let _names = self.lock_sessions()?;
        for entry in fs::read_dir(tmp).map_err(Error::io("list", tmp))? {
            let path = entry.map_err(Error::io("list", tmp))?.path();
            let Ok(file) = fs::File::open(&path) else { continue };
            if !path.is_dir() {
                continue;
            }
            if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
                crate::layer::remove_tree(&path).map_err(Error::io("remove left-over work", &path))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
