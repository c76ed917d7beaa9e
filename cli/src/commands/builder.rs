//! `layerfs builder`: what builds keep.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::build::{DIRECTORY, build, cache_mount, step};
use crate::exit::Usage;
use crate::images::{self, human, listing};
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

/// Bytes on disk of a tree, as `du` has it, for cache directories.
fn tree_size(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| {
            metadata.blocks() * 512 + if metadata.is_dir() { tree_size(&path) } else { 0 }
        })
        .sum()
}

fn disk_usage(args: DiskUsageArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let used: std::collections::HashSet<_> =
        store.images()?.0.iter().flat_map(|image| image.diff_ids().to_vec()).collect();
    let mut rows: Vec<Value> = Vec::new();
    let mut total = 0;
    for step in store.steps()?.into_iter().rev() {
        let id = step.record.key.hex();
        let shown = if args.no_trunc { id } else { id.chars().take(12).collect() };
        let description = match args.no_trunc {
            true => step.record.description.clone(),
            false => step.record.description.chars().take(50).collect(),
        };
        total += step.size;
        rows.push(json!({
            "ID": shown,
            "Type": step.record.kind,
            "Size": human::size(step.size),
            "Shared": used.contains(&step.record.layer).to_string(),
            "LastUsed": layerfs_image::time::format(i64::try_from(step.last_used).unwrap_or(0), 0),
            "Description": description,
        }));
    }
    let caches = crate::commands::run::store_root()?.join(DIRECTORY).join("cache");
    for kept in cache_mount::all(&caches)? {
        let size = tree_size(&kept.directory);
        total += size;
        let name =
            kept.directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        rows.push(json!({
            "ID": name.chars().take(12).collect::<String>(),
            "Type": "cachemount",
            "Size": human::size(size),
            "Shared": "false",
            "LastUsed": "",
            "Description": kept.id,
        }));
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

fn seconds(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)? {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn prune(args: PruneArgs) -> anyhow::Result<ExitCode> {
    let mut until = None;
    for filter in &args.filter {
        let age = filter.strip_prefix("until=").and_then(seconds);
        until = Some(age.ok_or_else(|| Usage(format!("filter {filter:?}: write until=24h")))?);
    }
    let keep =
        args.keep_storage.as_deref().map(crate::commands::container::create_values::bytes).transpose()?;
    let mut keep = keep.unwrap_or(0).unsigned_abs();
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
    let store = images::open_store()?;
    let root = crate::commands::run::store_root()?.join(DIRECTORY);
    crate::commands::container::step::sweep(&root.join("steps"))?;
    let used: std::collections::HashSet<_> =
        store.images()?.0.iter().flat_map(|image| image.diff_ids().to_vec()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let is_old = |last_used: u64| until.is_none_or(|age| now.saturating_sub(last_used) >= age);
    let mut removed = Vec::new();
    // What was used last is kept first.
    for step in store.steps()?.into_iter().rev() {
        if !args.all && used.contains(&step.record.layer) || !is_old(step.last_used) {
            continue;
        }
        if keep >= step.size && keep > 0 {
            keep -= step.size;
            continue;
        }
        store.forget_step(&step.record.key)?;
        removed.push(step.record.key.hex());
    }
    let mut bytes = 0;
    if args.all && until.is_none() {
        for kept in cache_mount::all(&root.join("cache"))? {
            let size = tree_size(&kept.directory);
            if cache_mount::remove(&kept)? {
                bytes += size;
                removed.push(format!("cache {}", kept.id));
            }
        }
        match std::fs::remove_file(root.join("hashes")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let collected = store.collect()?;
    crate::events::prune("builder", bytes + collected.bytes);
    for name in &removed {
        ui::print(format!("{name}\n"))?;
    }
    if collected.postponed {
        ui::note("somebody uses the store: the layers go with the next prune");
    }
    ui::print(format!("Total reclaimed space: {}\n", human::size(bytes + collected.bytes)))?;
    Ok(ExitCode::SUCCESS)
}
