//! Where containers are kept.
//!
//! ```text
//! ROOT/containers/.lock      held while a container is made, or leftovers are looked for
//! ROOT/containers/ID/lock    held by the run as long as it lives
//! ROOT/containers/ID/state.json
//! ROOT/containers/ID/upper   what the container changed
//! ROOT/containers/ID/work    scratch of the mount
//! ROOT/containers/ID/lower   the root filesystem, read-only: mounted in the run's own namespace only
//! ROOT/containers/ID/merged  what the container sees: mounted there too
//! ROOT/containers/ID/mount.log
//! ```
//!
//! Must hold: a container whose lock is free has no run. The kernel frees it however a run ends, and the next run
//! cleans up after it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use layerfs_runner::Container;
use layerfs_runner::cgroup::Cgroup;
use layerfs_runner::state::{State, Status};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Pid;

use super::remove::remove_tree;
use crate::exit::Hinted;

/// Names the root of the store.
pub(crate) const ROOT_VARIABLE: &str = "LAYERFS_ROOT";
/// What the container changed.
pub(super) const UPPER: &str = "upper";
/// Scratch of the mount.
pub(super) const WORK: &str = "work";
/// The root filesystem.
pub(super) const LOWER: &str = "lower";
/// What the container sees.
pub(super) const MERGED: &str = "merged";
/// Log of the mount process.
pub(super) const MOUNT_LOG: &str = "mount.log";
const LOCK: &str = "lock";
const STORE_LOCK: &str = ".lock";

/// The first digits of a container's id, enough for people.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// The store's root, once it was asked for: an ordinary user who has become root of a user namespace since is still the
/// same user.
static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Says where the store is, to a process that is told so by another; before anybody asks.
pub(crate) fn set_root(root: &Path) {
    drop(ROOT.set(root.to_owned()));
}

/// The store's root: from the environment, else the usual place of this user.
pub(crate) fn default_root() -> anyhow::Result<PathBuf> {
    match ROOT.get() {
        Some(root) => Ok(root.clone()),
        None => usual_root().map(|root| ROOT.get_or_init(|| root).clone()),
    }
}

fn usual_root() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = if let Some(root) = set(ROOT_VARIABLE) {
        root
    } else if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib/layerfs")
    } else if let Some(data) = set("XDG_DATA_HOME").filter(|data| data.is_absolute()) {
        data.join("layerfs")
    } else if let Some(home) = set("HOME").filter(|home| home.is_absolute()) {
        home.join(".local/share/layerfs")
    } else {
        bail!(Hinted {
            message: "no place for containers is known: HOME is not set".into(),
            hint: format!("set {ROOT_VARIABLE} to a directory"),
        });
    };
    std::path::absolute(&root).with_context(|| format!("path {root:?}"))
}

/// The store.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    containers: PathBuf,
}

