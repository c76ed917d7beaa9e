//! Executing a program in a container that runs.
//!
//! One fork, as the runtime's child (two where this process could not leave the container's pid namespace again): into the container's cgroup first, then into all its namespaces in one `setns`
//! by the descriptor of its first process. Until the program runs, nothing in the container may look at the child.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;

use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::console::Terminal;
use super::identity::{self, Labels, confine, find_program};
use super::init::{At, expect, expect_start, leave_parent, open_root};
use super::join::{bear_sibling, can_return_to_pid_namespace};
use super::parent::{Container, CreateError, Stdio};
use super::{environment, home, program};
use crate::cgroup::{Cgroup, Entrances};
use crate::channel::{Channel, Failure, Message, Stage};
use crate::config::{Config, MemoryPolicy, Process};
use crate::namespaces::{ALL, Namespaces};
use crate::seccomp::Seccomp;
use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::process::{Birth, Forked};

/// What to execute, and where.
#[derive(Debug)]
pub struct Execution<'a> {
    /// The program.
    pub process: &'a Process,
    /// Its system call filter.
    pub seccomp: Option<&'a Seccomp>,
    /// Number and descriptor of the container's first process.
    pub target: (Pid, BorrowedFd<'a>),
    /// The container's cgroup.
    pub cgroup: &'a Cgroup,
    /// So many descriptors from 3 on are handed on.
    pub preserve_fds: u32,
    /// `linux.memoryPolicy` of the container.
    pub memory_policy: Option<&'a MemoryPolicy>,
    /// Share the caller's session keyring.
    pub no_new_keyring: bool,
}

/// Prepares the program up to the point where only it itself is missing. It dies with this process until it is
/// released.
///
/// # Errors
/// What failed, in the parent or in any stage of the child.
pub fn execute(execution: &Execution<'_>, stdio: Stdio, config: &Config) -> Result<Container, CreateError> {
    if !sys::process::is_single_threaded().map_err(CreateError::Fork)? {
        return Err(CreateError::Threads);
    }
    let (target, pidfd) = execution.target;
    let namespaces = foreign_namespaces(target).map_err(CreateError::Fork)?;
    let (ours, theirs) = Channel::pair().map_err(CreateError::Channel)?;
    let own = match namespaces.contains(Namespaces::PID) {
        true => Some(fs::File::open("/proc/self/ns/pid").map_err(CreateError::Fork)?),
        false => None,
    };
    if let Some(cpus) = &execution.process.exec_affinity.0 {
        set_affinity(cpus)?;
    }
    // The child is seen from inside from its first moment, and is as this process is.
    identity::forbid_looking()?;
    let is_staged = own.is_some() && !can_return_to_pid_namespace();
    if own.is_some() && !is_staged {
        // Children only: this process stays where it is.
        sys::process::set_namespaces(pidfd, Namespaces::PID.bits()).map_err(CreateError::Fork)?;
    }
    let birthplace = execution.cgroup.unified_descriptor();
    let entrances = if is_staged { None } else { execution.cgroup.entrances() };
    let birth = Birth { cgroup: birthplace.as_ref().map(AsFd::as_fd), ..Birth::default() };
    let (forked, is_born) = match sys::process::fork(birth) {
        Err(_) if birth.cgroup.is_some() => (sys::process::fork(Birth::default()), false),
        result => (result, birth.cgroup.is_some()),
    };
    let (pid, child) = match forked.map_err(CreateError::Fork)? {
        Forked::Child => run(execution, namespaces, &stdio, &theirs, entrances.as_ref(), is_staged),
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs);
    if let Some(own) = own.filter(|_| !is_staged) {
        leave_pid_namespace(&own).map_err(CreateError::Fork)?;
    }
    let mut container = Container::of_process(pid, child, ours);
    if is_staged {
        container.await_birth(config)?;
    }
    let pid = container.pid();
    execution.cgroup.place(pid, is_born, entrances.is_some())?;
    container.placed()?;
    container.await_ready(config, &|_| Vec::new())?;
    Ok(container)
}

/// Children are born where this process is again.
pub(super) fn leave_pid_namespace(own: &fs::File) -> io::Result<()> {
    sys::process::set_namespaces(own, Namespaces::PID.bits())
}

/// The namespaces in which that process is and this one is not.
fn foreign_namespaces(target: Pid) -> io::Result<Namespaces> {
    let target = target.as_raw_nonzero();
    let mut foreign = Namespaces::empty();
    for (namespace, name, _) in ALL {
        let of = |process: &str| fs::metadata(format!("/proc/{process}/ns/{name}"));
        let Ok(own) = of("self") else { continue };
        let theirs = of(&target.to_string())?;
        if (own.dev(), own.ino()) != (theirs.dev(), theirs.ino()) {
            foreign |= namespace;
        }
    }
    Ok(foreign)
}

fn set_affinity(cpus: &[usize]) -> Result<(), StepError> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).doing(|| format!("run on CPUs {cpus:?}"))
}

