//! `layerfs container prune`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use layerfs_runner::monitor::record::Status;

use super::list::Filters;
use super::remove::one;
use super::store::Containers;
use crate::images::human;
use crate::ui::{self, prompt};

/// Remove all containers that do not run
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Only those made before (until=TIME), or with a label (label=NAME[=VALUE])
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn prune(args: PruneArgs) -> anyhow::Result<ExitCode> {
    Filters::parse(&args.filter, FILTERS)?;
    if !args.force {
        if !prompt::confirmed("all stopped containers")? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let pruned = remove_stopped(&args.filter)?;
    if !pruned.removed.is_empty() {
        ui::print(format!("Deleted Containers:\n{}\n\n", pruned.removed.join("\n")))?;
    }
    ui::print(format!("Total reclaimed space: {}\n", human::size(pruned.bytes)))?;
    Ok(if pruned.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Refuses filters that make no sense.
pub(crate) fn validate(filters: &[String]) -> anyhow::Result<()> {
    Filters::parse(filters, FILTERS).map(drop)
}

/// Filters that there are.
const FILTERS: &[&str] = &["until", "label", "label!"];

/// What was removed.
#[derive(Debug, Default)]
pub(crate) struct Pruned {
    pub(crate) removed: Vec<String>,
    pub(crate) bytes: u64,
    /// Some could not be, which was told.
    pub(crate) failed: bool,
}

/// Removes the containers that do not run and that the filters admit.
pub(crate) fn remove_stopped(filters: &[String]) -> anyhow::Result<Pruned> {
    let containers = Containers::open()?;
    let filters = Filters::parse(filters, FILTERS)?;
    let mut pruned = Pruned::default();
    for container in containers.all()? {
        // One that has just ended may have its monitor still, which is waited for.
        let is_over = matches!(container.record.status, Status::Created | Status::Exited | Status::Dead);
        if !is_over || !filters.admit(&container, &[]) {
            continue;
        }
        let size = disk_usage(&container.directory);
        match one(&containers, &container, false) {
            Ok(()) => {
                pruned.removed.push(container.id().to_owned());
                pruned.bytes += size;
            }
            // Somebody has started it meanwhile.
            Err(_) if containers.find(container.id()).is_ok_and(|now| now.record.is_watched()) => {}
            Err(error) => {
                pruned.failed = true;
                ui::error(&error);
            }
        }
    }
    crate::events::prune("container", pruned.bytes);
    Ok(pruned)
}

/// Bytes on disk beneath a directory. What cannot be read is not counted.
pub(super) fn disk_usage(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let size = |entry: std::fs::DirEntry| {
        let Ok(metadata) = entry.metadata() else { return 0 };
        let below = if metadata.is_dir() { disk_usage(&entry.path()) } else { 0 };
        metadata.blocks() * 512 + below
    };
    entries.flatten().map(size).sum()
}
