//! `layerfs system prune`.

use std::process::ExitCode;

use clap::Args;

use super::super::prune as images_prune;
use crate::images;
use crate::ui;

/// Remove what is not used: images without a name, and with --all those that no container uses
#[derive(Debug, Args)]
pub(super) struct SystemPruneArgs {
    /// Remove all images that no container uses, not just those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only some: until=TIME, label=NAME[=VALUE], label!=NAME
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

pub(super) fn prune(args: &SystemPruneArgs) -> anyhow::Result<ExitCode> {
    let what = match args.all {
        true => "  - all images without at least one container associated to them\n",
        false => "  - all dangling images\n",
    };
    if !args.force && !ui::prompt::confirm(&format!("WARNING! This will remove:\n{what}"))? {
        return Ok(ExitCode::SUCCESS);
    }
    // Stopped containers come first, so that their images become free: here, once they have a command of their own.
    let store = images::open_store()?;
    let pruned = images_prune::remove_unused(&store, args.all, &args.filter)?;
    pruned.tell()?;
    Ok(ExitCode::SUCCESS)
}
