//! `layerfs volume ls`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::users;
use crate::commands::network::Filters;
use crate::images::listing;
use crate::ui;

const HEADERS: [listing::Column; 6] = [
    ("DRIVER", "Driver"),
    ("VOLUME NAME", "Name"),
    ("SCOPE", "Scope"),
    ("MOUNTPOINT", "Mountpoint"),
    ("LABELS", "Labels"),
    ("LINKS", "Links"),
];

/// List volumes
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Show only names
    #[arg(short, long)]
    quiet: bool,
    /// Show only some: name (a part of it), driver, label, dangling=BOOL
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

pub(crate) fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let filters = Filters::parse(&args.filter, &["name", "driver", "label", "label!", "dangling"])?;
    let dangling = filters.flag("dangling")?;
    let mut rows = Vec::new();
    for volume in super::open()?.list()? {
        let admitted = filters.any("name", |name| volume.name.contains(name))
            && filters.any("driver", |driver| driver == "local")
            && filters.labels(&volume.labels)
            && dangling.is_none_or(|wanted| wanted == users::of(&volume.name).is_empty());
        if !admitted {
            continue;
        }
        let labels: Vec<String> =
            volume.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        rows.push(json!({
            "Driver": "local",
            "Name": volume.name,
            "Scope": "local",
            "Mountpoint": volume.mountpoint,
            "Labels": labels.join(","),
            "Links": "N/A",
            "Size": "N/A",
            "Availability": "N/A",
            "Group": "N/A",
            "Status": "N/A",
        }));
    }
    if args.quiet && args.format.is_none() {
        let names = rows.iter().filter_map(|row| row["Name"].as_str());
        ui::print(names.map(|name| format!("{name}\n")).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    listing::print(&rows, &HEADERS[..2], &HEADERS, args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
