//! Volumes of a container: made with it, filled from the image at their first use, gone with it where they are its own.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use layerfs_volume::{Backing, NewVolume, Volumes};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde_json::{Value, json};

use super::config::{ContainerConfig, MountSpec};
use crate::commands::volume::open;

/// Makes those that are not there. After a failure those without a name are gone again.
pub(super) fn create(wanted: &[NewVolume]) -> anyhow::Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let volumes = open()?;
    for (at, new) in wanted.iter().enumerate() {
        let is_there = new.name.as_deref().is_some_and(|name| volumes.find(name).is_ok());
        let created = volumes.create(new);
        if let (Ok(volume), false) = (&created, is_there) {
            crate::events::volume("create", &volume.name);
        }
        if let Err(error) = created {
            let made = wanted.iter().take(at).filter(|volume| volume.anonymous);
            for name in made.filter_map(|volume| volume.name.as_deref()) {
                if let Err(error) = volumes.remove(name, &|_| Vec::new()) {
                    tracing::warn!(%error, name, "a volume is left");
                }
            }
            return Err(error.into());
        }
    }
    Ok(())
}

/// Removes the volumes that were made for the container, which is gone itself. One that another container has by now
/// (`--volumes-from`) stays.
pub(super) fn remove_own(config: &ContainerConfig) -> anyhow::Result<()> {
    let own: Vec<&str> = config
        .mounts
        .iter()
        .filter_map(|mount| match mount {
            MountSpec::Volume { name, anonymous: true, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    if own.is_empty() {
        return Ok(());
    }
    let volumes = open()?;
    for name in own {
        match volumes.remove(name, &crate::commands::volume::users_of) {
            Ok(_) => crate::events::volume("destroy", name),
            Err(layerfs_volume::Error::NoSuchVolume(_) | layerfs_volume::Error::InUse { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The runtime's mount of a volume; `place` makes a part of it a mount of its own.
pub(super) fn mount(
    mount: &MountSpec,
    merged: &Path,
    place: impl FnOnce(OwnedFd) -> anyhow::Result<PathBuf>,
) -> anyhow::Result<Value> {
    let MountSpec::Volume { name, target, read_only, no_copy, subpath, anonymous } = mount else {
        bail!("{} is no volume", mount.target())
    };
    let volumes: Volumes = open()?;
    let volume = match volumes.find(name) {
        // The command that made the container was killed before it made this.
        Err(layerfs_volume::Error::NoSuchVolume(_)) if *anonymous => volumes.create(&NewVolume {
            name: Some(name.clone()),
            created: layerfs_image::time::now(),
            anonymous: true,
            ..NewVolume::default()
        })?,
        found => found?,
    };
    if !no_copy && !volume.filled {
        let from = beneath(merged, target.trim_start_matches('/'));
        if let Some(from) = from.with_context(|| format!("look at {target} in the image"))? {
            volumes.fill(name, from).with_context(|| format!("fill volume {name} from the image"))?;
        }
    }
    let access = if *read_only { "ro" } else { "rw" };
    let (source, kind, mut options) = match volume.backing() {
        Backing::Directory(path) => (path.display().to_string(), "bind", vec!["rbind".to_owned()]),
        Backing::Bind { device, options } => {
            let mut options = options;
            if !options.iter().any(|option| option == "rbind") {
                options.push("bind".into());
            }
            (device.display().to_string(), "bind", options)
        }
        Backing::Filesystem { kind, device, options } => {
            if !subpath.is_empty() {
                bail!("volume {name}: volume-subpath needs a volume that is a directory");
            }
            return Ok(json!({
                "destination": target, "type": kind, "source": device, "options": options_with(&options, access),
            }));
        }
    };
    let source = match subpath.as_str() {
        "" => source,
        // By descriptor, and through no symlink: who writes into the volume does not choose what is mounted.
        path => {
            let part = part_of(Path::new(&source), path)
                .with_context(|| format!("cannot access path {path} in volume {name}"))?;
            place(part)?.display().to_string()
        }
    };
    options.push("rprivate".into());
    options.push(access.into());
    Ok(json!({ "destination": target, "type": kind, "source": source, "options": options }))
}

/// A part of a volume, or all of it for an empty path.
pub(super) fn part_of(volume: &Path, path: &str) -> rustix::io::Result<OwnedFd> {
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if path.is_empty() {
        return Ok(root);
    }
    let flags = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), flags)
}

fn options_with(options: &[String], access: &str) -> Vec<String> {
    options.iter().cloned().chain([access.to_owned()]).collect()
}

/// What is at `path` beneath `root`, if it is a directory; symlinks do not lead out.
fn beneath(root: &Path, path: &str) -> std::io::Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = fs::File::open(root)?;
    match rustix::fs::openat2(
        root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
