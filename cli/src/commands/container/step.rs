//! A container that is one step of a build: made, run and taken away by one process, which a build starts for it.
//!
//! It has the directory that other containers have, for as long as it runs, and neither a monitor nor a name. What a
//! killed one has left is taken away by [`sweep`].

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use layerfs_runner::attach::{Signals, Streams, attach};
use layerfs_runner::cgroup::{Cgroup, Hierarchies, Plan};
use layerfs_runner::config::Config;
use layerfs_runner::monitor::record::Record;
use layerfs_runner::{Container as Running, CreateError, FailureKind, Stdio};

use super::config::{ContainerConfig, NetworkMode};
use super::options::CreateOptions;
use super::store::{self, Container, Containers};
use super::{etc, network, spec};
use crate::commands::run::{Identity, remove_tree};

/// The cgroups of a step, as long as it runs.
const CGROUP: &str = "cgroup.json";
/// Its network, in a config without anything else.
const CONFIG: &str = "step.json";

/// How a step's program ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum StepEnd {
    /// By itself or a signal, as a shell tells it.
    Exited(u8),
    /// It could not be run.
    Failed {
        /// There is no such program.
        not_found: bool,
        words: String,
    },
}

/// Options of `run` as a step has them.
#[derive(Debug, Default)]
pub(crate) struct StepOptions {
    pub(crate) options: CreateOptions,
}

impl StepOptions {
    /// The config that a step's container begins with: network, names, limits.
    ///
    /// # Errors
    /// What makes no sense.
    pub(crate) fn config(&self) -> anyhow::Result<ContainerConfig> {
        let containers = Containers::open()?;
        let mut config = ContainerConfig { id: super::create::new_id()?, ..ContainerConfig::default() };
        super::create::fill(&mut config, &self.options, None, vec!["sh".into()], false, &containers)?;
        config.name = format!("build-{}", crate::commands::run::short(&config.id));
        Ok(config)
    }
}

/// Makes the directory of a step. The answer is the lock that tells others that the step runs: its build and its own process
/// both hold it.
pub(crate) fn make_directory(directory: &Path, config: &ContainerConfig) -> anyhow::Result<OwnedFd> {
    let words = || format!("make {}", directory.display());
    let steps = directory.parent().unwrap_or(directory);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(steps).with_context(words)?;
    // Nobody looks meanwhile: a directory without its lock is what a killed build left.
    let _making = lock_all(steps, rustix::fs::FlockOperation::LockShared)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(words)?;
    let kept = ContainerConfig {
        id: config.id.clone(),
        network: config.network.clone(),
        networking: config.networking.clone(),
        ..ContainerConfig::default()
    };
    super::store::write_private(&directory.join(CONFIG), &serde_json::to_vec(&kept)?).with_context(words)?;
    lock(directory)
}

/// Locks the directory of all steps: shared to add one, exclusively to see which are left over.
fn lock_all(steps: &Path, how: rustix::fs::FlockOperation) -> anyhow::Result<fs::File> {
    let words = || format!("lock {}", steps.display());
    let file = fs::File::open(steps).with_context(words)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, how)).with_context(words)?;
    Ok(file)
}

