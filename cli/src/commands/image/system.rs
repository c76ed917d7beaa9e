//! `layerfs system` and `layerfs info`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::list::Sizes;
use crate::images::template::Template;
use crate::images::{self, containers, human, listing};
use crate::ui;

/// Look at layerfs as a whole
#[derive(Debug, Args)]
pub(crate) struct SystemArgs {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum SystemCommand {
    Df(DfArgs),
    Info(InfoArgs),
    Prune(super::prune::PruneArgs),
}

/// Show how much space images and containers take
#[derive(Debug, Args)]
struct DfArgs {
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show what is here: versions, places, counts
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// `json` or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

pub(crate) fn system(args: SystemArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        SystemCommand::Df(args) => df(&args),
        SystemCommand::Info(args) => info(args),
        SystemCommand::Prune(args) => super::prune::prune(args),
    }
}

fn df(args: &DfArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let (found, _) = store.images()?;
    let sizes = Sizes::of(&store, &found);
    let mut active = 0;
    let mut reclaimable = 0;
    for image in &found {
        match containers::user_of(&image.id)? {
            Some(_) => active += 1,
            None => reclaimable += sizes.image(image).1,
        }
    }
    let total = sizes.total();
    // With no image in use, what they share comes free too.
    if active == 0 {
        reclaimable = total;
    }
    let (containers, running) = containers::count()?;
    let root = crate::commands::run::store_root()?.join("containers");
    let used = disk_usage(&root);
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
    let rows = [
        row("Images", found.len(), active, total, reclaimable),
        row("Containers", containers, running, used, if running == 0 { used } else { 0 }),
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

/// Bytes on disk beneath a directory. What cannot be read is not counted.
fn disk_usage(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let size = |entry: std::fs::DirEntry| {
        let Ok(metadata) = entry.metadata() else { return 0 };
        let below = if metadata.is_dir() { disk_usage(&entry.path()) } else { 0 };
        metadata.blocks() * 512 + below
    };
    entries.flatten().map(size).sum()
}

pub(crate) fn info(args: InfoArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let (containers, running) = containers::count()?;
    let images = store.named()?.len();
    let system = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let document = json!({
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "Driver": "layerfs",
        "Containers": containers,
        "ContainersRunning": running,
        "ContainersStopped": containers - running,
        "Images": images,
        "ImageRoot": store.root().display().to_string(),
        "LayerfsRootDir": crate::commands::run::store_root()?.display().to_string(),
        "KernelVersion": system.release().to_string_lossy(),
        "OperatingSystem": os_name(),
        "OSType": "linux",
        "Architecture": system.machine().to_string_lossy(),
        "NCPU": cpus,
        "MemTotal": memory.totalram as u64 * u64::from(memory.mem_unit),
        "Name": system.nodename().to_string_lossy(),
        "Rootless": !rustix::process::getuid().is_root(),
    });
    let text = match args.format.as_deref() {
        Some("json") => format!("{document}\n"),
        Some(format) => format!("{}\n", Template::strict(format)?.render(&document)?),
        None => {
            let line = |words: &str, field: &str| match &document[field] {
                Value::String(text) => format!("{words}: {text}\n"),
                value => format!("{words}: {value}\n"),
            };
            [
                line("Version", "ServerVersion"),
                line("Containers", "Containers"),
                line(" Running", "ContainersRunning"),
                line(" Stopped", "ContainersStopped"),
                line("Images", "Images"),
                line("Storage Driver", "Driver"),
                line("Image Store", "ImageRoot"),
                line("Root Dir", "LayerfsRootDir"),
                line("Kernel Version", "KernelVersion"),
                line("Operating System", "OperatingSystem"),
                line("OSType", "OSType"),
                line("Architecture", "Architecture"),
                line("CPUs", "NCPU"),
                line("Total Memory", "MemTotal"),
                line("Name", "Name"),
                line("Rootless", "Rootless"),
            ]
            .concat()
        }
    };
    ui::print(text)?;
    Ok(ExitCode::SUCCESS)
}

fn os_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}
