//! `delete`: what is left of a container goes.

use std::process::ExitCode;

use clap::Args;

use super::Context;

/// Remove a container whose program has ended
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Kill it first where it runs; a container that does not exist is no failure
    #[arg(short, long)]
    force: bool,
    #[arg(value_name = "ID")]
    id: String,
}

pub(super) fn delete(args: DeleteArgs, context: &Context) -> anyhow::Result<ExitCode> {
    context.runtime.delete(&args.id, args.force)?;
    Ok(ExitCode::SUCCESS)
}
