//! Snapshots on disk: `containers/ID/snapshots/NAME/upper`, a copy of the container's upper as it was, and
//! `snapshot.json`.
//!
//! Must hold: a snapshot is there as a whole or not at all. It is made beside, under a name that no snapshot can have, and
//! renamed. Nothing changes it then: rolling back and forking copy from it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use layerfs_image::layer::{TreeCopied, TreeCopy, remove_tree};
use layerfs_runner::runtime::time::rfc3339;
use rustix::fs::{Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

use super::super::store::{Container, is_name};
use crate::exit::{Hinted, Usage};

const DIRECTORY: &str = "snapshots";
const DOCUMENT: &str = "snapshot.json";
/// Begins the names of what is not finished.
const UNFINISHED: &str = ".new-";
/// An upper that is about to take the place of the container's, or has lost it.
pub(crate) const REPLACED: &str = ".upper.new";

/// What is known of a snapshot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Snapshot {
    pub(super) name: String,
    /// RFC 3339.
    pub(super) created: String,
    /// Words about it.
    pub(super) message: String,
    /// Bytes of data.
    pub(super) size: u64,
    /// Names in it.
    pub(super) entries: u64,
}

fn directory_of(container: &Container) -> PathBuf {
    container.directory.join(DIRECTORY)
}

/// The upper that a snapshot keeps.
pub(super) fn tree_of(container: &Container, name: &str) -> PathBuf {
    directory_of(container).join(name).join("upper")
}

/// All snapshots of a container, the oldest first.
pub(super) fn all(container: &Container) -> anyhow::Result<Vec<Snapshot>> {
    let directory = directory_of(container);
    let words = || format!("list the snapshots of container {}", container.config.name);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.with_context(words)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(words)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !is_name(&name) {
            continue;
        }
        let text = match fs::read(entry.path().join(DOCUMENT)) {
            // Being removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            result => result.with_context(words)?,
        };
        let snapshot: Snapshot = serde_json::from_slice(&text).with_context(words)?;
        found.push(Snapshot { name, ..snapshot });
    }
    found.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    Ok(found)
}

/// The snapshot with this name.
pub(super) fn find(container: &Container, name: &str) -> anyhow::Result<Snapshot> {
    let all = all(container)?;
    let names: Vec<&str> = all.iter().map(|snapshot| snapshot.name.as_str()).collect();
    match all.iter().find(|snapshot| snapshot.name == name) {
        Some(found) => Ok(found.clone()),
        None => bail!(Hinted {
            message: format!("container {} has no snapshot {name:?}", container.config.name),
            hint: match names[..] {
                [] => format!("make one with: layerfs snapshot {}", container.config.name),
                _ => format!("it has: {}", names.join(", ")),
            },
        }),
    }
}

/// A name that no snapshot of the container has.
pub(super) fn free_name(container: &Container) -> anyhow::Result<String> {
    let last = all(container)?.iter().filter_map(|snapshot| snapshot.name.parse::<u64>().ok()).max();
    Ok((last.unwrap_or(0) + 1).to_string())
}

/// A snapshot that is not there yet; dropping it leaves nothing.
#[derive(Debug)]
pub(super) struct Draft {
    beside: PathBuf,
    to: PathBuf,
    snapshot: Snapshot,
}

/// Copies the upper of a container that is at rest.
pub(super) fn draft(container: &Container, name: &str, message: &str) -> anyhow::Result<Draft> {
    if !is_name(name) {
        bail!(Usage(format!(
            "{name:?}: a snapshot's name has letters, digits and _.- only, and begins with one of the first two"
        )));
    }
    let directory = directory_of(container);
    let (beside, to) = (directory.join(format!("{UNFINISHED}{name}")), directory.join(name));
    let taken = || Hinted {
        message: format!("container {} has a snapshot {name:?} already", container.config.name),
        hint: "choose another name, or remove that snapshot (layerfs snapshot rm)".into(),
    };
    if to.exists() {
        bail!(taken());
    }
    let words = || format!("make {}", beside.display());
    make_directory(&directory).with_context(words)?;
    // Of a command that was killed.
    remove_tree(&beside).with_context(words)?;
    make_directory(&beside).with_context(words)?;
    let mut draft = Draft { beside, to, snapshot: Snapshot::default() };
    let TreeCopied { bytes, entries, .. } = TreeCopy::default()
        .copy(&container.directory.join("upper"), &draft.beside.join("upper"))
        .context("copy the changes")?;
    draft.snapshot = Snapshot {
        name: name.to_owned(),
        created: rfc3339(SystemTime::now()),
        message: message.to_owned(),
        size: bytes,
        entries,
    };
    Ok(draft)
}

