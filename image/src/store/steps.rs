//! What builds keep: layers made of uppers, and the record of each step whose layer is worth finding again.
//!
//! ```text
//! STORE/steps/HEX.json     the step whose key has this digest; its modification time is when it was last used
//! ```
//!
//! Must hold: a layer that a record names stays until the record goes. Records are written after their layers are in
//! place and synced; a record whose layer is gone is none.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::ingest::{StagedBlob, StagedLayer};
use super::layers::LayerRecord;
use super::{Barrier, Session, Store};
use crate::digest::{ChainId, DiffId, Digest, DigestWriter};
use crate::error::Error;
use crate::layer::{Layer, Stack, list_directory, pack_step};

/// A step of a build that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepRecord {
    /// Digest of all that it depends on.
    pub key: Digest,
    /// Its layer.
    pub layer: DiffId,
    /// Digest of the layer's blob, and its size.
    pub blob: (Digest, u64),
    /// Media type of the blob.
    pub media_type: String,
    /// What the layer is on; `None` on nothing.
    pub parent: Option<ChainId>,
    /// When it was carried out, RFC 3339.
    pub created: String,
    /// The instruction, for people.
    pub description: String,
    /// Which kind of step: `run`, `copy` and so on.
    pub kind: String,
}

/// A record with what its file tells.
#[derive(Debug, Clone)]
pub struct KeptStep {
    /// The record.
    pub record: StepRecord,
    /// Bytes of file data in its layer.
    pub size: u64,
    /// When it was last used, in seconds since 1970.
    pub last_used: u64,
}

/// A layer that is whole and not yet in its place.
#[derive(Debug)]
pub struct StagedStep {
    /// Its digest.
    pub diff_id: DiffId,
    /// Size of its blob in bytes.
    pub size: u64,
    /// Where it is until it is published.
    pub directory: PathBuf,
    layer: Option<StagedLayer>,
    blob: Option<StagedBlob>,
}

impl StagedStep {
    /// A layer that was taken in from a tar.
    pub fn of(layer: StagedLayer, blob: Option<StagedBlob>, size: u64) -> Self {
        let (diff_id, directory) = (layer.record.diff_id, layer.directory.clone());
        Self { diff_id, size, directory, layer: Some(layer), blob }
    }
}

impl Store {
    fn steps_path(&self) -> PathBuf {
        self.root.join("steps")
    }

    pub(super) fn step_path(&self, key: &Digest) -> PathBuf {
        self.steps_path().join(format!("{}.json", key.hex()))
    }

    /// Makes the upper `directory/tree` of a mount on `lowers` a layer, in `directory`, which is in the session's. The
    /// upper itself becomes the layer's tree. No modification time is later than `latest`, where that is given.
    ///
    /// # Errors
    /// When it has a name that no layer can have; those of the disk.
    pub fn stage_upper(
        &self,
        directory: &Path,
        lowers: &[PathBuf],
        below: Option<ChainId>,
        latest: Option<i64>,
    ) -> Result<StagedStep, Error> {
        let tree = directory.join("tree");
        let mut survey = Survey { latest, ..Survey::default() };
        survey.tree(&tree)?;
        if let Some(latest) = latest {
            survey.limit(rustix::fs::CWD, &tree, latest).map_err(Error::io("set the time of", &tree))?;
        }
        let mut layers = vec![Layer::open(&tree).map_err(Error::io("open", &tree))?];
        for lower in lowers {
            layers.push(Layer::open(lower).map_err(Error::io("open", lower))?);
        }
        let stack = Stack::new(layers);
        let path = directory.join("blob");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let (_, digest, size) = pack_step(&stack, DigestWriter::new(file))?.finish();
        let record = LayerRecord {
            diff_id: DiffId(digest),
            size: survey.bytes,
            entries: survey.entries,
            overrides: false,
            only_on: below.filter(|_| survey.refers_below),
            packed_size: None,
        };
        self.indexer
            .build_staged(&tree, &directory.join("tree.layerfs-index"))
            .map_err(|source| Error::Index { path: tree, source })?;
        Self::describe_layer(directory, &record)?;
        Ok(StagedStep {
            diff_id: record.diff_id,
            size,
            directory: directory.to_owned(),
            layer: Some(StagedLayer { directory: directory.to_owned(), record, blob: digest }),
            blob: Some(StagedBlob { path, digest }),
        })
    }

