//! `layerfs system` and `layerfs info`.

mod df;
mod info;
mod prune;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub(crate) use info::{InfoArgs, info};

/// Look at layerfs as a whole, and tidy it up
#[derive(Debug, Args)]
pub(crate) struct SystemArgs {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum SystemCommand {
    Df(df::DfArgs),
    Info(InfoArgs),
    Prune(prune::SystemPruneArgs),
}

pub(crate) fn system(args: SystemArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        SystemCommand::Df(args) => df::df(&args),
        SystemCommand::Info(args) => info(args),
        SystemCommand::Prune(args) => prune::prune(&args),
    }
}