impl Draft {
    /// Makes it a snapshot, which survives whatever happens to the machine then.
    pub(super) fn publish(self) -> anyhow::Result<Snapshot> {
        let words = || format!("write snapshot {}", self.snapshot.name);
        fs::write(self.beside.join(DOCUMENT), serde_json::to_vec(&self.snapshot)?).with_context(words)?;
        sync(&self.beside).with_context(words)?;
        fs::rename(&self.beside, &self.to).with_context(words)?;
        fs::File::open(self.to.parent().unwrap_or(&self.to))
            .and_then(|directory| directory.sync_all())
            .with_context(words)?;
        Ok(self.snapshot.clone())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What was published is not there any more under this name.
        if let Err(error) = remove_tree(&self.beside) {
            tracing::warn!(%error, path = %self.beside.display(), "remove an unfinished snapshot");
        }
    }
}

/// Removes a snapshot: first out of sight, then from the disk.
pub(super) fn remove(container: &Container, name: &str) -> anyhow::Result<()> {
    find(container, name)?;
    let directory = directory_of(container);
    let beside = directory.join(format!("{UNFINISHED}{name}"));
    let words = || format!("remove snapshot {name}");
    remove_tree(&beside).with_context(words)?;
    fs::rename(directory.join(name), &beside).with_context(words)?;
    remove_tree(&beside).with_context(words)
}

/// Puts a copy of `tree`, or an empty upper, in the place of the stopped container's upper, in one step.
pub(super) fn replace_upper(container: &Container, tree: Option<&Path>) -> anyhow::Result<()> {
    let (upper, beside) = (container.directory.join("upper"), container.directory.join(REPLACED));
    let words = || format!("replace the writable layer of container {}", container.config.name);
    remove_tree(&beside).with_context(words)?;
    let made = || -> anyhow::Result<()> {
        match tree {
            Some(tree) => drop(TreeCopy::default().copy(tree, &beside).with_context(words)?),
            None => {
                fs::DirBuilder::new().mode(0o755).create(&beside).with_context(words)?;
                super::super::create::take_attributes(&upper, &beside).with_context(words)?;
            }
        }
        // The old state is there until the new one is on disk.
        sync(&beside).with_context(words)?;
        rustix::fs::renameat_with(rustix::fs::CWD, &beside, rustix::fs::CWD, &upper, RenameFlags::EXCHANGE)
            .with_context(words)
    };
    let result = made();
    // The old upper, or the half-made new one.
    let removed = remove_tree(&beside).with_context(words);
    result.and(removed)
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Has everything on the filesystem of `path` written.
fn sync(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(rustix::fs::syncfs(&directory)?)
}

/// What killed commands left of snapshots and layers of a container whose layer is locked. With `mend` it goes.
pub(crate) fn leftovers(directory: &Path, mend: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let beside = directory.join(REPLACED);
    if beside.exists() {
        found.push(beside);
    }
    match fs::read_dir(directory.join(DIRECTORY)) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.context("list snapshots")?;
                if !entry.file_name().to_str().is_some_and(is_name) {
                    found.push(entry.path());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("list snapshots"),
    }
    if mend {
        for path in &found {
            remove_tree(path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(found)
}

/// Names and sizes of all snapshots in a container's directory, for those who count.
pub(crate) fn trees(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.join(DIRECTORY)).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_name))
        .map(|entry| entry.path())
        .collect()
}
