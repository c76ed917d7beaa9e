//! `layerfs fork`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_image::layer::TreeCopy;
use layerfs_runner::runtime::time::rfc3339;
use layerfs_volume::NewVolume;

use super::super::config::{ContainerConfig, MountSpec};
use super::super::create::{new_id, write_down};
use super::super::store::{Containers, Hidden, save_config};
use super::rest::at_rest;
use super::snapshots;
use crate::commands::run::short;
use crate::exit::Hinted;
use crate::ui;

/// Begins the name of a directory in which a fork is made; the rest is its id.
pub(crate) const UNFINISHED: &str = ".fork-";

/// Make a second container that goes on from where one is
///
/// It has the same image, options and changes, and a copy of the anonymous volumes; from then on the two have nothing in
/// common. A container that runs is paused for that moment. The fork is not started: its id is printed.
#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// Name of the new container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// From this snapshot, in place of what the container is now
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// What a fork is made in; dropping it removes it.
struct Beside(Option<Hidden>);

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Hidden::remove) {
            tracing::warn!(error = format!("{error:#}"), "remove what a fork was made in");
        }
    }
}

pub(crate) fn fork(args: ForkArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open_beside(&args.container)?;
    let mut rest = at_rest(&containers, &args.container)?;
    super::apply::refuse_unfinished(&rest.container)?;
    let container = &rest.container;
    if container.config.is_foreground {
        bail!(Hinted {
            message: format!(
                "container {} was kept by `run --rootfs` and cannot be started again",
                container.short()
            ),
            hint: "give the run a --name, and it can be forked".into(),
        });
    }
    let mut config = container.config.clone();
    config.id = new_id()?;
    config.created = rfc3339(SystemTime::now());
    if config.hostname == container.short() {
        config.hostname = short(&config.id).to_owned();
    }
    if config.rootfs.is_some() && config.lower_since.is_empty() {
        config.lower_since.clone_from(&container.config.created);
    }
    let path = containers.directory().join(format!("{UNFINISHED}{}", config.id));
    let beside = Beside(Some(Hidden::make(path.clone())?));
    let copy = |from: &Path, name: &str| {
        TreeCopy::default().copy(from, &path.join(name)).map(|_| ()).context("copy the changes")
    };
    match &args.snapshot {
        Some(name) => {
            snapshots::find(container, name)?;
            copy(&snapshots::tree_of(container, name), "upper")?;
        }
        None => copy(&container.directory.join("upper"), "upper")?,
    }
    // Whoever removes volumes asks the configs whether somebody has them.
    let fresh = fresh_volumes(&config.mounts)?;
    let old = std::mem::replace(&mut config.mounts, fresh);
    save_config(&path, &config)?;
    let volumes = copy_volumes(&old, &config)?;
    rest.go_on();
    let (made, _lock) = match write_down(&containers, config, args.name.as_deref(), &[], Some(&path)) {
        Ok(made) => made,
        Err(error) => {
            drop(beside);
            forget_volumes(&volumes);
            return Err(error);
        }
    };
    ui::print(format!("{}\n", made.id()))?;
    Ok(ExitCode::SUCCESS)
}

/// The mounts with new names for the volumes that were made for the container.
fn fresh_volumes(mounts: &[MountSpec]) -> anyhow::Result<Vec<MountSpec>> {
    let mut fresh = mounts.to_vec();
    for mount in &mut fresh {
        if let MountSpec::Volume { name, anonymous: true, .. } = mount {
            *name = new_id()?;
        }
    }
    Ok(fresh)
}

/// Makes the fork's own volumes with the content of the container's; answers with their names.
fn copy_volumes(old: &[MountSpec], config: &ContainerConfig) -> anyhow::Result<Vec<String>> {
    let own = |mount: &MountSpec| match mount {
        MountSpec::Volume { name, anonymous: true, .. } => Some(name.clone()),
        _ => None,
    };
    let mut made = Vec::new();
    for (old, new) in old.iter().zip(&config.mounts) {
        let (Some(old), Some(new)) = (own(old), own(new)) else { continue };
        let copied = copy_volume(&old, &new, &config.created);
        made.push(new);
        if let Err(error) = copied {
            forget_volumes(&made);
            return Err(error.context("copy a volume of the container"));
        }
    }
    Ok(made)
}

fn copy_volume(old: &str, new: &str, created: &str) -> anyhow::Result<()> {
    let volumes = crate::commands::volume::open()?;
    let old = match volumes.find(old) {
        // The command that made the container was killed before it made this; a start makes it.
        Err(layerfs_volume::Error::NoSuchVolume(_)) => return Ok(()),
        found => found?,
    };
    volumes.create(&NewVolume {
        name: Some(new.to_owned()),
        labels: old.labels.clone(),
        options: old.options.clone(),
        created: created.to_owned(),
        anonymous: true,
        ..NewVolume::default()
    })?;
    let holds_something = fs::read_dir(&old.mountpoint).is_ok_and(|mut entries| entries.next().is_some());
    if old.filled || holds_something {
        volumes.fill(new, fs::File::open(&old.mountpoint)?)?;
    }
    Ok(())
}

fn forget_volumes(names: &[String]) {
    let Ok(volumes) = crate::commands::volume::open() else { return };
    for name in names {
        if let Err(error) = volumes.remove(name, &|_| Vec::new()) {
            tracing::warn!(%error, name, "a volume is left");
        }
    }
}
