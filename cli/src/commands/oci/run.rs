//! `run`: create, start, stay until the end, delete.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use layerfs_runner::attach::{Signals, Streams, attach};
use layerfs_runner::host;
use layerfs_runner::runtime::CreateRequest;

use super::create::BundleArgs;
use super::{Context, protect};
use crate::ui;

/// Create a container, run its program, and delete it when that has ended
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Return when the program has begun; delete is for the caller
    #[arg(short, long)]
    detach: bool,
    /// Keep the container when the program has ended
    #[arg(long)]
    keep: bool,
    /// Taken for compatibility: orphans of the program always come to this process
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// A name for it
    #[arg(value_name = "ID")]
    id: String,
}

pub(super) fn run(args: RunArgs, context: &Context) -> anyhow::Result<ExitCode> {
    protect()?;
    let signals = match args.detach {
        true => None,
        false => Some(Signals::take().context("take signals over")?),
    };
    if !args.no_subreaper && !args.detach {
        host::adopt_orphans().context("become the parent of orphans")?;
    }
    let keeps_terminal = !args.detach && args.bundle.console_socket.is_none();
    let request = CreateRequest {
        keeps_terminal,
        without_cgroup: context.without_cgroup,
        ..args.bundle.request(&args.id)
    };
    let mut container = context.runtime.create(request)?;
    if let Err(error) = context.runtime.start(&args.id) {
        // What is told is why it did not start.
        if let Err(left) = context.runtime.delete(&args.id, true) {
            ui::warn(format_args!("container {:?} is left: {left}", args.id));
        }
        return Err(error.into());
    }
    let Some(signals) = signals else { return Ok(ExitCode::SUCCESS) };
    let streams = match container.has_terminal() {
        true => Streams::terminal(true),
        false => Streams::inherited(),
    };
    let outcome = attach(&mut container, streams, &signals, &[]).context("stay with the container")?;
    if !args.keep {
        context.runtime.delete(&args.id, true)?;
    }
    Ok(ExitCode::from(outcome.status.code()))
}
