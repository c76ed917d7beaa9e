//! `list`: all containers.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use layerfs_runner::runtime::View;
use serde_json::json;

use super::Context;
use crate::ui;

/// List containers
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns for people.
    Table,
    /// One JSON array.
    Json,
}

pub(super) fn list(args: ListArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let containers = context.runtime.list()?;
    let text = match (args.quiet, args.format) {
        (true, _) => containers.iter().map(|view| view.record().id.clone() + "\n").collect(),
        (false, Format::Json) => {
            let states: Vec<_> = containers.iter().map(View::state).collect();
            format!("{}\n", json!(states))
        }
        (false, Format::Table) => table(&containers),
    };
    ui::print(text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(containers: &[View]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for view in containers {
        let state = view.state();
        let word =
            |name: &str| state.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        rows.push([
            word("id"),
            view.pid().to_string(),
            word("status"),
            word("bundle"),
            word("created"),
            word("owner"),
        ]);
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += line.join("   ").trim_end();
        text.push('\n');
    }
    text
}
