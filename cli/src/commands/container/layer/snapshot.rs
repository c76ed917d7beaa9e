//! `layerfs snapshot`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::super::each;
use super::super::store::Containers;
use super::rest::at_rest;
use super::snapshots;
use crate::exit::Usage;
use crate::images::{human, listing};
use crate::ui;

/// Keep a container's changes as they are now, to go back to or to fork
///
/// A snapshot is a copy of the container's writable layer, in which the image is not: it takes time and space by what the
/// container has changed. A container that runs is paused for that moment. Volumes are not in it. A container's snapshots
/// are removed with it.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_long_help = AFTER_HELP,
          override_usage = "\
layerfs snapshot [OPTIONS] CONTAINER [NAME]
       layerfs snapshot ls [OPTIONS] CONTAINER
       layerfs snapshot rm CONTAINER NAME...")]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: Option<SnapshotCommand>,
    #[command(flatten)]
    create: CreateArgs,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    Create(CreateArgs),
    #[command(name = "ls", visible_alias = "list")]
    List(ListArgs),
    #[command(name = "rm", visible_alias = "remove")]
    Remove(RemoveArgs),
}

/// Make a snapshot; the same without `create`
#[derive(Debug, Args)]
struct CreateArgs {
    /// Words about it
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// The container
    #[arg(value_name = "CONTAINER", required = true)]
    container: Option<String>,
    /// Its name; without one, the next number
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// List the snapshots of a container
#[derive(Debug, Args)]
struct ListArgs {
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Remove snapshots of a container
#[derive(Debug, Args)]
struct RemoveArgs {
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The snapshots
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

const AFTER_HELP: &str = "\
Examples
  Before something that may go wrong, and back:
    layerfs snapshot agent before
    layerfs rollback agent before
  A second container that goes on from here:
    layerfs fork --name other agent";

pub(crate) fn snapshot(args: SnapshotArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        None => create(args.create),
        Some(SnapshotCommand::Create(args)) => create(args),
        Some(SnapshotCommand::List(args)) => list(&args),
        Some(SnapshotCommand::Remove(args)) => remove(&args),
    }
}

fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let Some(container) = args.container else {
        return Err(Usage("name a container: layerfs snapshot CONTAINER [NAME]".into()).into());
    };
    let containers = Containers::open_beside(&container)?;
    let mut rest = at_rest(&containers, &container)?;
    super::apply::refuse_unfinished(&rest.container)?;
    let name = match args.name {
        Some(name) => name,
        None => snapshots::free_name(&rest.container)?,
    };
    let draft = snapshots::draft(&rest.container, &name, &args.message)?;
    rest.go_on();
    draft.publish()?;
    ui::print(format!("{name}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let container = Containers::open()?.find(&args.container)?;
    let all = snapshots::all(&container)?;
    if args.quiet {
        ui::print(all.iter().map(|snapshot| format!("{}\n", snapshot.name)).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = all
        .iter()
        .map(|snapshot| {
            json!({
                "Name": snapshot.name,
                "Container": container.config.name,
                "Created": snapshot.created,
                "CreatedSince": layerfs_image::time::parse(&snapshot.created).map(|(at, _)| human::since(at)),
                "Entries": snapshot.entries.to_string(),
                "Size": human::size(snapshot.size),
                "Message": snapshot.message,
            })
        })
        .collect();
    let columns = [
        ("NAME", "Name"),
        ("CREATED", "CreatedSince"),
        ("ENTRIES", "Entries"),
        ("SIZE", "Size"),
        ("MESSAGE", "Message"),
    ];
    listing::print(&rows, &columns, &[], args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn remove(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    let container = containers.find(&args.container)?;
    each(&args.names, |name| {
        let _layer = super::rest::lock_layer(&container)?;
        snapshots::remove(&container, name)?;
        Ok(name.clone())
    })
}
