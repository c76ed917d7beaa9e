//! The container's own cgroup, in every hierarchy of the machine (v2, v1, or both).
//!
//! Its directories are planned first, so that a caller can write down what is about to be made, then made. Nothing
//! outside of them is written to, except that missing parents are made and (v2) told to hand controllers down; parents
//! that were made and are empty go with the container. What a hierarchy refuses (an ordinary user without delegation, a
//! read-only mount) is left out there, unless something asked for depends on it.

mod device_program;
mod devices;
mod entrance;
mod events;
mod freeze;
mod hierarchy;
mod kill;
mod limits;
mod limits_legacy;
mod limits_unified;
mod stats;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::process::Pid;

pub(crate) use self::entrance::Entrances;
pub use self::events::OomWatch;
pub use self::hierarchy::{Hierarchies, Hierarchy};
pub use self::limits::LimitError;
pub use self::stats::Stats;
use crate::config::CgroupPath;

/// Why a cgroup could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// /proc does not say which cgroups there are.
    #[error("read the cgroups of this process")]
    Discover(#[source] io::Error),
    /// There are processes in it: another container's, or somebody else's.
    #[error("cgroup {} is in use already; choose another linux.cgroupsPath", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A process could not be placed.
    #[error("move process {pid} to cgroup {}: {source}", path.display())]
    Place {
        /// The directory.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// A directory could not be removed.
    #[error("remove cgroup {}: {source}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit that was asked for cannot be set.
    #[error("{0}")]
    Limit(#[from] LimitError),
    /// It could not be frozen, thawed or killed.
    #[error("{doing} cgroup {}: {source}", path.display())]
    Change {
        /// What was attempted.
        doing: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where the directories are to be.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    directories: Vec<Planned>,
    parents: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
struct Planned {
    path: PathBuf,
    /// The directory of the hierarchy that the path is beneath.
    top: PathBuf,
    hierarchy: Hierarchy,
}

impl Plan {
    /// Where the cgroup `path` is in each of `hierarchies`.
    #[must_use]
    pub fn new(hierarchies: &Hierarchies, path: &CgroupPath) -> Self {
        let mut plan = Self::default();
        for hierarchy in hierarchies.all() {
            let (top, below) = match path {
                CgroupPath::Absolute(below) => (Some(hierarchy.top_directory()), below),
                CgroupPath::Relative(below) => (hierarchy.own_directory(), below),
            };
            let Some(top) = top else { continue };
            let path = top.join(below);
            let parents: Vec<_> = path.ancestors().skip(1).take_while(|parent| *parent != top).collect();
            for parent in parents.into_iter().rev().filter(|parent| !parent.exists()) {
                plan.parents.push(parent.to_owned());
            }
            plan.directories.push(Planned { path, top: top.to_owned(), hierarchy: hierarchy.clone() });
        }
        plan
    }

    /// The directories, to be remembered.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|planned| planned.path.clone()).collect()
    }

    /// Directories above them that are missing and will be made.
    #[must_use]
    pub fn parents(&self) -> &[PathBuf] {
        &self.parents
    }
}

/// A container's directories, one per hierarchy that allowed it.
#[derive(Debug)]
pub struct Cgroup {
    directories: Vec<PathBuf>,
    parents: Vec<PathBuf>,
    unified: Option<PathBuf>,
    controls_devices: bool,
    /// Dropping it removes the directories.
    owned: bool,
}

impl Cgroup {
    /// Makes what was planned, with rules for devices and limits.
    ///
    /// # Errors
    /// When processes are in one of the directories, or a limit cannot be set; what was made is removed.
    pub fn create(
        plan: &Plan,
        device_rules: &[LinuxDeviceCgroup],
        resources: &LinuxResources,
    ) -> Result<Self, CgroupError> {
        let mut cgroup = Self {
            directories: Vec::new(),
            parents: plan.parents.clone(),
            unified: None,
            controls_devices: false,
            owned: true,
        };
        let beside_legacy = plan.directories.iter().any(|planned| planned.hierarchy.has_legacy_controllers());
        for planned in &plan.directories {
            let path = &planned.path;
            if let Err(error) = make(planned, resources, beside_legacy) {
                if error.kind() == io::ErrorKind::AlreadyExists {
                    return Err(CgroupError::InUse { path: path.clone() });
                }
                tracing::debug!(path = %path.display(), %error, "no cgroup of its own here");
                continue;
            }
            cgroup.directories.push(path.clone());
            match &planned.hierarchy {
                Hierarchy::Unified { .. } => cgroup.unified = Some(path.clone()),
                Hierarchy::Legacy { options, .. } => {
                    let has = |controller: &str| options.iter().any(|option| option == controller);
                    if has("cpuset") {
                        copy_cpuset(&planned.top, path);
                    }
                    if has("devices") && !device_rules.is_empty() {
                        match devices::write_rules(path, device_rules) {
                            Ok(()) => cgroup.controls_devices = true,
                            Err(error) => tracing::debug!(%error, "no rules for devices"),
                        }
                    }
                }
            }
        }
        // Where a legacy hierarchy has the devices, it alone is asked.
        if !cgroup.controls_devices
            && !device_rules.is_empty()
            && let Some(path) = &cgroup.unified
        {
            match device_program::attach(path, device_rules) {
                Ok(()) => cgroup.controls_devices = true,
                Err(error) => tracing::debug!(%error, "no rules for devices"),
            }
        }
        if limits::is_asked(resources) {
            match cgroup.directories.is_empty() && !rustix::process::geteuid().is_root() {
                true => tracing::warn!("no cgroup can be made here: the container has no limits"),
                false => cgroup.set_limits(resources)?,
            }
        }
        Ok(cgroup)
    }

    /// Finds the directories that a container of an earlier process has, to use or remove them.
    #[must_use]
    pub fn from_directories(directories: Vec<PathBuf>) -> Self {
        let unified = directories.iter().find(|path| path.join("cgroup.events").exists()).cloned();
        Self { directories, parents: Vec::new(), unified, controls_devices: false, owned: true }
    }

    /// As [`Self::from_directories`]; they stay when this is dropped.
    #[must_use]
    pub fn borrowed(directories: &[PathBuf]) -> Self {
        let mut cgroup = Self::from_directories(directories.to_vec());
        cgroup.owned = false;
        cgroup
    }

    /// Leaves the directories to another owner, who has written them down.
    pub fn disown(&mut self) {
        self.owned = false;
    }

    /// Also removes these directories above, where they are empty.
    pub fn set_parents(&mut self, parents: Vec<PathBuf>) {
        self.parents = parents;
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

    /// A descriptor of its directory in the unified hierarchy, for processes to be born in.
    pub(crate) fn unified_descriptor(&self) -> Option<OwnedFd> {
        let path = self.unified.as_ref()?;
        fs::File::open(path)
            .map(OwnedFd::from)
            .inspect_err(|error| tracing::debug!(%error, "open the cgroup"))
            .ok()
    }

    /// Moves a process, and with it its future children, here: to the unified hierarchy's directory unless it was `born`
    /// there, and to the others unless it has `entered` them by itself (see `entrance`).
    ///
    /// # Errors
    /// When a hierarchy refuses it.
    pub fn place(&self, pid: Pid, born: bool, entered: bool) -> Result<(), CgroupError> {
        let pid = pid.as_raw_nonzero().get();
        let is_there = |path: &Path| if Some(path) == self.unified.as_deref() { born } else { entered };
        for path in self.directories.iter().filter(|path| !is_there(path)) {
            fs::write(path.join("cgroup.procs"), pid.to_string()).map_err(|source| CgroupError::Place {
                path: path.clone(),
                pid,
                source,
            })?;
        }
        Ok(())
    }

    /// Opens what a child of this process moves itself by.
    pub(crate) fn entrances(&self) -> Option<Entrances> {
        let legacy = self.directories.iter().filter(|path| Some(*path) != self.unified.as_ref());
        Entrances::open(legacy.map(PathBuf::as_path))
            .inspect_err(|error| tracing::debug!(%error, "a child cannot move itself to the cgroup"))
            .ok()
    }

    /// The first directory that has such a file: the one whose controller it is.
    pub(crate) fn file(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|path| path.join(name)).find(|path| path.exists())
    }

    /// The processes in it and below it.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        // A legacy freezer or pids has them all, and so has the unified one.
        let directory = self.unified.as_ref().or_else(|| self.directories.first());
        let mut found = Vec::new();
        if let Some(directory) = directory
            && let Err(error) = kill::members_below(directory, &mut found)
        {
            tracing::debug!(%error, "read the members of the cgroup");
        }
        found
    }

    /// Puts limits in force, or changes those that are.
    ///
    /// # Errors
    /// The field that cannot be set.
    pub fn set_limits(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        Ok(limits::set(self, resources)?)
    }

    /// Kills what is in it, waits until it is gone, and removes the directories.
    ///
    /// # Errors
    /// The first directory that stays; the others are removed all the same.
    pub fn remove(&mut self) -> Result<(), CgroupError> {
        let mut first_error = None;
        for path in std::mem::take(&mut self.directories) {
            if let Err(source) = kill::remove_directory(&path) {
                first_error.get_or_insert(CgroupError::Remove { path, source });
            }
        }
        for parent in std::mem::take(&mut self.parents).iter().rev() {
            // Another container may be in it by now, or gone with it.
            fs::remove_dir(parent).ok();
        }
        first_error.map_or(Ok(()), Err)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.remove()
        {
            tracing::warn!(%error, "a cgroup is left");
        }
    }
}

/// Makes one directory with its parents. `AlreadyExists` when there are processes in it.
fn make(planned: &Planned, resources: &LinuxResources, beside_legacy: bool) -> io::Result<()> {
    let Planned { path, top, hierarchy } = planned;
    if path.parent() != Some(top.as_path())
        && let Some(parent) = path.parent()
    {
        fs::create_dir_all(parent)?;
        if let Hierarchy::Legacy { options, .. } = hierarchy
            && options.iter().any(|option| option == "cpuset")
        {
            let between: Vec<_> = parent.ancestors().take_while(|above| *above != top).collect();
            for directory in between.into_iter().rev() {
                copy_cpuset(top, directory);
            }
        }
    }
    if let Hierarchy::Unified { .. } = hierarchy {
        limits_unified::hand_controllers_down(top, path, resources, beside_legacy);
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = fs::read_to_string(path.join("cgroup.procs"))?;
            if text.trim().is_empty() { Ok(()) } else { Err(error) }
        }
        result => result,
    }
}

/// A new legacy cpuset has no CPUs and no memory, and takes no process before it has.
fn copy_cpuset(top: &Path, path: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let is_set = || fs::read_to_string(path.join(file)).is_ok_and(|text| !text.trim().is_empty());
        if is_set() {
            continue;
        }
        let from = path.parent().unwrap_or(top);
        let copied =
            fs::read_to_string(from.join(file)).and_then(|text| fs::write(path.join(file), text.trim()));
        if let Err(error) = copied {
            tracing::debug!(%error, file, path = %path.display(), "copy the cpuset");
        }
    }
}

/// Waits until what `fd` tells of has happened, for at most so many milliseconds; false when it has not.
fn wait_for(fd: impl AsFd, events: rustix::event::PollFlags, milliseconds: i64) -> io::Result<bool> {
    let timeout =
        rustix::event::Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
    let fd = fd.as_fd();
    let mut wanted = [rustix::event::PollFd::from_borrowed_fd(fd, events)];
    Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, Some(&timeout)))? > 0)
}
