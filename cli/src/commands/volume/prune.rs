//! `layerfs volume prune`.

use std::process::ExitCode;

use clap::Args;
use layerfs_volume::Error;

use super::users;
use crate::commands::network::Filters;
use crate::images::human;
use crate::ui;
use crate::ui::prompt::confirmed;

/// Remove volumes that no container has
///
/// Only those without a name of their own, or with --all every one.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Named ones too
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only some: label=NAME[=VALUE], label!=NAME[=VALUE], all=BOOL
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

pub(crate) fn prune(args: PruneArgs) -> anyhow::Result<ExitCode> {
    let filters = Filters::parse(&args.filter, FILTERS)?;
    let all = args.all || filters.flag("all")? == Some(true);
    let what = if all {
        "all local volumes not used by at least one container"
    } else {
        "anonymous local volumes not used by at least one container"
    };
    if !args.force && !confirmed(what)? {
        return Ok(ExitCode::SUCCESS);
    }
    let (removed, bytes) = remove_unused(&args.filter, all)?;
    let mut text = String::new();
    if !removed.is_empty() {
        text = format!("Deleted Volumes:\n{}\n\n", removed.join("\n"));
    }
    ui::print(format!("{text}Total reclaimed space: {}\n", human::size(bytes)))?;
    Ok(ExitCode::SUCCESS)
}

/// Removes the volumes that no container has and that the filters admit: anonymous ones, or with `all` any. Answers with
/// their names, and the bytes that they took.
pub(crate) fn remove_unused(filters: &[String], all: bool) -> anyhow::Result<(Vec<String>, u64)> {
    let filters = Filters::parse(filters, FILTERS)?;
    let volumes = super::open()?;
    volumes.collect()?;
    let (mut removed, mut bytes) = (Vec::new(), 0);
    for volume in volumes.list()? {
        if !(all || volume.anonymous) || !filters.labels(&volume.labels) {
            continue;
        }
        let size = volumes.size(&volume)?;
        match volumes.remove(&volume.name, &users::of) {
            Ok(volume) => {
                crate::events::volume("destroy", &volume.name);
                removed.push(volume.name);
                bytes += size;
            }
            // In use, or removed by another meanwhile.
            Err(Error::InUse { .. } | Error::NoSuchVolume(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    crate::events::prune("volume", bytes);
    Ok((removed, bytes))
}

/// Filters that there are.
const FILTERS: &[&str] = &["label", "label!", "all"];
