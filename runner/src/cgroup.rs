//! The container's own cgroup: made beneath the one that the runtime is in, in every hierarchy of the machine.
//!
//! Beneath, so that limits of the caller hold for the container too. Nothing outside the directories made
//! here is written to. What a hierarchy refuses (an ordinary user without delegation, a read-only mount) is
//! left out there, unless something asked for depends on it.

mod device_program;
mod devices;
mod hierarchy;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxDeviceCgroup;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Pid;

pub use self::hierarchy::{Hierarchies, Hierarchy};

/// How long the kernel may take to let go of a cgroup whose last process has been waited for.
const RELEASE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Why a cgroup could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// /proc does not say which cgroups there are.
    #[error("read the cgroups of this process")]
    Discover(#[source] io::Error),
    /// A directory of that name exists: another container's.
    #[error("cgroup {} exists already; choose another name", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A process could not be placed.
    #[error("move process {pid} to cgroup {}", path.display())]
    Place {
        /// The directory.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// A directory could not be removed.
    #[error("remove cgroup {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A container's directories, one per hierarchy that allowed it.
#[derive(Debug)]
pub struct Cgroup {
    directories: Vec<PathBuf>,
    unified: Option<PathBuf>,
    controls_devices: bool,
}

impl Cgroup {
    /// Makes the directory `name` beneath this process's cgroup in each of `hierarchies`, with rules for
    /// devices.
    ///
    /// # Errors
    /// When a directory of that name exists; those made so far are removed.
    pub fn create(
        hierarchies: &Hierarchies,
        name: &str,
        device_rules: &[LinuxDeviceCgroup],
    ) -> Result<Self, CgroupError> {
        let mut cgroup = Self { directories: Vec::new(), unified: None, controls_devices: false };
        for hierarchy in hierarchies.all() {
            let Some(own) = hierarchy.own_directory() else { continue };
            let path = own.join(name);
            match fs::create_dir(&path) {
                Ok(()) => cgroup.directories.push(path.clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    cgroup.remove_quietly();
                    return Err(CgroupError::Exists { path });
                }
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "no cgroup of its own here");
                    continue;
                }
            }
            match hierarchy {
                Hierarchy::Unified { .. } => cgroup.unified = Some(path),
                Hierarchy::Legacy { options, .. } => {
                    let has = |controller: &str| options.iter().any(|option| option == controller);
                    if has("cpuset") {
                        copy_cpuset(own, &path);
                    }
                    if has("devices") {
                        match devices::write_rules(&path, device_rules) {
                            Ok(()) => cgroup.controls_devices = true,
                            Err(error) => tracing::debug!(%error, "no rules for devices"),
                        }
                    }
                }
            }
        }
        // Where a legacy hierarchy has the devices, it alone is asked.
        if !cgroup.controls_devices
            && let Some(path) = &cgroup.unified
        {
            match device_program::attach(path, device_rules) {
                Ok(()) => cgroup.controls_devices = true,
                Err(error) => tracing::debug!(%error, "no rules for devices"),
            }
        }
        Ok(cgroup)
    }

    /// Finds the directories that a container of an earlier process left, to kill and remove them.
    #[must_use]
    pub fn from_directories(directories: Vec<PathBuf>) -> Self {
        let unified = directories.iter().find(|path| path.join("cgroup.kill").exists()).cloned();
        Self { directories, unified, controls_devices: false }
    }

    /// The directories, to be remembered for [`Cgroup::from_directories`].
    #[must_use]
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// True when the rules for devices are in force.
    #[must_use]
    pub fn controls_devices(&self) -> bool {
        self.controls_devices
    }

    /// Moves a process, and with it its future children, here.
    ///
    /// # Errors
    /// When a hierarchy refuses it.
    pub fn place(&self, pid: Pid) -> Result<(), CgroupError> {
        let pid = pid.as_raw_nonzero().get();
        for path in &self.directories {
            fs::write(path.join("cgroup.procs"), pid.to_string()).map_err(|source| CgroupError::Place {
                path: path.clone(),
                pid,
                source,
            })?;
        }
        Ok(())
    }

    /// Kills every process in it at once, where the kernel can (unified hierarchy, Linux 5.14); false where
    /// it cannot.
    #[must_use]
    pub fn kill(&self) -> bool {
        self.unified.as_ref().is_some_and(|path| fs::write(path.join("cgroup.kill"), "1").is_ok())
    }

    /// Kills what is in it, waits until it is gone, and removes the directories.
    ///
    /// # Errors
    /// The first directory that stays; the others are removed all the same.
    pub fn remove(&mut self) -> Result<(), CgroupError> {
        let mut first_error = None;
        for path in std::mem::take(&mut self.directories) {
            if let Err(source) = remove_directory(&path) {
                first_error.get_or_insert(CgroupError::Remove { path, source });
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn remove_quietly(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "a cgroup is left");
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove_quietly();
    }
}

/// Removes `path` and what the container made below it.
fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove_directory(&entry.path())?;
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match fs::remove_dir(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => return result,
    }
    kill_members(path)?;
    wait_until_empty(path)?;
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Kills the processes in `path` until no new ones appear.
fn kill_members(path: &Path) -> io::Result<()> {
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    for pid in members(path)? {
        // It may have died since; another process cannot have taken its number and its cgroup.
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            && members(path)?.contains(&pid)
            && let Err(error) = crate::sys::signal::send(&pidfd, libc::SIGKILL)
        {
            tracing::debug!(%error, ?pid, "kill a member of the cgroup");
        }
    }
    Ok(())
}

fn members(path: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(path.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok().and_then(Pid::from_raw)).collect())
}

/// Waits for the members' ends, by descriptor, for at most [`RELEASE`] each.
fn wait_until_empty(path: &Path) -> io::Result<()> {
    for pid in members(path)? {
        let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            continue;
        };
        let mut wanted = [PollFd::new(&pidfd, PollFlags::IN)];
        if rustix::event::poll(&mut wanted, Some(&RELEASE))? == 0 {
            return Err(io::Error::other(format!("process {pid:?} in it does not end")));
        }
    }
    Ok(())
}

/// A new legacy cpuset has no CPUs and no memory, and takes no process before it has.
fn copy_cpuset(own: &Path, path: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let copied =
            fs::read_to_string(own.join(file)).and_then(|text| fs::write(path.join(file), text.trim()));
        if let Err(error) = copied {
            tracing::debug!(%error, file, path = %path.display(), "copy the cpuset");
        }
    }
}
