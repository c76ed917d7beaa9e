//! What `run --rootfs` has kept: its foreground run is over, and from here on it is a container like those that have a
//! monitor, to be listed by a name, started, forked, committed.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use layerfs_runner::monitor::record::{Record, Status, boot};
use layerfs_runner::runtime::time::rfc3339;
use layerfs_runner::state::State;

use super::config::ContainerConfig;
use super::options::CreateOptions;
use super::store::{CONFIG, Containers, save_config};
use super::{create, names};
use crate::exit::Usage;

/// Makes a container of what is in `directory`, whose lock the caller holds; answers with its name. `options` and
/// `command` are what the run was told.
///
/// Config first, state after it: with the config, a state of either kind is understood (see `store::read`).
pub(crate) fn adopt(
    directory: &Path,
    options: &CreateOptions,
    command: &[OsString],
) -> anyhow::Result<String> {
    let containers = Containers::open()?;
    let state = State::load(directory).context("read the state")?;
    let mut config = ContainerConfig {
        id: state.id.clone(),
        image_name: state.rootfs.display().to_string(),
        rootfs: Some(state.rootfs.clone()),
        created: rfc3339(made_at(directory, &state)),
        ..ContainerConfig::default()
    };
    // A foreground run has the loopback interface alone; a restart is to give its program no more.
    let options = CreateOptions { network: vec!["none".into()], rm: false, ..options.clone() };
    let words = command.iter().map(|word| word.clone().into_string());
    let words = words.collect::<Result<Vec<_>, _>>().map_err(|word| Usage(format!("{word:?} is no text")))?;
    let created = config.created.clone();
    create::fill(&mut config, &options, None, words, true, &containers)?;
    config.created = created;
    // A start makes the mountpoint, as after every run.
    let work = directory.join("work");
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&work);
    made.with_context(|| format!("make {}", work.display()))?;
    let mut record = record_of(&state);
    record.args = config.args();
    record.finished_at = rfc3339(SystemTime::now());
    let _store = containers.lock()?;
    config.name = names::take(&containers, &config.id)?;
    let written = save_config(directory, &config)
        .and_then(|()| record.save(directory).context("write the container's state"));
    if written.is_err() {
        // As it was.
        fs::remove_file(directory.join(CONFIG)).ok();
        containers.free_name(&config.name, &config.id);
    }
    written.map(|()| config.name)
}

/// The state of a foreground run, as that of a container.
pub(super) fn record_of(state: &State) -> Record {
    use layerfs_runner::state::Status as Foreground;
    let mut record = Record::new(&state.id);
    record.rootfs = Some(state.rootfs.clone());
    record.status = match state.status {
        Foreground::Creating | Foreground::Created => Status::Created,
        Foreground::Running => Status::Running,
        Foreground::Stopped => Status::Exited,
    };
    record.exit_code = state.exit_code.unwrap_or(0);
    record.boot = boot();
    // Its own run is what looks after it.
    record.monitor = state.process.filter(|_| record.status == Status::Running);
    record.process = record.monitor;
    record.cgroup.clone_from(&state.cgroup);
    record.started_at = rfc3339(UNIX_EPOCH + Duration::from_secs(state.created));
    record.finished_at.clone_from(&record.started_at);
    record
}

/// When its changes began. The state knows seconds only; `apply` compares with times of files.
fn made_at(directory: &Path, state: &State) -> SystemTime {
    fs::metadata(directory)
        .and_then(|metadata| metadata.created())
        .unwrap_or_else(|_| UNIX_EPOCH + Duration::from_secs(state.created))
}
