//! `layerfs system check`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::commands::container::check::{self as containers, Problem};
use crate::commands::{network, volume};
use crate::{exit, images, ui};

/// Look for what killed commands, or the machine's end, have left, and mend it
///
/// Containers (state, names, processes, mounts, cgroups, snapshots), networks (addresses, interfaces, packet filter),
/// volumes, and images (as `layerfs store check`). Exit codes: 0 when all is well or was mended, 1 when something is wrong.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Mend what is found
    #[arg(long)]
    repair: bool,
    /// Do not read the content of images, which takes long when there are many
    #[arg(long)]
    quick: bool,
    /// `table` or `json`
    #[arg(long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    format: String,
}

pub(super) fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut sections: Vec<(&str, Vec<Problem>)> = Vec::new();
    let (count, found) = containers::containers(args.repair).context("check the containers")?;
    sections.push(("containers", found));
    sections.push(("networks", network::problems(args.repair).context("check the networks")?));
    sections.push(("volumes", volume::problems(args.repair).context("check the volumes")?));
    if !args.quick {
        let report = images::check_store(&images::open_store()?, args.repair)?;
        let problems = report.problems.into_iter();
        sections.push((
            "images",
            problems.map(|problem| Problem { what: problem.what, mended: problem.mended }).collect(),
        ));
    }
    let all: Vec<&Problem> = sections.iter().flat_map(|(_, problems)| problems).collect();
    let left = all.iter().filter(|problem| problem.mended.is_none()).count();
    if args.format == "json" {
        let sections: serde_json::Map<String, serde_json::Value> = sections
            .iter()
            .map(|(name, problems)| {
                let problems: Vec<_> =
                    problems.iter().map(|p| json!({ "what": p.what, "mended": p.mended })).collect();
                ((*name).to_owned(), json!(problems))
            })
            .collect();
        ui::print(format!("{}\n", json!({ "containers": count, "problems": sections, "left": left })))?;
    } else {
        let mut text = String::new();
        for problem in &all {
            text.push_str(&problem.what);
            if let Some(mended) = &problem.mended {
                text.push_str(": ");
                text.push_str(mended);
            }
            text.push('\n');
        }
        text.push_str(&match (all.len(), left) {
            (0, _) => "all is well\n".to_owned(),
            (found, 0) => format!("{found} problems, all mended\n"),
            (found, left) => format!("{found} problems, {left} of them left\n"),
        });
        ui::print(text)?;
        if left > 0 && !args.repair {
            ui::note("mend what can be: layerfs system check --repair");
        }
    }
    Ok(ExitCode::from(if left == 0 { 0 } else { exit::FAILURE }))
}
