//! Becoming the program's user, with its limits and rights: the same for a container's first process and for one that is
//! executed in it.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::Resource;
use rustix::thread::CapabilitySets;

use super::program;
use crate::channel::{Channel, Failure, Message, Stage};
use crate::config::{ID_MAX, MemoryPolicy, Process, Rlimit};
use crate::rootfs::resolve;
use crate::seccomp::Seccomp;
use crate::step::{Doing, StepError};
use crate::{capabilities, sys};

/// Limits, scheduling, groups, user, working directory. Capabilities stay permitted until [`confine`].
pub(super) fn become_user(process: &Process) -> Result<(), StepError> {
    for Rlimit { resource, soft, hard } in &process.rlimits {
        set_limit(*resource, *soft, *hard)?;
    }
    if let Some(scheduler) = &process.scheduler {
        sys::process::set_scheduler(scheduler).doing(|| "set process.scheduler".into())?;
    }
    if let Some(priority) = process.io_priority {
        sys::process::set_io_priority(priority).doing(|| "set process.ioPriority".into())?;
    }
    capabilities::limit_bounding_set(process.capabilities.bounding)?;
    rustix::thread::set_keep_capabilities(true).doing(|| "keep capabilities".into())?;
    let user = &process.user;
    // -1 leaves what it is: root.
    if let Some(id) = [user.uid, user.gid].into_iter().find(|id| *id > ID_MAX) {
        return Err(StepError::refused(
            format!("become user {}:{}", user.uid, user.gid),
            format!("{id} is no id"),
        ));
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // A user namespace made without newgidmap forbids it, and then the groups are the caller's own. Nothing is lost
        // where no other group than the primary one is asked for.
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        Err(rustix::io::Errno::PERM) if groups.iter().all(|group| *group == gid) && may_not_set_groups() => {}
        result => result.doing(|| format!("set supplementary groups {:?}", user.groups))?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).doing(|| format!("become group {}", user.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).doing(|| format!("become user {}", user.uid))?;
    rustix::thread::set_keep_capabilities(false).doing(|| "give up capabilities".into())?;
    // Changing the user may have made it so again.
    forbid_looking()?;
    rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022)));
    enter_working_directory(&process.cwd)
}

/// True in a user namespace in which nobody may set groups (user_namespaces(7)).
fn may_not_set_groups() -> bool {
    let Ok(mut file) = File::open("/proc/self/setgroups") else { return false };
    // The root is the container's: what an image has there says nothing.
    let is_proc = rustix::fs::fstatfs(&file).is_ok_and(|stat| stat.f_type == crate::rootfs::PROC_MAGIC);
    let mut word = String::new();
    is_proc && file.read_to_string(&mut word).is_ok() && word.trim_end() == "deny"
}

/// `linux.memoryPolicy`, where there is one.
pub(super) fn set_memory_policy(policy: Option<&MemoryPolicy>) -> Result<(), StepError> {
    match policy {
        Some(policy) => sys::process::set_memory_policy(policy).doing(|| "set linux.memoryPolicy".into()),
        None => Ok(()),
    }
}

/// Other processes of the container may look at nothing here until the program runs.
pub(super) fn forbid_looking() -> Result<(), StepError> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing(|| "forbid core dumps".into())
}

fn enter_working_directory(path: &Path) -> Result<(), StepError> {
    let words = || format!("change to working directory {}", path.display());
    match rustix::process::chdir(path) {
        // The user may not, but the runtime's root may, as with other runtimes: a home that is closed to its owner.
        Err(rustix::io::Errno::ACCESS) => {
            let have = rustix::thread::capabilities(None).doing(words)?;
            rustix::thread::set_capabilities(None, CapabilitySets { effective: have.permitted, ..have })
                .doing(words)?;
            let entered = rustix::process::chdir(path);
            rustix::thread::set_capabilities(None, have).doing(words)?;
            entered.doing(words)?;
        }
        result => result.doing(words)?,
    }
    // The kernel says "(unreachable)" of a directory outside of the root.
    let reached = rustix::process::getcwd(Vec::new()).doing(words)?;
    match reached.as_bytes().first() {
        Some(b'/') => Ok(()),
        _ => Err(StepError::refused(words(), "it is outside of the container's root")),
    }
}

