//! `layerfs system df`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use layerfs_image::store::{Image, Store};
use serde_json::{Value, json};

use super::super::list::Sizes;
use crate::commands::builder;
use crate::exit::Usage;
use crate::images::{self, containers, human, listing};
use crate::ui;

/// Show how much space images, containers and the build cache take
///
/// What can be reclaimed of the images are the layers that no container needs: `layerfs image prune --all` frees them. The
/// build cache is what it takes beside the images: `layerfs builder prune --all` frees it.
#[derive(Debug, Args)]
pub(super) struct DfArgs {
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show each image, with what it shares and what it has alone, each container, and each step that builds keep
    #[arg(short, long)]
    verbose: bool,
}

pub(super) fn df(args: &DfArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let (found, _) = store.images()?;
    if args.verbose {
        return verbose(&store, &found, args.format.as_deref());
    }
    let sizes = Sizes::of(&store, &found);
    let total = sizes.total();
    let mut used = Vec::new();
    for image in &found {
        if containers::user_of(&image.id)?.is_some() {
            used.push(image.clone());
        }
    }
    // What a used image shares with one that is not stays.
    let reclaimable = total - Sizes::of(&store, &used).total().min(total);
    let all = containers::all_files()?;
    let (written, freed) = all.iter().fold((0, 0), |(written, freed), container| {
        let size = disk_usage(&container.upper);
        (written + size, freed + if container.running { 0 } else { size })
    });
    let percent = |part: u64, whole: u64| (part * 100).checked_div(whole).unwrap_or(0);
    let row = |kind: &str, count: usize, active: usize, size: u64, free: u64| {
        json!({
            "Type": kind,
            "TotalCount": count.to_string(),
            "Active": active.to_string(),
            "Size": human::size(size),
            "Reclaimable": format!("{} ({}%)", human::size(free), percent(free, size)),
        })
    };
    let running = all.iter().filter(|container| container.running).count();
    let snapshots: Vec<_> = all.iter().flat_map(|container| &container.snapshots).collect();
    let kept: u64 = snapshots.iter().map(|path| disk_usage(path)).sum();
    let cache = builder::cache::BuildCache::of(&store)?;
    let (cached, free) = cache.sizes();
    let in_use = cache.directories.iter().filter(|directory| directory.is_used).count();
    let rows = [
        row("Images", found.len(), used.len(), total, reclaimable),
        row("Containers", all.len(), running, written, freed),
        row("Snapshots", snapshots.len(), 0, kept, kept),
        row("Build Cache", cache.steps.len() + cache.directories.len(), in_use, cached, free),
    ];
    let columns = [
        ("TYPE", "Type"),
        ("TOTAL", "TotalCount"),
        ("ACTIVE", "Active"),
        ("SIZE", "Size"),
        ("RECLAIMABLE", "Reclaimable"),
    ];
    listing::print(&rows, &columns, &[], args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// `-v`: docker's tables, or one document.
fn verbose(store: &Store, found: &[Image], format: Option<&str>) -> anyhow::Result<ExitCode> {
    let sizes = Sizes::of(store, found);
    let users = containers::all_files()?;
    let mut image_rows: Vec<Value> = Vec::new();
    for image in found {
        let (size, unique) = sizes.image(image);
        let uses = users.iter().filter(|container| container.is_on(&image.id)).count();
        let mut names: Vec<(String, String)> = image
            .familiar_names()
            .iter()
            .filter_map(|name| name.rsplit_once(':').map(|(name, tag)| (name.to_owned(), tag.to_owned())))
            .collect();
        if names.is_empty() {
            names.push(("<none>".into(), "<none>".into()));
        }
        for (repository, tag) in names {
            image_rows.push(json!({
                "Repository": repository,
                "Tag": tag,
                "ID": image.id.short(),
                "CreatedSince": human::since(image.created()),
                "Size": human::size(size),
                "SharedSize": human::size(size - unique),
                "UniqueSize": human::size(unique),
                "Containers": uses.to_string(),
            }));
        }
    }
    let container_rows: Vec<Value> = users
        .iter()
        .map(|container| {
            json!({
                "ID": container.id.get(..12).unwrap_or(&container.id),
                "Image": container.base_words(),
                "Command": container.command.clone().unwrap_or_default(),
                "Size": human::size(disk_usage(&container.upper)),
                "Status": container.status,
                "Names": container.name.clone().unwrap_or_default(),
            })
        })
        .collect();
    let cache = builder::cache::BuildCache::of(store)?;
    let cache_rows = builder::rows(&cache, false);
    match format {
        Some("json") => {
            let all = json!({ "Images": image_rows, "Containers": container_rows, "BuildCache": cache_rows });
            ui::print(format!("{all}\n"))?;
        }
        None | Some("table" | "") => {
            ui::print("Images space usage:\n\n")?;
            let columns = [
                ("REPOSITORY", "Repository"),
                ("TAG", "Tag"),
                ("IMAGE ID", "ID"),
                ("CREATED", "CreatedSince"),
                ("SIZE", "Size"),
                ("SHARED SIZE", "SharedSize"),
                ("UNIQUE SIZE", "UniqueSize"),
                ("CONTAINERS", "Containers"),
            ];
            listing::print(&image_rows, &columns, &[], None)?;
            ui::print("\nContainers space usage:\n\n")?;
            let columns = [
                ("CONTAINER ID", "ID"),
                ("IMAGE", "Image"),
                ("COMMAND", "Command"),
                ("SIZE", "Size"),
                ("STATUS", "Status"),
                ("NAMES", "Names"),
            ];
            listing::print(&container_rows, &columns, &[], None)?;
            ui::print(format!("\nBuild cache usage: {}\n\n", human::size(cache.sizes().0)))?;
            let columns = [
                ("CACHE ID", "ID"),
                ("CACHE TYPE", "Type"),
                ("SIZE", "Size"),
                ("LAST USED", "LastUsed"),
                ("SHARED", "Shared"),
                ("DESCRIPTION", "Description"),
            ];
            listing::print(&cache_rows, &columns, &[], None)?;
        }
        Some(_) => {
            return Err(
                Usage("the verbose form is a table or json: leave --format or --verbose out".into()).into()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes on disk beneath a directory. What cannot be read is not counted.
fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let size = |entry: std::fs::DirEntry| {
        let Ok(metadata) = entry.metadata() else { return 0 };
        let below = if metadata.is_dir() { disk_usage(&entry.path()) } else { 0 };
        metadata.blocks() * 512 + below
    };
    entries.flatten().map(size).sum()
}
