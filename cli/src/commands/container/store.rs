//! Containers on disk, by id and by name, without a daemon.
//!
//! ```text
//! ROOT/containers/.lock             held while a container or a name is made, or taken away
//! ROOT/containers/ID/config.json    what was asked for; replaced by rename
//! ROOT/containers/ID/state.json     where it is in its life; the monitor's while it lives
//! ROOT/containers/ID/lock           held by whoever changes it: a command, or its monitor
//! ROOT/containers/ID/container.log  what its program wrote
//! ROOT/containers/ID/upper, work, merged, lower   the mount
//! ROOT/containers/ID/bundle, oci    for the runtime, while it runs
//! ROOT/containers/ID/snapshots/NAME copies of the upper; `layer.lock` is held by whoever copies or replaces it
//! ROOT/containers/.fork-ID, .gone-ID a fork being made, a container being removed; locked
//! ROOT/names/NAME                   a link to ID
//! ```
//!
//! Must hold: a name leads to one container; a container whose lock is free has no monitor, and what its state says of
//! processes is a leftover.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use layerfs_runner::cgroup::Cgroup;
use layerfs_runner::monitor::connection::Connection;
use layerfs_runner::monitor::record::{Record, Status};
use layerfs_runner::runtime::time::rfc3339;
use layerfs_runner::state::{ProcessIdentity, State};
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::config::{ContainerConfig, NetworkMode};
use super::kept;
use crate::commands::run::{remove_tree, short, store_root};
use crate::exit::Hinted;

/// The document of what was asked for.
pub(crate) const CONFIG: &str = "config.json";
/// What its program wrote.
pub(super) const LOG: &str = "container.log";
const LOCK: &str = "lock";

/// All containers.
#[derive(Debug)]
pub(crate) struct Containers {
    directory: PathBuf,
    names: PathBuf,
}

/// One, as it was when it was looked at.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) directory: PathBuf,
    pub(crate) config: ContainerConfig,
    pub(crate) record: Record,
}

