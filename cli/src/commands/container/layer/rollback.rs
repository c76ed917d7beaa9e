//! `layerfs rollback`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::super::store::{Containers, Locked};
use super::super::{start, stop};
use super::rest::stopped;
use super::snapshots;
use crate::ui;

/// Bring a container back to a snapshot
///
/// What it has changed since then is lost; take another snapshot first to keep that. The snapshot stays.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Stop the container if it runs, and start it again
    #[arg(long)]
    restart: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
}

pub(crate) fn rollback(args: RollbackArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    let container = containers.find(&args.container)?;
    // Nothing is stopped for a name that is not there.
    snapshots::find(&container, &args.snapshot)?;
    let runs = container.record.is_watched() && !container.config.is_foreground;
    let starts_again = args.restart && runs;
    if starts_again {
        stop::end(&container, None, None, false).context("stop the container")?;
    }
    {
        let rest = stopped(&containers, &args.container, "roll back")?;
        snapshots::find(&rest.container, &args.snapshot)?;
        snapshots::replace_upper(
            &rest.container,
            Some(&snapshots::tree_of(&rest.container, &args.snapshot)),
        )?;
    }
    if starts_again && let Locked::Mine(lock, container) = container.lock()? {
        start::detached(&container, lock)?;
    }
    ui::print(format!("{}\n", args.container))?;
    Ok(ExitCode::SUCCESS)
}
