//! `layerfs system prune`.

use std::process::ExitCode;

use clap::Args;

use super::super::prune as images_prune;
use crate::commands::builder::cache;
use crate::commands::{container, network, volume};
use crate::exit::Usage;
use crate::images::{self, human};
use crate::moment;
use crate::ui;

/// Remove what is not used: stopped containers, networks, images without a name, build cache that no image has
///
/// With --all also images that no container uses and all of the build cache, with --volumes also anonymous volumes.
/// Nothing in the build cache has labels: with a filter by label it stays.
#[derive(Debug, Args)]
pub(super) struct SystemPruneArgs {
    /// Remove all images that no container uses, not just those without a name
    #[arg(short, long)]
    all: bool,
    /// Also remove anonymous volumes
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only some: until=TIME, label=NAME[=VALUE], label!=NAME
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

pub(super) fn prune(args: &SystemPruneArgs) -> anyhow::Result<ExitCode> {
    if args.volumes && args.filter.iter().any(|filter| filter.starts_with("until=")) {
        return Err(Usage("the \"until\" filter is not supported with \"--volumes\"".into()).into());
    }
    // What makes no sense is said before anything is removed.
    container::prune::validate(&args.filter)?;
    let mut what =
        String::from("  - all stopped containers\n  - all networks not used by at least one container\n");
    if args.volumes {
        what.push_str("  - all anonymous volumes not used by at least one container\n");
    }
    what.push_str(match args.all {
        true => "  - all images without at least one container associated to them\n",
        false => "  - all dangling images\n",
    });
    let with_cache = !args.filter.iter().any(|filter| filter.starts_with("label"));
    let mut before = None;
    for time in args.filter.iter().filter_map(|filter| filter.strip_prefix("until=")) {
        before = Some(moment::seconds(time)?);
    }
    if with_cache {
        what.push_str(if args.all { "  - all build cache\n" } else { "  - unused build cache\n" });
    }
    if !args.filter.is_empty() {
        what.push_str(&format!(
            "\n  Items to be pruned will be filtered with:\n  - {}\n",
            args.filter.join("\n  - ")
        ));
    }
    if !args.force && !ui::prompt::confirm(&format!("WARNING! This will remove:\n{what}\n"))? {
        return Ok(ExitCode::SUCCESS);
    }
    // Containers come first: what they used becomes free.
    let containers = container::prune::remove_stopped(&args.filter)?;
    let mut bytes = containers.bytes;
    let listed = |title: &str, names: &[String]| match names {
        [] => String::new(),
        names => format!("Deleted {title}:\n{}\n\n", names.join("\n")),
    };
    ui::print(listed("Containers", &containers.removed))?;
    ui::print(listed("Networks", &network::remove_unused(&args.filter)?))?;
    if args.volumes {
        let (volumes, freed) = volume::remove_unused(&args.filter, false)?;
        bytes += freed;
        ui::print(listed("Volumes", &volumes))?;
    }
    let store = images::open_store()?;
    let pruned = images_prune::remove_unused(&store, args.all, &args.filter)?;
    bytes += pruned.tell_what()?;
    if with_cache {
        let removed = cache::remove(&store, cache::Removal { all: args.all, before, keep: 0 })?;
        bytes += removed.bytes;
        ui::print(listed("build cache objects", &removed.names))?;
    }
    ui::print(format!("Total reclaimed space: {}\n", human::size(bytes)))?;
    Ok(if containers.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
