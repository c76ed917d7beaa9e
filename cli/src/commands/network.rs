//! `layerfs network`.

mod connect;
mod containers;
mod create;
mod filter;
pub(crate) mod inspect;
mod list;
mod open;
mod prune;
mod remove;
mod serve;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use layerfs_runner::host;

pub(crate) use create::labels;
pub(crate) use filter::Filters;
pub(crate) use open::{open, told};
pub(crate) use prune::remove_unused;

/// Manage networks
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum NetworkCommand {
    Create(create::CreateArgs),
    #[command(name = "ls", visible_alias = "list")]
    List(list::ListArgs),
    Inspect(inspect::InspectArgs),
    #[command(name = "rm", visible_alias = "remove")]
    Remove(remove::RemoveArgs),
    Prune(prune::PruneArgs),
    Connect(connect::ConnectArgs),
    Disconnect(connect::DisconnectArgs),
    #[command(hide = true)]
    ServeNames(serve::ServeArgs),
}

pub(crate) fn network(args: NetworkArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        NetworkCommand::Create(args) => create::create(args),
        NetworkCommand::List(args) => list::list(args),
        NetworkCommand::Inspect(args) => inspect::inspect(args),
        NetworkCommand::Remove(args) => remove::remove(args),
        NetworkCommand::Prune(args) => prune::prune(args),
        NetworkCommand::Connect(args) => connect::connect(args),
        NetworkCommand::Disconnect(args) => connect::disconnect(args),
        NetworkCommand::ServeNames(args) => serve::serve(args),
    }
}

/// What is not as it should be with networks; with `repair` it is mended.
pub(crate) fn problems(repair: bool) -> anyhow::Result<Vec<super::container::check::Problem>> {
    // An ordinary user has no bridges, and may not look at the packet filter.
    if host::is_rootless() || !super::run::store_root()?.join("networks").is_dir() {
        return Ok(Vec::new());
    }
    let found = open()?.check(repair, &containers::runs).map_err(told)?;
    let problem = found.into_iter().map(|found| super::container::check::Problem {
        what: found.what,
        mended: found.mended.then(|| "mended".to_owned()),
    });
    Ok(problem.collect())
}
