//! `layerfs umount`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::exit::{self, Hinted};
use crate::mount_process::PROCESS_NAME;
use crate::mounts::{self, Answer, report};
use crate::ui;

/// Unmount layerfs mounts
///
/// Returns when the mount is gone and its process has released the layers, so that they can be mounted anew. A
/// target that is no layerfs mount is refused.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes\n  0  all unmounted   1  wrong command line   32  none unmounted   64  some unmounted, others not"
)]
pub(crate) struct UmountArgs {
    /// Take the mount out of the tree now, even when it is in use; it ends with its last user
    #[arg(short, long)]
    lazy: bool,
    /// Mountpoints
    #[arg(value_name = "MERGED", required = true)]
    targets: Vec<PathBuf>,
}

pub(crate) fn umount(args: UmountArgs) -> anyhow::Result<ExitCode> {
    let mut failed = 0;
    for target in &args.targets {
        if let Err(error) = unmount(target, args.lazy) {
            failed += 1;
            ui::error(&error);
        }
    }
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        all if all == args.targets.len() => ExitCode::from(exit::MOUNT),
        _ => ExitCode::from(exit::SOME),
    })
}

fn unmount(target: &Path, lazy: bool) -> anyhow::Result<()> {
    let target = mounts::find(target)?;
    // Found before the mount goes, since afterwards nothing tells whose it was.
    let process = if lazy { None } else { process_of(&target) };
    let flags = UnmountFlags::NOFOLLOW | if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(&target, flags) {
        Ok(()) => {}
        Err(Errno::PERM) => by_fusermount(&target, lazy)?,
        Err(Errno::BUSY) => return Err(busy(&target)),
        Err(errno) => return Err(errno).with_context(|| format!("unmount {target:?}")),
    }
    if let Some((pid, process)) = process {
        wait_for(&target, pid, &process);
    }
    Ok(())
}

fn busy(target: &Path) -> anyhow::Error {
    anyhow::Error::new(Hinted {
        message: format!("{target:?} is busy"),
        hint: format!(
            "`fuser -vm {0}` shows who uses it; `layerfs umount --lazy {0}` takes it away from them",
            target.display()
        ),
    })
}

/// The set-id helper of libfuse unmounts for the user who mounted.
fn by_fusermount(target: &Path, lazy: bool) -> anyhow::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(target);
    let output = command.output().map_err(|error| {
        anyhow!(error).context(Hinted {
            message: format!("unmount {target:?}: not permitted, and fusermount3 cannot be run"),
            hint: "install the package fuse3, or unmount as root".to_owned(),
        })
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("busy") {
        return Err(busy(target));
    }
    bail!("unmount {target:?}: {}", words.trim())
}

/// The process behind the mount, when it is one of this pid namespace.
fn process_of(target: &Path) -> Option<(Pid, OwnedFd)> {
    let Answer::Report(report) = mounts::ask_with_patience(target) else { return None };
    let pid = Pid::from_raw(report::pid(&report)?)?;
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // In another pid namespace the number names a stranger.
    let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).ok()?;
    (name.trim_end() == PROCESS_NAME).then_some((pid, process))
}

/// Longest time to wait for the mount process to write out and release its layers, in seconds.
const RELEASE: i64 = 10;

fn wait_for(target: &Path, pid: Pid, process: &OwnedFd) {
    let timeout = Timespec { tv_sec: RELEASE, tv_nsec: 0 };
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    if matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(0)) {
        ui::warn(format_args!(
            "{target:?} is unmounted here, but its process {} still serves it: another mount namespace has it too",
            pid.as_raw_nonzero()
        ));
    }
}