impl Store {
    /// Opens the store at `root`, which is made if it is missing.
    pub(super) fn open(root: PathBuf) -> anyhow::Result<Self> {
        let containers = root.join("containers");
        // What containers hold is not for others to read.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&root)
            .with_context(|| store_words(&root))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&containers)
            .with_context(|| store_words(&root))?;
        let root = fs::canonicalize(&root).with_context(|| store_words(&root))?;
        let containers = root.join("containers");
        Ok(Self { root, containers })
    }

    /// Its root, symlinks resolved.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn lock(&self) -> anyhow::Result<File> {
        let path = self.containers.join(STORE_LOCK);
        let file = open_lock(&path)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
            .with_context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }

    /// Makes the directory of a new container, locked.
    pub(super) fn create(&self, rootfs: &Path, remove: bool) -> anyhow::Result<ContainerDirectory> {
        let id = new_id().context("make a container id")?;
        let path = self.containers.join(&id);
        let store_lock = self.lock()?;
        let shown = path.clone();
        let words = || format!("make container directory {}", shown.display());
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(words)?;
        let lock = open_lock(&path.join(LOCK)).and_then(|file| {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(words)?;
            Ok(file)
        });
        drop(store_lock);
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let state = State {
            id,
            status: Status::Creating,
            rootfs: rootfs.to_owned(),
            remove,
            created,
            process: None,
            servants: Vec::new(),
            cgroup: Vec::new(),
            exit_code: None,
        };
        let directory = ContainerDirectory { path, state, lock: Some(lock?), settled: false };
        for name in [UPPER, WORK, LOWER, MERGED] {
            fs::DirBuilder::new().mode(0o755).create(directory.path.join(name)).with_context(words)?;
        }
        directory.state.save(&directory.path).with_context(words)?;
        Ok(directory)
    }

    /// Cleans up after runs that were killed. What cannot be is told, and left.
    pub(super) fn sweep(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        match self.abandoned() {
            Ok(abandoned) => {
                for directory in abandoned {
                    let path = directory.path.clone();
                    if let Err(error) = directory.clean_up() {
                        warnings
                            .push(format!("clean up after the container in {}: {error:#}", path.display()));
                    }
                }
            }
            Err(error) => warnings.push(format!("look for containers of killed runs: {error:#}")),
        }
        warnings
    }

    /// Containers that have no run any more and are not settled, locked.
    fn abandoned(&self) -> anyhow::Result<Vec<ContainerDirectory>> {
        let _store_lock = self.lock()?;
        let mut abandoned = Vec::new();
        for entry in fs::read_dir(&self.containers).context("list the containers")? {
            let path = entry.context("list the containers")?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_id(name)) else {
                continue;
            };
            // One with a monitor of its own; see `commands::container::store`.
            if path.join(crate::commands::container::store::CONFIG).exists() {
                continue;
            }
            let Ok(lock) = open_lock(&path.join(LOCK)) else { continue };
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => continue,
                Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
            }
            let state = match State::load(&path) {
                Ok(state) if state.status == Status::Stopped && !state.remove => continue,
                Ok(state) => state,
                // Killed before it wrote one: nothing was mounted or run yet.
                Err(_) => State {
                    id: id.to_owned(),
                    status: Status::Creating,
                    rootfs: PathBuf::new(),
                    remove: true,
                    created: 0,
                    process: None,
                    servants: Vec::new(),
                    cgroup: Vec::new(),
                    exit_code: None,
                },
            };
            abandoned.push(ContainerDirectory { path, state, lock: Some(lock), settled: true });
        }
        Ok(abandoned)
    }
}

fn store_words(root: &Path) -> String {
    format!("open the store in {} (set {ROOT_VARIABLE} to have it elsewhere)", root.display())
}

fn open_lock(path: &Path) -> anyhow::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open lock file {}", path.display()))
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn new_id() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A container's directory, held by this run. Dropping it removes it, unless it was kept.
#[derive(Debug)]
pub(super) struct ContainerDirectory {
    path: PathBuf,
    state: State,
    lock: Option<File>,
    settled: bool,
}

impl ContainerDirectory {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn id(&self) -> &str {
        &self.state.id
    }

    /// Records where the container is in its life. For the next run only: a failure costs nothing now.
    pub(super) fn note(&mut self, status: Status) {
        self.state.status = status;
        self.save();
    }

    /// Records a process that has to go with the container.
    pub(super) fn note_servant(&mut self, pid: Pid) {
        self.state.servants.extend(super::identity_of(pid));
        self.save();
    }

    /// Records the container's process and cgroup.
    pub(super) fn note_created(&mut self, container: &Container) {
        self.state.process = super::identity_of(container.pid());
        self.state.cgroup = container.cgroup_directories().to_vec();
        self.note(Status::Created);
    }

    /// True when the command has run, or still does.
    pub(super) fn has_run(&self) -> bool {
        matches!(self.state.status, Status::Running | Status::Stopped)
    }