/// Everything from here on happens in the child.
fn run(
    execution: &Execution<'_>,
    namespaces: Namespaces,
    stdio: &Stdio,
    channel: &Channel,
    entrances: Option<&Entrances>,
    is_staged: bool,
) -> ! {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let Err(failure) = become_program(execution, namespaces, stdio, channel, entrances, is_staged);
        // Without a parent there is nobody to tell.
        channel.send(&Message::Failed(failure), None).ok();
    }));
    drop(outcome);
    sys::process::exit_now(125)
}

fn become_program(
    execution: &Execution<'_>,
    namespaces: Namespaces,
    stdio: &Stdio,
    channel: &Channel,
    entrances: Option<&Entrances>,
    is_staged: bool,
) -> Result<Infallible, Failure> {
    let process = execution.process;
    let (_, pidfd) = execution.target;
    rustix::thread::set_name(c"layerfs:exec").ok();
    if let Some(entrances) = entrances {
        entrances.enter().at(Stage::Cgroup)?;
    }
    leave_parent(stdio, execution.preserve_fds, &[channel.as_fd(), pidfd]).at(Stage::Namespaces)?;
    identity::forbid_looking().at(Stage::Namespaces)?;
    let mut wanted = namespaces.difference(Namespaces::PID);
    if is_staged {
        bear_inside(execution, &mut wanted, channel).at(Stage::Namespaces)?;
    }
    rustix::process::setsid().doing(|| "begin a session".into()).at(Stage::Namespaces)?;
    if !execution.no_new_keyring {
        // As in init: where it cannot be, the default filter refuses what would use the shared one.
        sys::process::new_session_keyring().ok();
    }
    expect(channel, &Message::Placed).at(Stage::Cgroup)?;
    if let Some(cpus) = &process.exec_affinity.1 {
        set_affinity(cpus).at(Stage::Cgroup)?;
    }
    if !wanted.is_empty() {
        sys::process::set_namespaces(pidfd, wanted.bits())
            .doing(|| "join the container's namespaces".into())
            .at(Stage::Namespaces)?;
    }
    // Entering a user namespace has changed it.
    identity::forbid_looking().at(Stage::Namespaces)?;
    let root = open_root().at(Stage::Root)?;
    let terminal: Option<Terminal> = match process.terminal {
        Some(size) => Some(Terminal::open(&root, size, process).at(Stage::Terminal)?),
        None => None,
    };
    if let Some(adjustment) = process.oom_score_adj {
        environment::set_oom_score(&root, adjustment).at(Stage::Environment)?;
    }
    let labels = Labels::open(&root, process).at(Stage::Privileges)?;
    drop(root);
    let master: Option<OwnedFd> = match terminal {
        Some(terminal) => Some(terminal.make_controlling().at(Stage::Terminal)?),
        None => None,
    };
    if namespaces.contains(Namespaces::USER) {
        become_namespace_root().at(Stage::Privileges)?;
    }
    identity::set_memory_policy(execution.memory_policy).at(Stage::Privileges)?;
    let env = home::environment(process);
    identity::become_user(process).at(Stage::Privileges)?;
    let path = find_program(process)?;
    channel
        .send(&Message::Ready, master.as_ref().map(AsFd::as_fd))
        .doing(|| "report to the parent".into())
        .at(Stage::Exec)?;
    drop(master);
    expect_start(channel).at(Stage::Exec)?;
    sys::process::set_close_on_exec_from(3 + execution.preserve_fds)
        .doing(|| "close descriptors".into())
        .at(Stage::Exec)?;
    confine(process, execution.seccomp, labels, channel).at(Stage::Privileges)?;
    sys::signal::ignore(libc::SIGHUP, false);
    let error = sys::process::exec(&path, &process.args, &env);
    Err(Failure {
        stage: Stage::Exec,
        kind: program::kind_of(&error),
        words: format!("program {:?}: {error}", path.to_string_lossy()),
        errno: error.raw_os_error(),
    })
}

/// Runs in the process in between: enters the pid namespace, and bears the one that becomes the program, which is the
/// runtime's child. Returns in that. What has been entered on the way is taken from `wanted`.
fn bear_inside(
    execution: &Execution<'_>,
    wanted: &mut Namespaces,
    channel: &Channel,
) -> Result<(), StepError> {
    let words = || "join the container's pid namespace".to_owned();
    let (_, pidfd) = execution.target;
    match sys::process::set_namespaces(pidfd, Namespaces::PID.bits()) {
        // It takes rights that its user namespace gives.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && wanted.contains(Namespaces::USER) => {
            let both = Namespaces::PID | Namespaces::USER;
            sys::process::set_namespaces(pidfd, both.bits()).doing(words)?;
            wanted.remove(Namespaces::USER);
            identity::forbid_looking()?;
        }
        result => result.doing(words)?,
    }
    bear_sibling(Birth { as_sibling: true, ..Birth::default() }, channel).doing(words)
}

/// The ids of the machine mean nothing in the container's user namespace; its root, where it has one, may do the rest.
fn become_namespace_root() -> Result<(), StepError> {
    let words = || "become root of the container's user namespace".to_owned();
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    for result in
        [rustix::thread::set_thread_res_gid(gid, gid, gid), rustix::thread::set_thread_res_uid(uid, uid, uid)]
    {
        match result {
            // There is no such id in it.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).doing(words),
        }
    }
    identity::forbid_looking()
}
