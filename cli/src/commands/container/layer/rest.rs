//! A container whose writable layer nobody changes for a moment.

use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use layerfs_runner::monitor::record::Status;

use super::super::pause::{Held, hold_processes};
use super::super::store::{Container, Containers, Locked, lock_file};
use super::flush;
use super::snapshots::leftovers;
use crate::exit::Hinted;
use crate::ui;

/// Held by whoever copies or replaces a container's writable layer.
pub(in crate::commands::container) const LAYER_LOCK: &str = "layer.lock";

/// A container at rest until this is dropped: stopped and locked, or its processes stand still.
#[derive(Debug)]
pub(super) struct AtRest {
    pub(super) container: Container,
    // The processes go on first.
    held: Option<Held>,
    lock: Option<OwnedFd>,
    _layer: OwnedFd,
}

impl AtRest {
    /// Whether it is stopped, and its layer may be replaced.
    pub(super) fn is_stopped(&self) -> bool {
        self.lock.is_some()
    }

    /// Lets its processes go on. The layer stays locked against other commands.
    pub(super) fn go_on(&mut self) {
        self.held = None;
    }
}

/// Keeps other commands from copying or replacing the layer.
pub(super) fn lock_layer(container: &Container) -> anyhow::Result<OwnedFd> {
    let lock = match lock_file(&container.directory.join(LAYER_LOCK)) {
        Err(_) if !container.directory.exists() => bail!("No such container: {}", container.config.name),
        lock => lock?,
    };
    // What killed commands have left.
    leftovers(&container.directory, true)?;
    Ok(lock)
}

/// Brings a container to rest. One that is paused by its user stays so.
pub(super) fn at_rest(containers: &Containers, name: &str) -> anyhow::Result<AtRest> {
    let found = containers.find(name)?;
    let layer = lock_layer(&found)?;
    for _ in 0..10 {
        match found.lock()? {
            Locked::Mine(lock, container) => {
                return Ok(AtRest { container: *container, held: None, lock: Some(lock), _layer: layer });
            }
            Locked::Runs(container) => {
                if container.record.status == Status::Restarting {
                    bail!(Hinted {
                        message: format!("container {} is waiting for its restart", container.config.name),
                        hint: "stop it, or try again when it runs".into(),
                    });
                }
                match hold_processes(&container) {
                    Ok(None) if container.record.cgroup.is_empty() => {
                        ui::warn(
                            "the container cannot be paused here: what it writes meanwhile may be in parts",
                        );
                        flush(&container)?;
                        return Ok(AtRest { container: *container, held: None, lock: None, _layer: layer });
                    }
                    // It has ended meanwhile.
                    Ok(None) if !container.is_paused() => {}
                    Ok(held) => {
                        flush(&container)?;
                        return Ok(AtRest { container: *container, held, lock: None, _layer: layer });
                    }
                    // It has ended meanwhile, or was started again: look again.
                    Err(error) if containers.find(name)?.record == container.record => {
                        return Err(error).context("pause the container");
                    }
                    Err(_) => {}
                }
            }
        }
    }
    bail!("container {name} is started and stopped all the time; try again when it is at rest")
}

/// A stopped container, locked.
pub(super) fn stopped(containers: &Containers, name: &str, what: &str) -> anyhow::Result<AtRest> {
    let found = containers.find(name)?;
    let layer = lock_layer(&found)?;
    match found.lock()? {
        Locked::Mine(lock, container) => {
            super::apply::refuse_unfinished(&container)?;
            Ok(AtRest { container: *container, held: None, lock: Some(lock), _layer: layer })
        }
        Locked::Runs(container) => bail!(Hinted {
            message: format!("cannot {what} container {}: it is {}", container.config.name, container.word()),
            hint: format!("stop it first: layerfs stop {name}"),
        }),
    }
}