fn set_limit(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<(), StepError> {
    let limit = rustix::process::Rlimit { current: soft, maximum: hard };
    let words = || {
        format!("set limit {resource:?} to {soft:?}:{hard:?} (raising a hard limit needs CAP_SYS_RESOURCE)")
    };
    rustix::process::setrlimit(resource, limit).doing(words)
}

pub(super) fn find_program(process: &Process) -> Result<CString, Failure> {
    let empty = CString::default();
    let name = process.args.first().unwrap_or(&empty);
    program::find(name, &process.env).map_err(|error| Failure {
        stage: Stage::Exec,
        kind: error.kind,
        words: error.words,
        errno: error.errno,
    })
}

/// Files of /proc that take the labels of the next program, opened while that can be done.
#[derive(Debug, Default)]
pub(super) struct Labels(Vec<(File, String, &'static str)>);

impl Labels {
    /// Of the calling process, beneath `root`.
    pub(super) fn open(root: &OwnedFd, process: &Process) -> Result<Self, StepError> {
        let mut labels = Self::default();
        let wanted = [
            (&process.apparmor_profile, "process.apparmorProfile", "/proc/self/attr/apparmor/exec", "exec "),
            (&process.selinux_label, "process.selinuxLabel", "/proc/self/attr/exec", ""),
        ];
        for (label, field, path, prefix) in wanted {
            let Some(label) = label else { continue };
            let words = || format!("set {field} {label:?}");
            let links = resolve::Links::Follow;
            let open = |path: &str| resolve::open(root, Path::new(path), OFlags::WRONLY, links);
            // Before Linux 5.8 there is one file for all.
            let file = open(path).or_else(|_| open("/proc/self/attr/exec")).doing(words)?;
            if rustix::fs::fstatfs(&file).doing(words)?.f_type != crate::rootfs::PROC_MAGIC {
                return Err(StepError::refused(words(), "it is not on /proc"));
            }
            labels.0.push((file.into(), format!("{prefix}{label}"), field));
        }
        Ok(labels)
    }

    fn set(&mut self) -> Result<(), StepError> {
        for (file, label, field) in &mut self.0 {
            file.write_all(label.as_bytes()).doing(|| format!("set {field} {label:?}"))?;
        }
        Ok(())
    }
}

/// Labels, capabilities and system call filters: last, as they forbid what the steps before need.
pub(super) fn confine(
    process: &Process,
    filter: Option<&Seccomp>,
    mut labels: Labels,
    channel: &Channel,
) -> Result<(), StepError> {
    labels.set()?;
    if process.no_new_privileges {
        capabilities::apply(&process.capabilities)?;
        rustix::thread::set_no_new_privs(true).doing(|| "set no_new_privs".into())?;
        return install(filter, channel);
    }
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, which another user than root has to be lent again.
    if filter.is_some() {
        let have = rustix::thread::capabilities(None).doing(|| "read the capabilities".into())?;
        let raised = CapabilitySets { effective: have.permitted, ..have };
        rustix::thread::set_capabilities(None, raised).doing(|| "raise the capabilities".into())?;
        install(filter, channel)?;
    }
    capabilities::apply(&process.capabilities)
}

fn install(filter: Option<&Seccomp>, channel: &Channel) -> Result<(), StepError> {
    let Some(filter) = filter else { return Ok(()) };
    let words = || "install the system call filter".to_owned();
    let mut flags = filter.flags();
    if filter.listener().is_some() {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    }
    if let Some(listener) = sys::seccomp::install(filter.program(), flags).doing(words)? {
        channel
            .send(&Message::Listener, Some(listener.as_fd()))
            .doing(|| "send the listener to the parent".into())?;
    }
    Ok(())
}
