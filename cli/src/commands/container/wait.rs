//! `layerfs wait`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_runner::monitor::protocol::{Event, Request};

use super::each;
use super::store::Containers;

/// Wait until containers have ended, and print their exit codes
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(crate) fn wait(args: WaitArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        if let Some(mut connection) = container.connect()?
            && connection.ask(Request::Wait { each: true }, None).is_ok()
            && let Some(Event::Exited { code }) = connection.next_event().context("wait for the container")?
        {
            return Ok(code.to_string());
        }
        // It has no monitor, or had none any more: the state is written before anybody is told.
        let record = containers.find(name).map_or(container.record, |container| container.record);
        Ok(record.exit_code.to_string())
    })
}
