//! `layerfs pause` and `unpause`.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_runner::cgroup::Cgroup;
use layerfs_runner::monitor::record::Record;

use super::each;
use super::store::{Container, Containers};
use crate::sys::Fork;
use crate::{events, ui};

/// Stop all processes of containers for a while
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Let the processes of paused containers go on
#[derive(Debug, Args)]
pub(crate) struct UnpauseArgs {
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(crate) fn pause(args: PauseArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        if !container.is_running() {
            bail!("Container {} is not running", container.id());
        }
        if container.is_paused() {
            bail!("Container {} is already paused", container.id());
        }
        Cgroup::borrowed(&container.record.cgroup).freeze()?;
        events::container("pause", &container.config, &[]);
        Ok(name.clone())
    })
}

pub(crate) fn unpause(args: UnpauseArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        if !container.is_paused() {
            bail!("Container {} is not paused", container.id());
        }
        Cgroup::borrowed(&container.record.cgroup).thaw()?;
        events::container("unpause", &container.config, &[]);
        Ok(name.clone())
    })
}

/// A container whose processes stand still until this is dropped, or until this process ends, however it does.
#[derive(Debug)]
pub(crate) struct Held {
    cgroup: Cgroup,
    name: String,
    guard: Option<Guard>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // One that has been killed meanwhile has no cgroup any more.
        if let Err(error) = self.cgroup.thaw()
            && self.cgroup.directories().iter().any(|directory| directory.exists())
        {
            let words = format!("container {} is still paused (`layerfs unpause` it): {error}", self.name);
            ui::warn(words);
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }
}

/// A process that lets a container go on if this one is killed.
#[derive(Debug)]
struct Guard {
    pid: rustix::process::Pid,
    pipe: OwnedFd,
}

impl Guard {
    fn of(cgroup: &[std::path::PathBuf]) -> anyhow::Result<Self> {
        let (read, write) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
        match crate::sys::fork().context("make a process")? {
            Fork::Parent(pid) => Ok(Self { pid, pipe: write }),
            Fork::Child => {
                drop(write);
                // Keys at the terminal are for the command.
                rustix::process::setsid().ok();
                let told = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut [0_u8; 1]));
                // Without a word the other end was closed by the kernel.
                let is_done = matches!(told, Ok(1)) || Cgroup::borrowed(cgroup).thaw().is_ok();
                std::process::exit(i32::from(!is_done));
            }
        }
    }

    fn dismiss(self) {
        // A guard that is gone needs no word.
        rustix::io::write(&self.pipe, b"d").ok();
        drop(self.pipe);
        rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty()).ok();
    }
}

/// Stops a container's processes while something is done with its files. `None` when none runs, or they stand already.
///
/// # Errors
/// When they cannot be stopped.
pub(crate) fn hold(name: &str) -> anyhow::Result<Option<Held>> {
    let containers = Containers::open()?;
    // What is no container of these is not held; whoever works with it says so.
    let Ok(container) = containers.find(name) else { return Ok(None) };
    hold_processes(&container)
}

/// As [`hold`], of a container that was found already.
///
/// # Errors
/// When they cannot be stopped.
pub(crate) fn hold_processes(container: &Container) -> anyhow::Result<Option<Held>> {
    if !container.is_running() || container.is_paused() || container.record.cgroup.is_empty() {
        return Ok(None);
    }
    let guard = Guard::of(&container.record.cgroup)
        .inspect_err(|error| tracing::warn!("a killed command would leave the container paused: {error:#}"))
        .ok();
    let cgroup = Cgroup::borrowed(&container.record.cgroup);
    let held = Held { cgroup, name: container.config.name.clone(), guard };
    match held.cgroup.freeze() {
        Ok(()) => Ok(Some(held)),
        // It has ended meanwhile.
        Err(_) if has_ended(container) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn has_ended(container: &Container) -> bool {
    let is_written =
        Record::load(&container.directory).map_or(true, |now| now.process != container.record.process);
    // Its end may not be written down yet.
    is_written || !container.record.cgroup.iter().all(|directory| directory.exists())
}