impl Containers {
    /// Opens the store, which is made if it is missing. An ordinary user becomes root of a user namespace.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let root = store_root()?;
        if !rustix::process::geteuid().is_root()
            && let Err(error) = layerfs_runner::host::enter_user_namespace()
        {
            bail!(Hinted {
                message: format!("become root of a user namespace: {}", error.words()),
                hint: "run as root, or allow user namespaces for ordinary users".into(),
            });
        }
        Self::at(&root)
    }

    /// As [`open`](Self::open), for a command that works with the container `name`: where that runs, an ordinary user
    /// enters its user namespace, outside of which its root directory is nobody's to open.
    pub(crate) fn open_beside(name: &str) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            let containers = Self::at(&store_root()?)?;
            // What cannot be found is told by whoever looks for it next.
            if let Ok(container) = containers.find(name)
                && let Some(process) = container.record.process
                && container.is_running()
                && process.is_alive()
            {
                layerfs_runner::host::join_user_namespace(process.pid)
                    .context("enter the container's user namespace")?;
                return Ok(containers);
            }
        }
        Self::open()
    }

    /// As [`open`](Self::open), for a command that starts a container with these namespaces: `container:NAME` in one of
    /// them needs the user namespace of that container, which has all of its others.
    pub(super) fn open_joining<'a>(modes: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Self> {
        match modes.into_iter().find_map(|mode| mode.strip_prefix("container:")) {
            Some(name) => Self::open_beside(name),
            None => Self::open(),
        }
    }

    /// As [`open_joining`](Self::open_joining), for a command that starts these containers.
    pub(super) fn open_to_start(names: &[String]) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            let containers = Self::at(&store_root()?)?;
            let mut found = names.iter().filter_map(|name| containers.find(name).ok());
            if let Some(other) = found.find_map(|found| found.config.joined().map(str::to_owned)) {
                return Self::open_beside(&other);
            }
        }
        Self::open()
    }

    pub(super) fn at(root: &Path) -> anyhow::Result<Self> {
        let containers = Self { directory: root.join("containers"), names: root.join("names") };
        if !containers.names.is_dir() || !containers.directory.is_dir() {
            for (path, mode) in [(root, 0o711), (&containers.directory, 0o700), (&containers.names, 0o700)] {
                fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| Hinted {
                    message: format!("make {}", path.display()),
                    hint: "set LAYERFS_ROOT to a directory that you may write to".into(),
                })?;
            }
        }
        Ok(containers)
    }

    /// Keeps others from making and naming containers.
    pub(super) fn lock(&self) -> anyhow::Result<OwnedFd> {
        lock_file(&self.directory.join(".lock"))
    }

    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.directory.join(id)
    }

    /// The directory of all.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of names.
    pub(super) fn names(&self) -> &Path {
        &self.names
    }

    /// Ids of all, in no order.
    pub(super) fn ids(&self) -> anyhow::Result<Vec<String>> {
        let words = || format!("list {}", self.directory.display());
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.directory).with_context(words)? {
            if let Ok(name) = entry.with_context(words)?.file_name().into_string()
                && is_id(&name)
            {
                ids.push(name);
            }
        }
        Ok(ids)
    }

    /// All that can be read, the newest first. What a killed monitor has left is settled.
    pub(crate) fn all(&self) -> anyhow::Result<Vec<Container>> {
        let mut all = Vec::new();
        for id in self.ids()? {
            if let Ok(container) = self.load(&id) {
                all.push(container);
            }
        }
        all.sort_by(|a, b| b.config.created.cmp(&a.config.created));
        Ok(all)
    }

    pub(super) fn load(&self, id: &str) -> anyhow::Result<Container> {
        let directory = self.path(id);
        let container = read(&directory)?;
        // A foreground run has no monitor, and holds the lock itself; its program may outlive it for a moment.
        if container.config.is_foreground
            && container.record.status != Status::Exited
            && matches!(try_lock_file(&directory.join(LOCK)), Ok(Some(_)))
        {
            crate::commands::run::settle_killed()?;
            return read(&directory);
        }
        if !container.record.is_abandoned() {
            return Ok(container);
        }
        // Its monitor may be about to write what it has done: the lock tells.
        match try_lock_file(&directory.join(LOCK)) {
            Ok(Some(_lock)) => {
                settle(&directory)?;
                let container = read(&directory)?;
                // Nobody waits for the store here, who may hold it: whoever looks next removes it then.
                if container.is_to_be_removed()
                    && let Some(store) = try_lock_file(&self.directory.join(".lock"))?
                {
                    container.remove_with(self, store)?;
                    super::volume::remove_own(&container.config)?;
                    bail!("No such container: {}", container.config.name);
                }
                Ok(container)
            }
            _ => Ok(container),
        }
    }

    /// The id that a name, an id or the beginning of one means.
    pub(crate) fn id_of(&self, name: &str) -> anyhow::Result<String> {
        if is_id(name) && self.path(name).is_dir() {
            return Ok(name.to_owned());
        }
        let name = name.strip_prefix('/').unwrap_or(name);
        if is_name(name)
            && let Ok(id) = fs::read_link(self.names.join(name))
            && let Some(id) = id.to_str()
            && self.path(id).join(CONFIG).exists()
        {
            return Ok(id.to_owned());
        }
        let mut found: Vec<String> =
            self.ids()?.into_iter().filter(|id| !name.is_empty() && id.starts_with(name)).collect();
        match found.len() {
            0 => bail!("No such container: {name}"),
            1 => Ok(found.swap_remove(0)),
            _ => bail!("multiple IDs found with provided prefix: {name}"),
        }
    }

    /// The container that `name` means.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<Container> {
        let id = self.id_of(name)?;
        self.load(&id).map_err(|_| anyhow::anyhow!("No such container: {name}"))
    }

    /// Takes `name` for the container `id`. The lock of the store must be held.
    pub(super) fn take_name(&self, name: &str, id: &str) -> anyhow::Result<()> {
        if !is_name(name) {
            bail!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
        }
        let path = self.names.join(name);
        if let Ok(other) = fs::read_link(&path) {
            let taken = read(&self.directory.join(&other)).is_ok_and(|other| other.config.name == name);
            let other = other.to_string_lossy();
            if taken {
                bail!(Hinted {
                    message: format!(
                        "Conflict. The container name \"/{name}\" is already in use by container \"{other}\""
                    ),
                    hint: "remove (or rename) that container to be able to reuse that name".into(),
                });
            }
            // Left by a command that was killed.
            fs::remove_file(&path).with_context(|| format!("free the name {name}"))?;
        }
        symlink(id, &path).with_context(|| format!("take the name {name}"))
    }

    /// Frees a name, if it is that container's.
    pub(super) fn free_name(&self, name: &str, id: &str) {
        let path = self.names.join(name);
        if is_name(name) && fs::read_link(&path).is_ok_and(|own| own == Path::new(id)) {
            // A leftover is found by whoever wants the name.
            fs::remove_file(&path).ok();
        }
    }
}

