//! `layerfs builder`: what builds keep.

pub(crate) mod cache;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::build::{build, step};
use crate::exit::Usage;
use crate::images::{self, human, listing};
use crate::moment;
use crate::ui::{self, prompt};

/// Manage what builds keep
#[derive(Debug, Args)]
pub(crate) struct BuilderArgs {
    #[command(subcommand)]
    command: Box<BuilderCommand>,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum BuilderCommand {
    Build(Box<super::build::BuildArgs>),
    #[command(name = "du")]
    DiskUsage(DiskUsageArgs),
    Prune(PruneArgs),
    Step(step::StepArgs),
}

pub(crate) fn builder(args: BuilderArgs) -> anyhow::Result<ExitCode> {
    match *args.command {
        BuilderCommand::Build(args) => build(*args),
        BuilderCommand::DiskUsage(args) => disk_usage(args),
        BuilderCommand::Prune(args) => prune(args),
        BuilderCommand::Step(args) => step::step(args),
    }
}

/// Show what builds keep: steps and cache directories
#[derive(Debug, Args)]
pub(crate) struct DiskUsageArgs {
    /// Do not shorten ids and instructions
    #[arg(long)]
    no_trunc: bool,
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

fn disk_usage(args: DiskUsageArgs) -> anyhow::Result<ExitCode> {
    let cache = cache::BuildCache::of(&images::open_store()?)?;
    let mut total = 0;
    let rows = rows(&cache, args.no_trunc);
    for step in &cache.steps {
        total += step.size;
    }
    for directory in &cache.directories {
        total += directory.size;
    }
    let is_table = args.format.as_deref().is_none_or(|format| format == "table");
    let columns = [
        ("ID", "ID"),
        ("TYPE", "Type"),
        ("SIZE", "Size"),
        ("SHARED", "Shared"),
        ("LAST USED", "LastUsed"),
        ("DESCRIPTION", "Description"),
    ];
    listing::print(&rows, &columns, &[], args.format.as_deref())?;
    if is_table {
        ui::print(format!("Total: {}\n", human::size(total)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A row for each step and cache directory.
pub(crate) fn rows(cache: &cache::BuildCache, no_trunc: bool) -> Vec<Value> {
    let shortened = |text: &str, len: usize| match no_trunc {
        true => text.to_owned(),
        false => text.chars().take(len).collect(),
    };
    let steps = cache.steps.iter().map(|step| {
        json!({
            "ID": shortened(&step.record.key.hex(), 12),
            "Type": step.record.kind,
            "Size": human::size(step.size),
            "Shared": cache.is_shared(step).to_string(),
            "InUse": "false",
            "CreatedAt": step.record.created,
            "LastUsed": layerfs_image::time::format(i64::try_from(step.last_used).unwrap_or(0), 0),
            "Description": shortened(&step.record.description, 50),
        })
    });
    let directories = cache.directories.iter().map(|directory| {
        let name = directory.kept.directory.file_name().unwrap_or_default().to_string_lossy();
        json!({
            "ID": name.chars().take(12).collect::<String>(),
            "Type": "cachemount",
            "Size": human::size(directory.size),
            "Shared": "false",
            "InUse": directory.is_used.to_string(),
            "CreatedAt": "",
            "LastUsed": "",
            "Description": directory.kept.id,
        })
    });
    steps.chain(directories).collect()
}

/// Remove what builds keep
///
/// Steps whose layers no image has, and with --all every step and the cache directories. Those that a build uses stay.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Also steps whose layers images have, and cache directories
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only what was not used for so long: until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Keep so much of what was used last: a number with k, m or g
    #[arg(long, visible_alias = "max-used-space", value_name = "SIZE")]
    keep_storage: Option<String>,
}

fn prune(args: PruneArgs) -> anyhow::Result<ExitCode> {
    let mut before = None;
    for filter in &args.filter {
        let time = filter.strip_prefix("until=");
        let time = time.ok_or_else(|| Usage(format!("filter {filter:?}: write until=24h")))?;
        before = Some(moment::seconds(time)?);
    }
    let keep =
        args.keep_storage.as_deref().map(crate::commands::container::create_values::bytes).transpose()?;
    let keep = keep.unwrap_or(0).unsigned_abs();
    if !args.force {
        let what = if args.all {
            "all steps that builds keep, and cache directories"
        } else {
            "all steps that no image has"
        };
        if !prompt::confirmed(what)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let what = cache::Removal { all: args.all, before, keep };
    let removed = cache::remove(&images::open_store()?, what)?;
    crate::events::prune("builder", removed.bytes);
    for name in &removed.names {
        ui::print(format!("{name}\n"))?;
    }
    if removed.postponed {
        ui::note("somebody uses the store: the layers go with the next prune");
    }
    ui::print(format!("Total reclaimed space: {}\n", human::size(removed.bytes)))?;
    Ok(ExitCode::SUCCESS)
}
