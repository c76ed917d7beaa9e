//! `layerfs network inspect`.

use std::process::ExitCode;

use clap::Args;

use super::open::{open, told};
use crate::commands::image::inspect::print;
use crate::{exit, ui};

/// Show all that is known of networks, as JSON
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A Go template, or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Accepted for docker's sake
    #[arg(short, long, hide = true)]
    verbose: bool,
    /// Names or ids
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
}

/// One network's document, or why there is none.
pub(crate) fn document(name: &str) -> anyhow::Result<serde_json::Value> {
    let networks = open()?;
    let leases = networks.leases().map_err(told)?;
    Ok(networks.find(name).map_err(told)?.inspect(&leases))
}

pub(crate) fn inspect(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let networks = open()?;
    let leases = networks.leases().map_err(told)?;
    let mut documents = Vec::new();
    let mut failed = false;
    for name in &args.networks {
        match networks.find(name) {
            Ok(network) => documents.push(network.inspect(&leases)),
            Err(error) => {
                ui::error(&told(error));
                failed = true;
            }
        }
    }
    print(&documents, args.format.as_deref())?;
    Ok(ExitCode::from(if failed { exit::FAILURE } else { 0 }))
}
