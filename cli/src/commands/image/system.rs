//! `layerfs system` and `layerfs info`.

mod check;
mod df;
mod info;
mod prune;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub(crate) use info::{InfoArgs, info};

use crate::commands::container::boot;
use crate::commands::events;

/// Look at layerfs as a whole, and tidy it up
#[derive(Debug, Args)]
pub(crate) struct SystemArgs {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum SystemCommand {
    Check(check::CheckArgs),
    Df(df::DfArgs),
    Events(events::EventsArgs),
    Info(InfoArgs),
    Prune(prune::SystemPruneArgs),
    Start(boot::SystemStartArgs),
    Stop(boot::SystemStopArgs),
    Unit(boot::SystemUnitArgs),
}

pub(crate) fn system(args: SystemArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        SystemCommand::Check(args) => check::check(&args),
        SystemCommand::Df(args) => df::df(&args),
        SystemCommand::Events(args) => events::events(args),
        SystemCommand::Info(args) => info(args),
        SystemCommand::Prune(args) => prune::prune(&args),
        SystemCommand::Start(args) => boot::start(&args),
        SystemCommand::Stop(args) => boot::stop(&args),
        SystemCommand::Unit(args) => boot::unit(&args),
    }
}
