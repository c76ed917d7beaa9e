//! `layerfs network prune`.

use std::process::ExitCode;

use clap::Args;
use layerfs_network::Error;
use layerfs_runner::host;

use super::containers;
use super::filter::Filters;
use super::open::{open, told};
use crate::ui;
use crate::ui::prompt::confirmed;

/// Remove all networks that no container is in
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only some: until=TIME, label=NAME[=VALUE], label!=NAME[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

pub(crate) fn prune(args: PruneArgs) -> anyhow::Result<ExitCode> {
    Filters::parse(&args.filter, FILTERS)?;
    if !args.force && !confirmed("all custom networks not used by at least one container")? {
        return Ok(ExitCode::SUCCESS);
    }
    let removed = remove_unused(&args.filter)?;
    if !removed.is_empty() {
        ui::print(format!("Deleted Networks:\n{}\n\n", removed.join("\n")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes the networks that no container is in and that the filters admit; answers with their names.
pub(crate) fn remove_unused(filters: &[String]) -> anyhow::Result<Vec<String>> {
    let filters = Filters::parse(filters, FILTERS)?;
    let networks = open()?;
    // What killed containers hold is not in use.
    if !host::is_rootless() {
        networks.check(true, &containers::runs).map_err(told)?;
    }
    let mut removed = Vec::new();
    for network in networks.list().map_err(told)? {
        if network.is_predefined() || !filters.labels(&network.labels) || !filters.until(&network.created)? {
            continue;
        }
        match networks.remove(&network.name) {
            Ok(network) => {
                crate::events::network("destroy", &network.id, &network.name, "");
                removed.push(network.name);
            }
            // In use, or removed by another meanwhile.
            Err(Error::Active { .. } | Error::NoSuchNetwork(_)) => {}
            Err(error) => return Err(told(error)),
        }
    }
    crate::events::prune("network", 0);
    Ok(removed)
}

/// Filters that there are.
const FILTERS: &[&str] = &["until", "label", "label!"];
