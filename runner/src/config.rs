//! A container as it is to be made: validated values only.
//!
//! The specification's document ([`oci_spec::runtime::Spec`]) is turned into a [`Config`] in one step, and
//! only values travel on. What the document asks for and this runtime does not do is refused here by the
//! field's name, before anything is changed.

pub mod default_spec;
pub mod document;
mod from_spec;
pub mod hooks;
pub mod id_map;
pub mod mounts;
mod process_spec;

use std::ffi::{CString, OsString};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::process::Resource;

pub use self::document::DocumentError;
pub use self::hooks::{Hook, Hooks};
pub use self::id_map::IdMap;
pub use self::mounts::{MountConfig, MountKind};
pub use self::process_spec::ID_MAX;
pub(crate) use self::process_spec::{has_apparmor, has_selinux};
use crate::capabilities::Sets;
use crate::namespaces::{Joined, Namespaces};
use crate::seccomp::Seccomp;

/// A field of the specification that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    field: String,
    problem: String,
}

impl ConfigError {
    /// `field` in the document's own spelling (`linux.namespaces[1].path`).
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The field, in the document's spelling.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }
}

/// Rows and columns of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A limit of `setrlimit(2)`; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// Which.
    pub resource: Resource,
    /// In force, in the resource's unit.
    pub soft: Option<u64>,
    /// How far `soft` can be raised.
    pub hard: Option<u64>,
}

/// Who the program runs as, in ids of the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File creation mask; 022 when `None`.
    pub umask: Option<u32>,
}

/// The program and what it finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    /// The program's name or path, and its arguments; never empty.
    pub args: Vec<CString>,
    /// `NAME=VALUE` each.
    pub env: Vec<CString>,
    /// Working directory, absolute; made when it is missing.
    pub cwd: PathBuf,
    /// Who it runs as.
    pub user: User,
    /// Its capabilities.
    pub capabilities: Sets,
    /// Its limits; others stay as they are.
    pub rlimits: Vec<Rlimit>,
    /// Exec gives no privileges.
    pub no_new_privileges: bool,
    /// `oom_score_adj`; as inherited when `None`.
    pub oom_score_adj: Option<i32>,
    /// A pseudo terminal of its own, of this size.
    pub terminal: Option<TerminalSize>,
    /// Scheduling policy.
    pub scheduler: Option<Scheduler>,
    /// `ioprio_set(2)`: class and priority in one number.
    pub io_priority: Option<i32>,
    /// CPUs of a process that is executed in a container: before it is in the cgroup, and after.
    pub exec_affinity: (Option<Vec<usize>>, Option<Vec<usize>>),
    /// Written to `/proc/self/attr/apparmor/exec`.
    pub apparmor_profile: Option<String>,
    /// Written to `/proc/self/attr/exec`.
    pub selinux_label: Option<String>,
}

/// An interface of the machine that becomes the container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevice {
    /// Its name on the machine.
    pub name: String,
    /// Its name in the container.
    pub inside: String,
}

/// What `set_mempolicy(2)` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// `MPOL_*`, with `MPOL_F_*`.
    pub mode: i32,
    /// NUMA nodes by number.
    pub nodes: Vec<usize>,
}

/// What `sched_setattr(2)` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// 1 to 99, of the real-time policies.
    pub priority: u32,
    /// Of the deadline policy, in nanoseconds.
    pub runtime: u64,
    /// Of the deadline policy, in nanoseconds.
    pub deadline: u64,
    /// Of the deadline policy, in nanoseconds.
    pub period: u64,
}

/// Where the container's cgroup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupPath {
    /// Beneath the root of each hierarchy, as far as it can be seen.
    Absolute(PathBuf),
    /// Beneath the cgroup that the runtime is in.
    Relative(PathBuf),
}

/// A device node of the container's `/dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Block device or character device.
    pub kind: rustix::fs::FileType,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A container, completely described.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory that becomes the root, absolute.
    pub root: PathBuf,
    /// The root itself is mounted read-only.
    pub root_read_only: bool,
    /// Device nodes in the root itself cannot be used; set where nothing else controls devices.
    pub root_no_devices: bool,
    /// The program.
    pub process: Process,
    /// Name in the UTS namespace.
    pub hostname: Option<OsString>,
    /// Domain name in the UTS namespace.
    pub domainname: Option<OsString>,
    /// Namespaces made new.
    pub namespaces: Namespaces,
    /// Namespaces that exist already.
    pub joined: Vec<Joined>,
    /// Users of a new user namespace.
    pub uid_map: IdMap,
    /// Groups of a new user namespace.
    pub gid_map: IdMap,
    /// Lines for /proc/self/timens_offsets: clock, seconds, nanoseconds.
    pub time_offsets: Vec<(String, i64, u32)>,
    /// `MS_*` propagation of the root mount, with the mounts below when the second value is true.
    pub root_propagation: Option<(u64, bool)>,
    /// Mounts, in order.
    pub mounts: Vec<MountConfig>,
    /// Device nodes made in `/dev`.
    pub devices: Vec<Device>,
    /// Which devices may be used, in order, the last match deciding.
    pub device_rules: Vec<LinuxDeviceCgroup>,
    /// Paths covered by something empty.
    pub masked_paths: Vec<PathBuf>,
    /// Paths made read-only.
    pub read_only_paths: Vec<PathBuf>,
    /// Names with dots, and values.
    pub sysctl: Vec<(String, String)>,
    /// System call filter.
    pub seccomp: Option<Seccomp>,
    /// Interfaces of the machine that are moved to its network namespace.
    pub net_devices: Vec<NetDevice>,
    /// NUMA policy of every process that is started here.
    pub memory_policy: Option<MemoryPolicy>,
    /// Execution domain (`personality(2)`).
    pub personality: Option<u64>,
    /// Limits.
    pub resources: LinuxResources,
    /// The container's cgroup; `None` makes none.
    pub cgroup: Option<CgroupPath>,
    /// Programs run at points of its life.
    pub hooks: Hooks,
    /// SELinux label of files on new filesystems.
    pub mount_label: Option<String>,
    /// What a caller chooses that is not in the document.
    pub choice: Choice,
}

/// What a caller chooses besides the document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// Change the root by moving a mount and `chroot(2)`, where `pivot_root(2)` cannot be used (an initial ramdisk).
    /// Processes with CAP_SYS_CHROOT can get out.
    pub no_pivot: bool,
    /// Share the caller's session keyring.
    pub no_new_keyring: bool,
    /// Process 1 is an init of this runtime's own, which reaps orphans and passes signals on to the program.
    pub init: bool,
    /// So many descriptors from 3 on are handed to the program.
    pub preserve_fds: u32,
}
