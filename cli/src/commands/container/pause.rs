//! `layerfs pause` and `unpause`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use layerfs_runner::cgroup::Cgroup;

use super::each;
use super::store::Containers;

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
        Ok(name.clone())
    })
}
