//! `kill`: a signal to a container.

use std::process::ExitCode;

use clap::Args;
use layerfs_runner::runtime::parse_signal;

use super::Context;

/// Send a signal to the program of a container
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// To every process of the container
    #[arg(short, long)]
    all: bool,
    #[arg(value_name = "ID")]
    id: String,
    /// By name or number; 0 only asks whether the program runs
    #[arg(value_name = "SIGNAL", default_value = "TERM")]
    signal: String,
}

pub(super) fn kill(args: KillArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let signal = match args.signal.as_str() {
        "0" => 0,
        text => parse_signal(text)?,
    };
    context.runtime.kill(&args.id, signal, args.all)?;
    Ok(ExitCode::SUCCESS)
}
