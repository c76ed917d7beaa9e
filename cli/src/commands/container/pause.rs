//! `layerfs pause` and `unpause`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use layerfs_runner::cgroup::Cgroup;

use super::each;
use super::store::Containers;
use crate::{events, ui};

/// Stop all processes of containers for a while
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Let the processes of paused containers go on
#[derive(Debug, Args)]
pub(crate) struct UnpauseArgs {
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(crate) fn pause(args: PauseArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        if !container.is_running() {
            bail!("Container {} is not running", container.id());
        }
        if container.is_paused() {
            bail!("Container {} is already paused", container.id());
        }
        Cgroup::borrowed(&container.record.cgroup).freeze()?;
        events::container("pause", &container.config, &[]);
        Ok(name.clone())
    })
}

pub(crate) fn unpause(args: UnpauseArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        if !container.is_paused() {
            bail!("Container {} is not paused", container.id());
        }
        Cgroup::borrowed(&container.record.cgroup).thaw()?;
        events::container("unpause", &container.config, &[]);
        Ok(name.clone())
    })
}

/// A container whose processes stand still until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    cgroup: Cgroup,
    name: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.cgroup.thaw() {
            let words = format!("container {} is still paused (`layerfs unpause` it): {error}", self.name);
            ui::warn(words);
        }
    }
}

/// Stops a container's processes while something is done with its files. `None` when none runs, or they stand already.
///
/// # Errors
/// When they cannot be stopped.
pub(crate) fn hold(name: &str) -> anyhow::Result<Option<Held>> {
    let containers = Containers::open()?;
    // What is no container of these is not held; whoever works with it says so.
    let Ok(container) = containers.find(name) else { return Ok(None) };
    if !container.is_running() || container.is_paused() || container.record.cgroup.is_empty() {
        return Ok(None);
    }
    let held = Held { cgroup: Cgroup::borrowed(&container.record.cgroup), name: name.to_owned() };
    held.cgroup.freeze()?;
    Ok(Some(held))
}
