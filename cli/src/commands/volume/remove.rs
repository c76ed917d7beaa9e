//! `layerfs volume rm`.

use std::process::ExitCode;

use clap::Args;
use layerfs_volume::Error;

use super::users;
use crate::{exit, ui};

/// Remove volumes and what is in them
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// A volume that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
}

pub(crate) fn remove(args: RemoveArgs) -> anyhow::Result<ExitCode> {
    let volumes = super::open()?;
    let mut failed = false;
    for name in &args.volumes {
        match volumes.remove(name, &users::of) {
            Ok(_) => {
                crate::events::volume("destroy", name);
                ui::print(format!("{name}\n"))?;
            }
            Err(Error::NoSuchVolume(_)) if args.force => drop(ui::print(format!("{name}\n"))?),
            Err(error) => {
                ui::error(&error.into());
                failed = true;
            }
        }
    }
    Ok(ExitCode::from(if failed { exit::FAILURE } else { 0 }))
}
