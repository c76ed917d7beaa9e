//! `state`: the specification's document about a container.

use std::process::ExitCode;

use clap::Args;

use super::Context;
use crate::ui;

/// Print the state of a container
#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    #[arg(value_name = "ID")]
    id: String,
}

pub(super) fn state(args: StateArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let state = context.runtime.load(&args.id)?.state();
    ui::print(format!("{}\n", serde_json::to_string_pretty(&state)?))?;
    Ok(ExitCode::SUCCESS)
}
