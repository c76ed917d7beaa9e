//! `layerfs volume`.

mod create;
pub(crate) mod inspect;
mod list;
mod prune;
mod remove;
mod users;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use layerfs_volume::Volumes;

use crate::commands::run::store_root;

/// Manage volumes
#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum VolumeCommand {
    Create(create::CreateArgs),
    #[command(name = "ls", visible_alias = "list")]
    List(list::ListArgs),
    Inspect(inspect::InspectArgs),
    #[command(name = "rm", visible_alias = "remove")]
    Remove(remove::RemoveArgs),
    Prune(prune::PruneArgs),
}

pub(crate) fn volume(args: VolumeArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        VolumeCommand::Create(args) => create::create(args),
        VolumeCommand::List(args) => list::list(args),
        VolumeCommand::Inspect(args) => inspect::inspect(args),
        VolumeCommand::Remove(args) => remove::remove(args),
        VolumeCommand::Prune(args) => prune::prune(args),
    }
}

pub(crate) use users::of as users_of;

/// Opens the volumes of this engine.
pub(crate) fn open() -> anyhow::Result<Volumes> {
    Ok(Volumes::open(&store_root()?)?)
}

pub(crate) use prune::remove_unused;

/// What is not as it should be with volumes; with `repair` it is mended.
pub(crate) fn problems(repair: bool) -> anyhow::Result<Vec<super::container::check::Problem>> {
    if !super::run::store_root()?.join("volumes").is_dir() {
        return Ok(Vec::new());
    }
    let volumes = open()?;
    let found = if repair { volumes.collect()? } else { volumes.leftovers()? };
    let problem = |name: String| super::container::check::Problem {
        what: format!("volume {name} was not finished, or not removed as a whole"),
        mended: repair.then(|| "removed".to_owned()),
    };
    Ok(found.into_iter().map(problem).collect())
}
