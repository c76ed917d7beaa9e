//! `pause` and `resume`.

use std::process::ExitCode;

use clap::Args;

use super::Context;

/// Stop all processes of a container
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[arg(value_name = "ID")]
    id: String,
}

/// Let the processes of a paused container go on
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[arg(value_name = "ID")]
    id: String,
}

pub(super) fn pause(args: PauseArgs, context: &Context) -> anyhow::Result<ExitCode> {
    context.runtime.pause(&args.id)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn resume(args: ResumeArgs, context: &Context) -> anyhow::Result<ExitCode> {
    context.runtime.resume(&args.id)?;
    Ok(ExitCode::SUCCESS)
}