/// Takes the lock of a step, too.
pub(crate) fn lock(directory: &Path) -> anyhow::Result<OwnedFd> {
    let path = store::lock_path(directory);
    let file = store::open_lock(&path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared)
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// Runs the program of `config` on `merged` with this process's standard output and error.
///
/// # Errors
/// When the container cannot be made; not when its program cannot.
pub(crate) fn run(
    directory: &Path,
    config: ContainerConfig,
    merged: &Path,
    signals: &Signals,
    mount: &OwnedFd,
) -> anyhow::Result<StepEnd> {
    let container = Container { directory: directory.to_owned(), record: Record::new(&config.id), config };
    let config = &container.config;
    let identity = Identity::resolve_with(Some(&config.user), &[], merged)?;
    etc::write(&container)?;
    let document = spec::document(&container, merged, &identity)?;
    let document = serde_json::from_value(document).context("make the runtime's document")?;
    let wanted = Config::from_spec(&document, directory)?;
    let stdio = Stdio { stdin: Some(File::open("/dev/null")?.into()), ..Stdio::default() };
    for fd in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let (uid, gid) = (rustix::fs::Uid::from_raw(identity.uid), rustix::fs::Gid::from_raw(identity.gid));
        // So that the program can open /dev/stdout; one that does not exist here cannot have it.
        rustix::fs::fchown(fd, Some(uid), Some(gid)).ok();
    }
    let mut joined = Vec::new();
    let hierarchies = Hierarchies::discover()?;
    let plan = wanted.cgroup.as_ref().map(|path| Plan::new(&hierarchies, path));
    // Before they are made: whoever cleans up after a kill finds all of them.
    let planned = plan.as_ref().map(Plan::directories).unwrap_or_default();
    fs::write(directory.join(CGROUP), serde_json::to_vec(&planned)?)
        .context("write down the step's cgroups")?;
    let state = |_| b"{}".to_vec();
    let created = Running::create_with(&wanted, stdio, &hierarchies, plan.as_ref(), &state, None);
    let started = created.map_err(anyhow::Error::from).and_then(|mut running| {
        joined = network::join(config, directory, running.pid())?;
        running.start()?;
        Ok(running)
    });
    let result = match started {
        Ok(mut running) => {
            let outcome = attach(&mut running, Streams::inherited(), signals, &[mount.as_fd()]);
            let outcome = outcome.context("stay with the step's program")?;
            running.delete().context("remove the step's cgroup")?;
            if outcome.watched.is_some() {
                bail!("the filesystem's process ended while the step was running");
            }
            Ok(StepEnd::Exited(outcome.status.code()))
        }
        Err(error) => match error.downcast_ref::<CreateError>().map(CreateError::kind) {
            Some(kind @ (FailureKind::NotFound | FailureKind::NotExecutable)) => Ok(StepEnd::Failed {
                not_found: kind == FailureKind::NotFound,
                words: crate::ui::chain(&error),
            }),
            _ => Err(error),
        },
    };
    network::leave(config, directory)?;
    result
}

/// Takes away what a step has left in `directory`, and the directory. Its process has ended.
fn clean_up(directory: &Path) -> anyhow::Result<()> {
    if let Ok(text) = fs::read(directory.join(CGROUP)) {
        let directories: Vec<PathBuf> = serde_json::from_slice(&text).unwrap_or_default();
        Cgroup::from_directories(directories).remove()?;
    }
    if let Ok(text) = fs::read(directory.join(CONFIG))
        && let Ok(config) = serde_json::from_slice::<ContainerConfig>(&text)
        && !matches!(config.network, NetworkMode::None | NetworkMode::Host)
    {
        network::leave(&config, directory)?;
    }
    remove_tree(directory)
}

/// As [`clean_up`], by the build of a step that ended, which still has its lock.
pub(crate) fn finish(directory: &Path, lock: OwnedFd) -> anyhow::Result<()> {
    let steps = directory.parent().unwrap_or(directory);
    let _making = lock_all(steps, rustix::fs::FlockOperation::LockShared)?;
    let cleaned = clean_up(directory);
    drop(lock);
    cleaned
}

/// Cleans up after steps in `steps` whose builds were killed.
pub(crate) fn sweep(steps: &Path) -> anyhow::Result<()> {
    if !steps.exists() {
        return Ok(());
    }
    let _alone = lock_all(steps, rustix::fs::FlockOperation::LockExclusive)?;
    for entry in fs::read_dir(steps).with_context(|| format!("list {}", steps.display()))? {
        let directory = entry?.path();
        let path = store::lock_path(&directory);
        // Without a lock nobody has it: its build was killed while it was made or taken away.
        let lock = path.exists().then(|| store::try_lock_file(&path)).transpose()?;
        if lock.is_none_or(|lock| lock.is_some()) {
            clean_up(&directory)?;
        }
    }
    Ok(())
}
