//! Directories that steps find again (`RUN --mount=type=cache`).
//!
//! ```text
//! ROOT/build/cache/HEX/id.json    its name; HEX is the beginning of the name's digest, and a number where it is private
//! ROOT/build/cache/HEX/data/      what steps see
//! ROOT/build/cache/HEX/lock       shared while a step uses it, exclusive where it is `locked`
//! ```

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use layerfs_build::instruction::Sharing;
use layerfs_image::digest::Digest;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::commands::run::remove_tree;

/// A directory that is used.
#[derive(Debug)]
pub(super) struct CacheMount {
    pub(super) data: PathBuf,
    /// Nobody had used it before.
    pub(super) is_new: bool,
    /// Keeps it.
    pub(super) lock: OwnedFd,
}

/// What there is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) id: String,
    #[serde(skip)]
    pub(crate) directory: PathBuf,
}

/// Uses the directory called `id`, which is made if it is missing; waits for others where `sharing` says so.
pub(super) fn take(
    root: &Path,
    id: &str,
    sharing: Sharing,
    (mode, uid, gid): (u32, u32, u32),
) -> anyhow::Result<CacheMount> {
    let words = || format!("use cache {id:?}");
    let name: String = Digest::of(id).hex().chars().take(24).collect();
    for number in 0.. {
        let directory = match number {
            0 => root.join(&name),
            number => root.join(format!("{name}-{number}")),
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).with_context(words)?;
        let path = directory.join("lock");
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(words)?;
        let operation = match sharing {
            Sharing::Shared => FlockOperation::LockShared,
            Sharing::Locked => FlockOperation::LockExclusive,
            Sharing::Private => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, operation)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => continue,
            Err(error) => return Err(error).with_context(words),
        }
        // It may have been pruned between the two.
        if !path.exists() {
            return take(root, id, sharing, (mode, uid, gid));
        }
        let data = directory.join("data");
        let is_new = !data.exists();
        if is_new {
            // Its own, since another step may be at it too.
            let new =
                tempfile::Builder::new().prefix("data-").tempdir_in(&directory).with_context(words)?.keep();
            chown(&new, Some(uid), Some(gid)).with_context(words)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(mode)).with_context(words)?;
            fs::write(
                directory.join("id.json"),
                serde_json::to_vec(&Kept { id: id.to_owned(), directory: PathBuf::new() })?,
            )
            .with_context(words)?;
            match fs::rename(&new, &data) {
                // Another step that shares it was quicker.
                Err(_) if data.exists() => remove_tree(&new)?,
                other => other.with_context(words)?,
            }
        }
        return Ok(CacheMount { data, is_new, lock: lock.into() });
    }
    anyhow::bail!("no cache directory is free for {id:?}")
}

/// All directories.
pub(crate) fn all(root: &Path) -> anyhow::Result<Vec<Kept>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("list {}", root.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let directory = entry?.path();
        let text = fs::read(directory.join("id.json")).unwrap_or_default();
        let id = serde_json::from_slice::<Kept>(&text).map_or_else(|_| String::new(), |kept| kept.id);
        found.push(Kept { id, directory });
    }
    found.sort_by(|a, b| a.directory.cmp(&b.directory));
    Ok(found)
}

/// Whether a step uses it.
pub(crate) fn is_used(kept: &Kept) -> bool {
    File::open(kept.directory.join("lock"))
        .is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err())
}

/// Removes one that nobody uses. False when it is used.
pub(crate) fn remove(kept: &Kept) -> anyhow::Result<bool> {
    // Held until it is gone.
    let lock = File::open(kept.directory.join("lock"));
    if let Ok(lock) = &lock
        && rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()
    {
        return Ok(false);
    }
    remove_tree(&kept.directory)?;
    Ok(true)
}
