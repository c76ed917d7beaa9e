//! `layerfs history`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::images::{self, human, listing};
use crate::ui;

/// Show how an image came to be
///
/// The newest step is first. Steps that changed no file have size 0B.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Sizes and times for people; with =false, bytes and RFC 3339
    #[arg(short = 'H', long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Name or id
    #[arg(value_name = "IMAGE")]
    image: String,
}

pub(crate) fn history(args: HistoryArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let image = images::find(&store, &args.image)?;
    let mut layers = image.diff_ids().iter();
    let mut rows: Vec<Value> = Vec::new();
    for step in &image.config.history {
        let layer = if step.empty_layer { None } else { layers.next() };
        let size = layer.and_then(|diff_id| store.layer(diff_id)).map_or(0, |layer| layer.size);
        let created = step.created.as_deref().and_then(layerfs_image::time::parse).map_or(0, |(s, _)| s);
        let command = step.created_by.clone().unwrap_or_default();
        let shown = if args.no_trunc || command.chars().count() <= 45 {
            command
        } else {
            format!("{}…", command.chars().take(44).collect::<String>())
        };
        rows.push(json!({
            "ID": "<missing>",
            "CreatedSince": if args.human { human::since(created) } else { layerfs_image::time::format(created, 0) },
            "CreatedAt": layerfs_image::time::format(created, 0),
            "CreatedBy": shown.replace('\t', " "),
            "Size": if args.human { human::size(size) } else { size.to_string() },
            "Comment": step.comment.clone().unwrap_or_default(),
        }));
    }
    rows.reverse();
    if let Some(top) = rows.first_mut() {
        top["ID"] = if args.no_trunc { image.id.to_string() } else { image.id.short() }.into();
    }
    if args.quiet {
        ui::print(
            rows.iter().filter_map(|row| row["ID"].as_str()).map(|id| format!("{id}\n")).collect::<String>(),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        ("IMAGE", "ID"),
        ("CREATED", "CreatedSince"),
        ("CREATED BY", "CreatedBy"),
        ("SIZE", "Size"),
        ("COMMENT", "Comment"),
    ];
    listing::print(&rows, &columns, &[("CREATED AT", "CreatedAt")], args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