/// The container in `directory`, whose lock the caller holds.
pub(super) fn read_for_monitor(directory: &Path) -> anyhow::Result<Container> {
    read(directory)
}

fn read(directory: &Path) -> anyhow::Result<Container> {
    // A foreground run that was kept has, for a moment, a config and still its own state.
    let record = Record::load(directory)
        .or_else(|error| State::load(directory).map(|state| kept::record_of(&state)).map_err(|_| error));
    let config = match fs::read(directory.join(CONFIG)) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("read {}", directory.join(CONFIG).display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return read_of_foreground_run(directory);
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", directory.display())),
    };
    Ok(Container {
        directory: directory.to_owned(),
        config,
        record: record.with_context(|| format!("read the state in {}", directory.display()))?,
    })
}

/// A container that `run --rootfs` has kept: it has no config of this kind.
fn read_of_foreground_run(directory: &Path) -> anyhow::Result<Container> {
    let state = State::load(directory)?;
    let record = kept::record_of(&state);
    let created = std::time::UNIX_EPOCH + std::time::Duration::from_secs(state.created);
    let config = ContainerConfig {
        id: state.id.clone(),
        name: short(&state.id).to_owned(),
        created: rfc3339(created),
        image_name: state.rootfs.display().to_string(),
        rootfs: Some(state.rootfs),
        is_foreground: true,
        ..ContainerConfig::default()
    };
    Ok(Container { directory: directory.to_owned(), config, record })
}

/// What came of locking a container.
pub(super) enum Locked {
    /// It is the caller's to change; as it is now.
    Mine(OwnedFd, Box<Container>),
    /// It runs, and its monitor keeps the lock.
    Runs(Box<Container>),
}

impl Container {
    pub(crate) fn id(&self) -> &str {
        &self.config.id
    }

    pub(crate) fn short(&self) -> &str {
        short(&self.config.id)
    }

    pub(super) fn is_running(&self) -> bool {
        self.record.status == Status::Running
    }

    /// Its processes are stopped.
    pub(super) fn is_paused(&self) -> bool {
        self.is_running() && Cgroup::borrowed(&self.record.cgroup).is_frozen()
    }

    /// Its state, in docker's words.
    pub(super) fn word(&self) -> &'static str {
        if self.is_paused() { "paused" } else { self.record.status.word() }
    }

    /// Waits until nobody else changes it; then as it is now. A monitor holds the lock as long as its container runs:
    /// that is not waited for, also where it began to run only now.
    pub(super) fn lock(&self) -> anyhow::Result<Locked> {
        let gone = || format!("No such container: {}", self.config.name);
        let mut pause = Duration::from_millis(1);
        let mut has_ended = false;
        let lock = loop {
            match try_lock_file(&self.directory.join(LOCK)) {
                Ok(Some(lock)) => break lock,
                Ok(None) => {}
                Err(_) if !self.directory.exists() => bail!(gone()),
                Err(error) => return Err(error),
            }
            let now = read(&self.directory).with_context(gone)?;
            if now.record.is_watched() && matches!(now.record.status, Status::Running | Status::Restarting) {
                return Ok(Locked::Runs(Box::new(now)));
            }
            // Being started, ended or removed by somebody: a moment each. Nothing tells when a lock comes free without
            // taking it; but the end of a monitor that has it is told.
            match now.record.monitor.filter(|_| !has_ended).and_then(ProcessIdentity::open) {
                Some(monitor) => has_ended = wait_for_end(&monitor, pause),
                None => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let record = Record::load(&self.directory);
        if record.as_ref().is_ok_and(Record::is_abandoned) {
            settle(&self.directory)?;
        }
        let now = read(&self.directory).with_context(gone)?;
        Ok(Locked::Mine(lock, Box::new(now)))
    }

    /// Its monitor, if it has one.
    pub(super) fn connect(&self) -> anyhow::Result<Option<Connection>> {
        let words = || format!("reach the monitor of container {}", self.config.name);
        Connection::open(&self.directory).with_context(words)
    }

    /// It should have been removed at its end, which did not come in order.
    pub(super) fn is_to_be_removed(&self) -> bool {
        self.record.status == Status::Dead && self.config.remove
    }

    /// Writes what is asked for.
    pub(super) fn save_config(&self) -> anyhow::Result<()> {
        save_config(&self.directory, &self.config)
    }

    /// Removes it. Its lock must be held.
    pub(super) fn remove(&self, containers: &Containers) -> anyhow::Result<()> {
        self.remove_with(containers, containers.lock()?)
    }

    fn remove_with(&self, containers: &Containers, store: OwnedFd) -> anyhow::Result<()> {
        let gone = {
            let _store = store;
            // It may have another name by now, which the store's lock alone guards.
            let name = read(&self.directory).map_or_else(|_| self.config.name.clone(), |now| now.config.name);
            let gone = hide(&self.directory)?;
            containers.free_name(&name, &self.config.id);
            gone
        };
        gone.remove()
    }
}

/// A directory that is locked while something is made in it, or it is removed.
#[derive(Debug)]
pub(super) struct Hidden {
    pub(super) path: PathBuf,
    _lock: OwnedFd,
}

/// Begins the name of a container's directory that is being removed; the rest is its id.
pub(super) const REMOVED: &str = ".gone-";

impl Hidden {
    /// Makes a directory.
    pub(super) fn make(path: PathBuf) -> anyhow::Result<Self> {
        let words = || format!("make {}", path.display());
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(words)?;
        let lock = lock_directory(&path).with_context(words)?;
        Ok(Self { path, _lock: lock })
    }

    /// Whether nobody works on the directory at `path`; false, too, when it is not there.
    pub(super) fn is_left(path: &Path) -> bool {
        lock_directory(path).is_ok()
    }

    pub(super) fn remove(self) -> anyhow::Result<()> {
        remove_tree(&self.path)
    }
}

fn lock_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
    Ok(directory)
}

