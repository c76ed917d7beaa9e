//! `layerfs volume inspect`.

use std::process::ExitCode;

use clap::Args;

use crate::commands::image::inspect::print;
use crate::{exit, ui};

/// Show all that is known of volumes, as JSON
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A Go template, or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Names
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
}

/// One volume's document, or why there is none.
pub(crate) fn document(name: &str) -> anyhow::Result<serde_json::Value> {
    Ok(super::open()?.find(name)?.inspect())
}

pub(crate) fn inspect(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let volumes = super::open()?;
    let mut documents = Vec::new();
    let mut failed = false;
    for name in &args.volumes {
        match volumes.find(name) {
            Ok(volume) => documents.push(volume.inspect()),
            Err(error) => {
                ui::error(&error.into());
                failed = true;
            }
        }
    }
    print(&documents, args.format.as_deref())?;
    Ok(ExitCode::from(if failed { exit::FAILURE } else { 0 }))
}