    /// The last lines of the mount process's log, in parentheses; nothing when it said nothing.
    pub(super) fn last_words_of_mount(&self) -> String {
        let log = fs::read(self.path.join(MOUNT_LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        if lines.is_empty() {
            return String::new();
        }
        format!(" (its log ends: {})", lines.into_iter().rev().collect::<Vec<_>>().join("; "))
    }

    /// Records how the command ended.
    pub(super) fn note_exit(&mut self, code: u8) {
        self.state.exit_code = Some(code);
        self.note(Status::Stopped);
    }

    fn save(&self) {
        if let Err(error) = self.state.save(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "write the container's state");
        }
    }

    /// Leaves the changes for later: what is mounted nowhere any more goes, the rest stays.
    pub(super) fn keep(&mut self) -> anyhow::Result<()> {
        self.settled = true;
        self.remove_mountpoints()?;
        remove_tree(&self.path.join(WORK))?;
        self.state.status = Status::Stopped;
        self.state.process = None;
        self.state.servants.clear();
        self.state.cgroup.clear();
        self.state.save(&self.path).context("write the container's state")
    }

    /// Removes the container and its changes.
    pub(super) fn remove(mut self) -> anyhow::Result<()> {
        self.settled = true;
        self.remove_all()
    }

    /// After a killed run: its processes, its cgroup, then as it would have done itself.
    fn clean_up(mut self) -> anyhow::Result<()> {
        for process in self.state.process.into_iter().chain(self.state.servants.iter().copied()) {
            process.kill().with_context(|| format!("kill process {}", process.pid))?;
        }
        Cgroup::from_directories(std::mem::take(&mut self.state.cgroup)).remove()?;
        if self.state.status == Status::Running {
            self.state.exit_code = Some(128 + 9);
        }
        match self.state.remove {
            true => self.remove_all(),
            false => self.keep(),
        }
    }

    fn remove_all(&mut self) -> anyhow::Result<()> {
        self.remove_mountpoints()?;
        for name in [UPPER, WORK] {
            remove_tree(&self.path.join(name))?;
        }
        // Last, and together with the lock, under which nobody else looks at it.
        remove_tree(&self.path)?;
        self.lock = None;
        Ok(())
    }

    /// The mountpoints are empty directories, or something is still mounted there: then they are not removed, and
    /// nothing else is.
    fn remove_mountpoints(&self) -> anyhow::Result<()> {
        for name in [MERGED, LOWER] {
            let path = self.path.join(name);
            // In this run's own namespace; in others it is no mount, and EINVAL.
            while rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
            match fs::remove_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                result => result.with_context(|| format!("remove mountpoint {}", path.display()))?,
            }
        }
        Ok(())
    }
}

impl Drop for ContainerDirectory {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if let Err(error) = self.remove_all() {
            tracing::warn!(error = format!("{error:#}"), "the next run removes the container");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &tempfile::TempDir) -> Store {
        Store::open(dir.path().join("store")).unwrap()
    }

    fn ids(store: &Store) -> usize {
        fs::read_dir(&store.containers)
            .unwrap()
            .filter(|entry| is_id(entry.as_ref().unwrap().file_name().to_str().unwrap()))
            .count()
    }

    #[test]
    fn a_container_goes_with_its_guard_and_stays_when_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        drop(store.create(Path::new("/srv"), true).unwrap());
        assert_eq!(ids(&store), 0);
        let mut kept = store.create(Path::new("/srv"), false).unwrap();
        fs::write(kept.path().join("upper/file"), "x").unwrap();
        kept.keep().unwrap();
        let path = kept.path().to_owned();
        drop(kept);
        assert!(path.join("upper/file").exists());
        assert!(!path.join("work").exists() && !path.join("merged").exists());
        assert!(store.sweep().is_empty());
        assert!(path.join("upper/file").exists(), "a kept container was swept");
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let living = store.create(Path::new("/srv"), true).unwrap();
        let mut killed = store.create(Path::new("/srv"), true).unwrap();
        fs::write(killed.path().join("upper/file"), "x").unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        killed.note_servant(Pid::from_child(&child));
        let path = killed.path().to_owned();
        // As the kernel does at the death of its holder.
        killed.lock = None;
        std::mem::forget(killed);
        assert_eq!(store.sweep(), Vec::<String>::new());
        assert!(!path.exists());
        assert!(living.path().exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_run_killed_before_it_wrote_its_state_is_removed_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let path = store.containers.join("0".repeat(64));
        fs::create_dir(&path).unwrap();
        assert_eq!(store.sweep(), Vec::<String>::new());
        assert!(!path.exists());
    }
}
