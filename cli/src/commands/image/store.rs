//! `layerfs store`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::exit;
use crate::images;
use crate::ui;

/// Look after the image store
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Verify all digests, layers, indexes and references
    ///
    /// Exit codes: 0 when all is well or was mended, 1 when something is wrong.
    Check {
        /// Mend what can be: layers are unpacked again, damaged content goes, and images that cannot be made whole and that no
        /// container is on
        #[arg(long)]
        repair: bool,
        /// `json`
        #[arg(long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
        format: String,
    },
    /// Print where the image store is
    Path,
}

pub(crate) fn store(args: StoreArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let (repair, format) = match args.command {
        StoreCommand::Path => {
            ui::print(format!("{}\n", store.root().display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        StoreCommand::Check { repair, format } => (repair, format),
    };
    let report = images::check_store(&store, repair)?;
    let unmended = report.problems.iter().filter(|problem| problem.mended.is_none()).count();
    if format == "json" {
        let problems: Vec<_> =
            report.problems.iter().map(|p| json!({ "what": p.what, "mended": p.mended })).collect();
        let document = json!({
            "images": report.images, "blobs": report.blobs, "layers": report.layers, "problems": problems,
        });
        ui::print(format!("{document}\n"))?;
    } else {
        let mut text = String::new();
        for problem in &report.problems {
            text.push_str(&problem.what);
            if let Some(mended) = &problem.mended {
                text.push_str(": ");
                text.push_str(mended);
            }
            text.push('\n');
        }
        text.push_str(&format!(
            "{} images, {} blobs, {} layers: {}\n",
            report.images,
            report.blobs,
            report.layers,
            match (report.problems.len(), unmended) {
                (0, _) => "all is well".to_owned(),
                (found, 0) => format!("{found} problems, all mended"),
                (found, left) => format!("{found} problems, {left} of them left"),
            }
        ));
        ui::print(text)?;
        if unmended > 0 && !repair {
            ui::note("mend what can be: layerfs store check --repair");
        }
    }
    Ok(ExitCode::from(if unmended == 0 { 0 } else { exit::FAILURE }))
}
