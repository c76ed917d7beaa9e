//! The process of one step: mounts, makes the container, waits for its program, takes both away. Started by a build, and
//! ends with it: the kernel kills it when the thread that waits for it is gone, and then its mounts and its container.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use layerfs_runner::attach::Signals;
use layerfs_runner::host;
use layerfs_unionfs::config::{Config, LowerSpec, UpperSpec};
use rustix::process::{PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::commands::container::config::ContainerConfig;
use crate::commands::container::step::{self as container, StepEnd};
use crate::logging::LogOptions;
use crate::mount_process::{self, MountProcess};
use crate::ui;

/// A lower layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Lower {
    pub(super) tree: PathBuf,
    /// Only what the store has promised not to change has one.
    pub(super) index: Option<PathBuf>,
}

/// A mount that a bind mount of the step shows a part of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Union {
    pub(super) lowers: Vec<Lower>,
    pub(super) upper: Option<(PathBuf, PathBuf)>,
    pub(super) target: PathBuf,
}

/// A secret as a file in memory.
#[derive(Serialize, Deserialize)]
pub(super) struct SecretFile {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All that the process is told, on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Description {
    /// The build's process.
    pub(super) parent: i32,
    /// The container's directory.
    pub(super) directory: PathBuf,
    pub(super) lowers: Vec<Lower>,
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    pub(super) merged: PathBuf,
    pub(super) config: ContainerConfig,
    pub(super) unions: Vec<Union>,
    pub(super) secrets: Vec<SecretFile>,
    pub(super) secrets_directory: PathBuf,
    /// Where it is told how it went.
    pub(super) result: PathBuf,
}

/// Be the process of a build's step (started by `build`)
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct StepArgs {}

pub(crate) fn step(_args: StepArgs) -> anyhow::Result<ExitCode> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("end with the build")?;
    host::enter_private_mounts().map_err(|error| anyhow!(error.words())).context("make a mount namespace")?;
    host::protect_executable(&[])?;
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text).context("read the description")?;
    let description: Description = serde_json::from_slice(&text).context("read the description")?;
    drop(text);
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if parent != description.parent {
        bail!("the build has ended");
    }
    let result = description.result.clone();
    let end: Result<StepEnd, String> = run(description).map_err(|error| ui::chain(&error));
    fs::write(&result, serde_json::to_vec(&end)?).context("tell how the step went")?;
    Ok(ExitCode::SUCCESS)
}

fn config_of(lowers: &[Lower], upper: Option<UpperSpec>) -> Config {
    let lower = |lower: &Lower| {
        let mut spec = LowerSpec::plain(lower.tree.clone());
        spec.index.clone_from(&lower.index);
        spec.immutable = lower.index.is_some();
        spec
    };
    let mut config = Config::new(lowers.iter().map(lower).collect(), upper);
    // What a crash leaves of it is thrown away.
    config.volatile = config.upper.is_some();
    config
}

fn run(description: Description) -> anyhow::Result<StepEnd> {
    let _lock = container::lock(&description.directory)?;
    let signals = Signals::take().context("take signals over")?;
    let mut log = LogOptions::from_env();
    log.file.get_or_insert_with(|| description.directory.join("mount.log"));
    let mut mounts = Mounts(Vec::new());
    for union in &description.unions {
        let upper = union.upper.clone().map(|(upper, work)| UpperSpec { upper, work });
        let mut config = config_of(&union.lowers, upper);
        config.flags.source = "layerfs:bind".into();
        let mount = mount_process::spawn_bound(&config, &union.target, &log)
            .context("mount the source of a bind mount")?;
        mounts.0.push(mount);
    }
    let upper = UpperSpec { upper: description.upper.clone(), work: description.work.clone() };
    let mut config = config_of(&description.lowers, Some(upper));
    config.flags.source = "layerfs:build".into();
    let mount = mount_process::spawn_bound(&config, &description.merged, &log)
        .context("mount the root filesystem")?;
    let watched =
        rustix::process::pidfd_open(mount.pid, PidfdFlags::empty()).context("watch the mount process")?;
    mounts.0.push(mount);
    write_secrets(&description.secrets_directory, &description.secrets)?;
    // Not before: the mount process starts a log of its own.
    log.start()?;
    let result =
        container::run(&description.directory, description.config, &description.merged, &signals, &watched);
    let unmounted = mounts.end();
    // The first failure is the one that explains the other.
    let end = result?;
    unmounted.map(|()| end)
}

/// Files that only this process's mount namespace has, in memory.
fn write_secrets(directory: &Path, secrets: &[SecretFile]) -> anyhow::Result<()> {
    if secrets.is_empty() {
        return Ok(());
    }
    fs::create_dir(directory).context("make a directory for secrets")?;
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", directory, "tmpfs", flags, c"mode=0700")
        .context("mount memory for secrets")?;
    for secret in secrets {
        use std::io::Write;
        let path = directory.join(&secret.name);
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .context("write a secret")?;
        file.write_all(&secret.content).context("write a secret")?;
        chown(&path, Some(secret.uid), Some(secret.gid)).context("give a secret to its user")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(secret.mode & 0o7777))
            .context("write a secret")?;
    }
    Ok(())
}

/// The mounts of a step, ended in reverse.
struct Mounts(Vec<MountProcess>);

impl Mounts {
    fn end(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(mount) = self.0.pop() {
            let ended = mount.unmount_and_wait().context("unmount the step's filesystem");
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        while let Some(mount) = self.0.pop() {
            if let Err(error) = mount.unmount_and_wait() {
                tracing::warn!(error = format!("{error:#}"), "unmount");
            }
        }
    }
}
