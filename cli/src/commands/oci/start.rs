//! `start`: the program of a created container begins.

use std::process::ExitCode;

use clap::Args;

use super::Context;

/// Run the program of a created container
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[arg(value_name = "ID")]
    id: String,
}

pub(super) fn start(args: StartArgs, context: &Context) -> anyhow::Result<ExitCode> {
    context.runtime.start(&args.id)?;
    Ok(ExitCode::SUCCESS)
}
