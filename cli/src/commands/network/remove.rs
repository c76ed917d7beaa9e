//! `layerfs network rm`.

use std::process::ExitCode;

use clap::Args;
use layerfs_network::Error;

use super::open::{open, told};
use crate::{exit, ui};

/// Remove networks
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// A network that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
}

pub(crate) fn remove(args: RemoveArgs) -> anyhow::Result<ExitCode> {
    let networks = open()?;
    let mut failed = false;
    for name in &args.networks {
        match networks.remove(name) {
            Ok(network) => {
                crate::events::network("destroy", &network.id, &network.name, "");
                ui::print(format!("{name}\n"))?;
            }
            Err(Error::NoSuchNetwork(_)) if args.force => {}
            Err(error) => {
                ui::error(&told(error));
                failed = true;
            }
        }
    }
    Ok(ExitCode::from(if failed { exit::FAILURE } else { 0 }))
}
