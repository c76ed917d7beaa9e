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
    let containers = Containers::open()?;
    let filters = Filters::parse(&args.filter, &["until", "label", "label!"])?;
    if !args.force {
        let question =
            "WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] ";
        if !matches!(prompt::line(question)?.trim(), "y" | "Y" | "yes") {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let (mut removed, mut bytes, mut failed) = (Vec::new(), 0, false);
    for container in containers.all()? {
        let is_over = matches!(container.record.status, Status::Created | Status::Exited | Status::Dead)
            && !container.record.is_watched();
        if !is_over || !filters.admit(&container, &[]) {
            continue;
        }
        let size = disk_usage(&container.directory);
        match one(&containers, &container, false) {
            Ok(()) => {
                removed.push(container.id().to_owned());
                bytes += size;
            }
            Err(error) => {
                failed = true;
                ui::error(&error);
            }
        }
    }
    if !removed.is_empty() {
        ui::print(format!("Deleted Containers:\n{}\n\n", removed.join("\n")))?;
    }
    ui::print(format!("Total reclaimed space: {}\n", human::size(bytes)))?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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