/// Takes a container's directory away: out of sight in one step, so that a killed command leaves a whole container or
/// none, then from the disk.
pub(super) fn remove_files(directory: &Path) -> anyhow::Result<()> {
    hide(directory)?.remove()
}

fn hide(directory: &Path) -> anyhow::Result<Hidden> {
    for name in ["merged", "lower"] {
        let path = directory.join(name);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Still mounted: nothing is removed then. (They are made again by a start.)
            result => result.with_context(|| format!("remove mountpoint {}", path.display()))?,
        }
    }
    let words = || format!("remove {}", directory.display());
    let lock = lock_directory(directory).with_context(words)?;
    let mut name = std::ffi::OsString::from(REMOVED);
    name.push(directory.file_name().unwrap_or_default());
    let path = directory.with_file_name(name);
    fs::rename(directory, &path).with_context(words)?;
    Ok(Hidden { path, _lock: lock })
}

pub(super) fn save_config(directory: &Path, config: &ContainerConfig) -> anyhow::Result<()> {
    let words = || format!("write the config of container {}", config.name);
    let temporary = directory.join(".config.json.new");
    write_private(&temporary, &serde_json::to_vec(config)?).with_context(words)?;
    fs::rename(&temporary, directory.join(CONFIG)).with_context(words)
}

/// Writes a file that is its owner's alone, whatever the umask of the caller: there are secrets in the environment of a
/// program.
pub(super) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    io::Write::write_all(&mut options.open(path)?, content)
}

/// After a monitor was killed, or the machine: ends what is left of its container, and says so in the state. The lock
/// must be held.
pub(super) fn settle(directory: &Path) -> anyhow::Result<()> {
    let Ok(mut record) = Record::load(directory) else { return Ok(()) };
    let is_now = record.boot == layerfs_runner::monitor::record::boot();
    let was_running = matches!(record.status, Status::Running | Status::Restarting);
    if is_now {
        let mount = record.mount.or_else(|| super::body::mount_process_of(directory));
        let images = super::body::image_processes_of(directory);
        for process in record.process.into_iter().chain(mount).chain(images) {
            process.kill().with_context(|| format!("kill process {}", process.pid))?;
        }
        Cgroup::from_directories(std::mem::take(&mut record.cgroup)).remove()?;
        // What was planned and never written down in the state.
        super::body::runtime_of(directory).delete(&record.id, true)?;
        if let Ok(container) = read(directory)
            && matches!(container.config.network, NetworkMode::Named(_) | NetworkMode::Userland)
        {
            super::network::leave(&container.config, directory)?;
        }
    }
    for name in ["oci", "bundle", "images"] {
        remove_tree(&directory.join(name))?;
    }
    if was_running {
        record.status = Status::Exited;
        record.exit_code = if is_now { 137 } else { 255 };
        record.finished_at = rfc3339(std::time::SystemTime::now());
        record.error =
            if is_now { "its monitor was killed" } else { "the machine went down while it ran" }.into();
    }
    // What nobody syncs, since it was to go at its end, cannot be started again.
    if record.status == Status::Removing || read(directory).is_ok_and(|container| container.config.remove) {
        record.status = Status::Dead;
    }
    (record.process, record.mount, record.monitor) = (None, None, None);
    record.cgroup.clear();
    record.save(directory).context("write the container's state")
}

