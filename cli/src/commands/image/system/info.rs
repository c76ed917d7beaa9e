//! `layerfs info`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::images::template::Template;
use crate::images::{self, containers, human};
use crate::ui;

/// Show what is here: versions, places, counts
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// `json` or a Go template on the document that `json` shows
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// docker's document, as far as it means something here.
fn document() -> anyhow::Result<Value> {
    let store = images::open_store()?;
    let (containers, running) = containers::count()?;
    let images = store.images()?.0.len();
    let system = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cgroup = if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" };
    let root = crate::commands::run::store_root()?.display().to_string();
    Ok(json!({
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "Driver": "layerfs",
        "DriverStatus": [["Image Store", store.root().display().to_string()]],
        "Containers": containers,
        "ContainersRunning": running,
        "ContainersPaused": 0,
        "ContainersStopped": containers - running,
        "Images": images,
        "ImageRoot": store.root().display().to_string(),
        "DockerRootDir": root,
        "LayerfsRootDir": root,
        "DefaultRuntime": "layerfs",
        "CgroupVersion": cgroup,
        "KernelVersion": system.release().to_string_lossy(),
        "OperatingSystem": os_release("PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
        "OSVersion": os_release("VERSION_ID").unwrap_or_default(),
        "OSType": "linux",
        "Architecture": system.machine().to_string_lossy(),
        "NCPU": cpus,
        "MemTotal": memory.totalram as u64 * u64::from(memory.mem_unit),
        "Name": system.nodename().to_string_lossy(),
        "SystemTime": layerfs_image::time::now(),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "HttpProxy": proxy("HTTP_PROXY"),
        "HttpsProxy": proxy("HTTPS_PROXY"),
        "NoProxy": proxy("NO_PROXY"),
        "Rootless": layerfs_runner::host::is_rootless(),
        "Warnings": [],
    }))
}

/// A proxy of the environment, without the password that may be in it.
fn proxy(name: &str) -> String {
    let text = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase())).unwrap_or_default();
    match text.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            format!("{scheme}xxxxx:xxxxx@{host}")
        }
        None => text,
    }
}

pub(crate) fn info(args: InfoArgs) -> anyhow::Result<ExitCode> {
    let document = document()?;
    let text = match args.format.as_deref() {
        Some("json") => format!("{document}\n"),
        Some(format) => format!("{}\n", Template::strict(format)?.render(&document)?),
        None => for_people(&document),
    };
    ui::print(text)?;
    Ok(ExitCode::SUCCESS)
}

fn for_people(document: &Value) -> String {
    let mut out = String::new();
    let mut line = |words: &str, field: &str| {
        let value = match &document[field] {
            Value::String(text) if text.is_empty() => return,
            Value::String(text) => text.clone(),
            value if field == "MemTotal" => human::binary_size(value.as_u64().unwrap_or(0)),
            value => value.to_string(),
        };
        out.push_str(&format!("{words}: {value}\n"));
    };
    for (words, field) in [
        ("Version", "ServerVersion"),
        ("Containers", "Containers"),
        (" Running", "ContainersRunning"),
        (" Stopped", "ContainersStopped"),
        ("Images", "Images"),
        ("Storage Driver", "Driver"),
        ("Image Store", "ImageRoot"),
        ("Root Dir", "LayerfsRootDir"),
        ("Cgroup Version", "CgroupVersion"),
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
        ("Total Memory", "MemTotal"),
        ("Name", "Name"),
        ("Rootless", "Rootless"),
        ("HTTP Proxy", "HttpProxy"),
        ("HTTPS Proxy", "HttpsProxy"),
        ("No Proxy", "NoProxy"),
    ] {
        line(words, field);
    }
    out
}

fn os_release(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}