    /// Puts layers (those below first) in their places, then records. What a crash takes away it takes as a whole.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn publish_steps(
        &self,
        session: &Session,
        staged: &mut [StagedStep],
        records: &[StepRecord],
    ) -> Result<(), Error> {
        let blobs: Vec<StagedBlob> = staged.iter_mut().filter_map(|step| step.blob.take()).collect();
        let layers: Vec<StagedLayer> = staged.iter_mut().filter_map(|step| step.layer.take()).collect();
        self.publish_layers(session, &blobs, &layers)?;
        if records.is_empty() {
            return Ok(());
        }
        let directory = self.steps_path();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(Error::io("make", &directory))?;
        for record in records {
            let text = serde_json::to_vec(record).map_err(Error::json("a step's record"))?;
            // Losing one costs a step carried out again.
            self.write_file(&self.step_path(&record.key), &text, Barrier::None)?;
        }
        Ok(())
    }

    /// The record of the step with this key, if its layer is there and serves on `parent`. It counts as used now.
    pub fn find_step(&self, key: &Digest, parent: Option<ChainId>) -> Option<StepRecord> {
        let path = self.step_path(key);
        let record: StepRecord = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        if record.key != *key || record.parent != parent {
            return None;
        }
        self.usable_layer(&record.layer, parent)?;
        self.blob_size(&record.blob.0).filter(|size| *size == record.blob.1)?;
        if let Err(error) = File::open(&path).and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(%error, "note that a step was used");
        }
        Some(record)
    }

    /// All records, the longest unused first. Those that cannot be read are left out.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn steps(&self) -> Result<Vec<KeptStep>, Error> {
        let directory = self.steps_path();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &directory)(error)),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io("list", &directory))?.path();
            let Ok(text) = fs::read(&path) else { continue };
            let Ok(record) = serde_json::from_slice::<StepRecord>(&text) else { continue };
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
            steps.push(KeptStep {
                size: self.layer(&record.layer).map_or(0, |layer| layer.size),
                last_used: modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
                record,
            });
        }
        steps.sort_by_key(|step| (step.last_used, step.record.key));
        Ok(steps)
    }

    /// Forgets a step. Its layer stays until it is collected.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn forget_step(&self, key: &Digest) -> Result<(), Error> {
        let path = self.step_path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Layers and blobs that steps keep.
    pub(super) fn kept_by_steps(&self) -> Result<Vec<(DiffId, Digest)>, Error> {
        Ok(self.steps()?.into_iter().map(|step| (step.record.layer, step.record.blob.0)).collect())
    }
}

/// Counts a tree, looks for marks that lead below, and sets times back.
#[derive(Debug, Default)]
struct Survey {
    latest: Option<i64>,
    bytes: u64,
    entries: u64,
    refers_below: bool,
}

impl Survey {
    fn tree(&mut self, path: &Path) -> Result<(), Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(Error::io("open", path))?;
        for (name, _) in list_directory(directory.as_fd()).map_err(Error::io("list", path))? {
            use std::os::unix::ffi::OsStrExt;
            let at = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.entries += 1;
            let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(Error::io("look at", &at))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    self.refers_below |= has_mark(&at, "redirect");
                    self.tree(&at)?;
                }
                FileType::RegularFile => {
                    let only_metadata = has_mark(&at, "metacopy");
                    self.refers_below |= only_metadata;
                    if !only_metadata {
                        self.bytes += stat.st_size.cast_unsigned();
                    }
                }
                _ => {}
            }
            if let Some(latest) =
                self.latest.filter(|latest| (stat.st_mtime, stat.st_mtime_nsec) > (*latest, 0))
            {
                self.limit(directory.as_fd(), &name, latest).map_err(Error::io("set the time of", &at))?;
            }
        }
        Ok(())
    }

    fn limit<P: rustix::path::Arg>(
        &self,
        directory: BorrowedFd<'_>,
        name: P,
        latest: i64,
    ) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: latest, tv_nsec: 0 },
        };
        rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn has_mark(path: &Path, name: &str) -> bool {
    ["trusted.overlay.", "user.overlay."]
        .iter()
        .any(|prefix| rustix::fs::lgetxattr(path, format!("{prefix}{name}"), &mut [0_u8; 4096][..]).is_ok())
}