/// Until the process behind a descriptor has ended, or so long. True when it has.
fn wait_for_end(process: &OwnedFd, patience: Duration) -> bool {
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
    let mut wanted = [rustix::event::PollFd::new(process, rustix::event::PollFlags::IN)];
    // Whatever comes of it: the lock is tried again.
    !matches!(rustix::event::poll(&mut wanted, Some(&timeout)), Ok(0))
}

pub(super) fn lock_file(path: &Path) -> anyhow::Result<OwnedFd> {
    let file = open_lock(path)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

pub(super) fn try_lock_file(path: &Path) -> anyhow::Result<Option<OwnedFd>> {
    let file = open_lock(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

pub(super) fn open_lock(path: &Path) -> anyhow::Result<OwnedFd> {
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.read(true).write(true).create(true).truncate(false).open(path);
    Ok(file.with_context(|| format!("open lock file {}", path.display()))?.into())
}

pub(super) fn lock_path(directory: &Path) -> PathBuf {
    directory.join(LOCK)
}

pub(super) fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Docker's rule for names, but that one letter is enough.
pub(super) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {

    use super::*;

    fn made(containers: &Containers, id: &str, name: &str) {
        let directory = containers.path(id);
        fs::create_dir(&directory).unwrap();
        let config = ContainerConfig { id: id.into(), name: name.into(), ..ContainerConfig::default() };
        containers.take_name(name, id).unwrap();
        save_config(&directory, &config).unwrap();
        Record::new(id).save(&directory).unwrap();
    }

    #[test]
    fn names_are_unique_and_prefixes_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let containers = Containers::at(dir.path()).unwrap();
        let (one, two) = (format!("ab{}", "1".repeat(62)), format!("ac{}", "2".repeat(62)));
        made(&containers, &one, "web");
        made(&containers, &two, "db");
        assert_eq!(containers.id_of("web").unwrap(), one);
        assert_eq!(containers.id_of("/db").unwrap(), two);
        assert_eq!(containers.id_of("ab").unwrap(), one);
        assert!(containers.id_of("a").unwrap_err().to_string().contains("multiple IDs"));
        assert!(containers.id_of("").is_err() && containers.id_of("../x").is_err());
        let taken = containers.take_name("web", &two).unwrap_err();
        assert!(taken.to_string().contains("already in use by container"), "{taken:#}");
        for wrong in ["", "-a", "a/b", "a b", ".."] {
            assert!(containers.take_name(wrong, &two).is_err(), "{wrong:?}");
        }
        containers.free_name("web", &two);
        assert!(containers.id_of("web").is_ok(), "a name was freed that is another's");
        containers.find("web").unwrap().remove(&containers).unwrap();
        containers.take_name("web", &two).unwrap();
    }

    #[test]
    fn what_a_killed_monitor_left_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let containers = Containers::at(dir.path()).unwrap();
        let id = "d".repeat(64);
        made(&containers, &id, "left");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessIdentity::of(rustix::process::Pid::from_child(&child)).unwrap();
        let mut record = Record::new(&id);
        record.status = Status::Running;
        record.process = Some(process);
        record.monitor = Some(ProcessIdentity { start_time: 1, ..process });
        record.boot = layerfs_runner::monitor::record::boot();
        record.save(&containers.path(&id)).unwrap();
        let found = containers.find("left").unwrap();
        assert_eq!((found.record.status, found.record.exit_code), (Status::Exited, 137));
        assert!(!child.wait().unwrap().success());
        record.boot = "another".into();
        record.save(&containers.path(&id)).unwrap();
        assert_eq!(containers.find("left").unwrap().record.exit_code, 255);
    }
}
