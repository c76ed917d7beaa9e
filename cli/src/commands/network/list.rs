//! `layerfs network ls`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::filter::Filters;
use super::open::{open, told};
use crate::images::{human, listing};
use crate::ui;

const KEYS: [&str; 8] = ["dangling", "driver", "id", "label", "label!", "name", "scope", "type"];
const HEADERS: [listing::Column; 8] = [
    ("NETWORK ID", "ID"),
    ("NAME", "Name"),
    ("DRIVER", "Driver"),
    ("SCOPE", "Scope"),
    ("IPV6", "IPv6"),
    ("INTERNAL", "Internal"),
    ("LABELS", "Labels"),
    ("CREATED AT", "CreatedAt"),
];

/// List networks
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Show only some: name, id (parts of them), driver, label, scope, type=custom|builtin, dangling=BOOL
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

pub(crate) fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let filters = Filters::parse(&args.filter, &KEYS)?;
    let dangling = filters.flag("dangling")?;
    let networks = open()?;
    let leases = networks.leases().map_err(told)?;
    let mut rows = Vec::new();
    for network in networks.list().map_err(told)? {
        let used = leases.iter().any(|lease| lease.network == network.id);
        let kind = if network.is_predefined() { "builtin" } else { "custom" };
        let admitted = filters.any("name", |name| network.name.contains(name))
            && filters.any("id", |id| network.id.starts_with(id))
            && filters.any("driver", |driver| network.driver.name() == driver)
            && filters.any("scope", |scope| scope == "local")
            && filters.any("type", |wanted| wanted == kind)
            && filters.labels(&network.labels)
            && dangling.is_none_or(|wanted| wanted == (!used && !network.is_predefined()));
        if !admitted {
            continue;
        }
        let id = if args.no_trunc { &network.id } else { network.id.get(..12).unwrap_or(&network.id) };
        let labels: Vec<String> =
            network.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let created = layerfs_image::time::parse(&network.created).map_or(0, |(seconds, _)| seconds);
        rows.push(json!({
            "ID": id,
            "Name": network.name,
            "Driver": network.driver.name(),
            "Scope": "local",
            "IPv6": network.v6().is_some().to_string(),
            "Internal": network.internal.to_string(),
            "Labels": labels.join(","),
            "CreatedAt": human::date(created),
        }));
    }
    if args.quiet && args.format.is_none() {
        let ids = rows.iter().filter_map(|row| row["ID"].as_str());
        ui::print(ids.map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    listing::print(&rows, &HEADERS[..4], &HEADERS, args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
