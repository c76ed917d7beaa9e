//! `layerfs rename`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::network;
use super::store::Containers;
use crate::events;

/// Give a container another name
#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Its new name
    #[arg(value_name = "NEW_NAME")]
    name: String,
}

pub(crate) fn rename(args: RenameArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    let _store = containers.lock()?;
    // The config is no monitor's business: the store's lock is enough.
    let mut container = containers.find(&args.container)?;
    if container.config.is_foreground {
        bail!("container {} was kept by `run --rootfs` and has no name", container.short());
    }
    let name = args.name.strip_prefix('/').unwrap_or(&args.name);
    if name == container.config.name {
        bail!("Renaming a container with the same name as its current name");
    }
    containers.take_name(name, container.id())?;
    let old = std::mem::replace(&mut container.config.name, name.to_owned());
    let saved = container.save_config();
    let (gone, id) = (if saved.is_ok() { &old } else { &container.config.name }, container.id());
    containers.free_name(gone, id);
    saved?;
    // While it runs, others find it by the new name at once.
    network::renamed(&container.config)?;
    events::container("rename", &container.config, &[("oldName", &format!("/{old}"))]);
    Ok(ExitCode::SUCCESS)
}
