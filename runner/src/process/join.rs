//! Namespaces that exist already, and the process between parent and init that some combinations need.
//!
//! Usually init is born in all its new namespaces at once. Three things want a process in between: a user namespace that
//! is joined (what is new must belong to it), a new time namespace (its clocks are set before anybody is in it), and a pid
//! namespace that is joined where this process could not leave it again.
//! With a new user namespace, what is joined belongs to the machine and is entered before it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Gid, Uid};

use crate::channel::{Channel, Message};
use crate::config::{Config, ConfigError};
use crate::namespaces::{ALL, Namespaces};
use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::process::{Birth, Forked};

/// Files of the namespaces to be joined, open.
#[derive(Debug)]
pub(super) struct Openings(Vec<(Namespaces, File, String)>);

impl Openings {
    /// Opens them all, so that nothing is changed where one is missing.
    pub(super) fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut openings = Vec::new();
        for joined in &config.joined {
            let path = joined.path.display();
            let field = || format!("linux.namespaces (path {path})");
            let file = File::open(&joined.path)
                .map_err(|error| ConfigError::new(field(), format!("open it: {error}")))?;
            openings.push((joined.namespace, file, path.to_string()));
        }
        Ok(Self(openings))
    }

    pub(super) fn descriptors(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.0.iter().map(|(_, file, _)| file.as_fd()).collect()
    }

    /// Enters those of `kinds`.
    pub(super) fn enter(&self, kinds: Namespaces) -> Result<(), StepError> {
        for (kind, file, path) in self.0.iter().filter(|(kind, ..)| kinds.contains(*kind)) {
            sys::process::set_namespaces(file, kind.bits()).doing(|| format!("join namespace {path}"))?;
        }
        Ok(())
    }

    /// Enters all but the user namespace: those that are allowed before it, the others after it.
    fn enter_around_user(&self) -> Result<(), StepError> {
        let mut after = Namespaces::empty();
        for (kind, file, path) in self.0.iter().filter(|(kind, ..)| *kind != Namespaces::USER) {
            match sys::process::set_namespaces(file, kind.bits()) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => after |= *kind,
                result => result.doing(|| format!("join namespace {path}"))?,
            }
        }
        self.enter(Namespaces::USER)?;
        self.enter(after)
    }

    /// True when a namespace of this kind is joined that this process is not in already.
    pub(super) fn leads_elsewhere(&self, kind: Namespaces) -> bool {
        let Some((_, name, _)) = ALL.iter().find(|(one, ..)| *one == kind) else { return false };
        let Some((_, file, _)) = self.0.iter().find(|(other, ..)| *other == kind) else { return false };
        let of = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let own = std::fs::metadata(format!("/proc/self/ns/{name}"));
        own.is_ok_and(|own| file.metadata().is_ok_and(|theirs| of(own) != of(theirs)))
    }

    pub(super) fn has(&self, kind: Namespaces) -> bool {
        self.0.iter().any(|(other, ..)| *other == kind)
    }
}

/// True when a process in between is needed.
pub(super) fn is_staged(config: &Config, openings: &Openings) -> bool {
    openings.has(Namespaces::USER)
        || config.namespaces.contains(Namespaces::TIME)
        || (config.namespaces.contains(Namespaces::USER) && !openings.0.is_empty())
        || (openings.has(Namespaces::PID) && !can_return_to_pid_namespace())
}

/// True when this process, having had its children born in another pid namespace, can have later ones born in its own
/// again: root of the machine can, root of a user namespace that engines make for ordinary users cannot.
pub(super) fn can_return_to_pid_namespace() -> bool {
    // Going where one is asks for the same rights, and changes nothing.
    File::open("/proc/self/ns/pid")
        .is_ok_and(|own| sys::process::set_namespaces(own, Namespaces::PID.bits()).is_ok())
}

/// Runs in the process in between: enters, and bears init, which is the parent's child. Returns in init.
pub(super) fn bear(
    config: &Config,
    openings: &Openings,
    channel: &Channel,
    cgroup: Option<std::os::fd::BorrowedFd<'_>>,
) -> Result<(), StepError> {
    openings.enter_around_user()?;
    let mut new = config.namespaces;
    if new.contains(Namespaces::USER) {
        sys::process::unshare(libc::CLONE_NEWUSER).doing(|| "make a user namespace".into())?;
        new.remove(Namespaces::USER);
        channel.send(&Message::WantsIds, None).doing(|| "ask the parent for ids".into())?;
        super::init::expect(channel, &Message::Mapped)?;
    }
    if new.contains(Namespaces::USER)
        || openings.has(Namespaces::USER)
        || config.namespaces.contains(Namespaces::USER)
    {
        become_root(config)?;
    }
    if new.contains(Namespaces::TIME) {
        sys::process::unshare(CLONE_NEWTIME).doing(|| "make a time namespace".into())?;
        new.remove(Namespaces::TIME);
        for (clock, seconds, nanoseconds) in &config.time_offsets {
            let line = format!("{clock} {seconds} {nanoseconds}");
            std::fs::write("/proc/self/timens_offsets", &line)
                .doing(|| format!("set linux.timeOffsets to {line:?}"))?;
        }
    }
    let birth = Birth { namespaces: new.at_birth(), cgroup, as_sibling: true };
    let words = || "make the first process in new namespaces".to_owned();
    match bear_sibling(birth, channel) {
        // Root of a namespace that is joined is not the owner of the cgroup: the parent, who is, places it.
        Err(_) if cgroup.is_some() => bear_sibling(Birth { cgroup: None, ..birth }, channel).doing(words),
        result => result.doing(words),
    }
}

/// Has a child born that is the parent's, tells the parent, and ends. Returns in the child.
pub(super) fn bear_sibling(birth: Birth<'_>, channel: &Channel) -> io::Result<()> {
    match sys::process::fork(birth)? {
        Forked::Child => Ok(()),
        Forked::Parent { pid, pidfd } => {
            let in_cgroup = birth.cgroup.is_some();
            let message = Message::Born { pid: pid.as_raw_nonzero().get(), in_cgroup };
            let told = channel.send(&message, Some(pidfd.as_fd()));
            sys::process::exit_now(i32::from(told.is_err()))
        }
    }
}

/// `CLONE_NEWTIME` of linux/sched.h.
const CLONE_NEWTIME: libc::c_int = 0x80;

/// Becomes root of the user namespace that the process is in, if it has one.
pub(super) fn become_root(config: &Config) -> Result<(), StepError> {
    let (uid, gid) = match config.namespaces.contains(Namespaces::USER) {
        true if !config.uid_map.contains(0) || !config.gid_map.contains(0) => {
            (config.process.user.uid, config.process.user.gid)
        }
        _ => (0, 0),
    };
    let words = || format!("become user {uid}:{gid} of the user namespace");
    match rustix::thread::set_thread_groups(&[]) {
        // Denied where an ordinary user made the namespace.
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error).doing(words),
    }
    rustix::thread::set_keep_capabilities(true).doing(words)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).doing(words)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).doing(words)?;
    let have = rustix::thread::capabilities(None).doing(words)?;
    let raised = rustix::thread::CapabilitySets { effective: have.permitted, ..have };
    rustix::thread::set_capabilities(None, raised).doing(words)?;
    rustix::thread::set_keep_capabilities(false).doing(words)?;
    super::identity::forbid_looking()
}

/// Writes the maps of a process's new user namespace.
pub(super) fn write_maps(pid: rustix::process::Pid, config: &Config) -> io::Result<()> {
    let pid = pid.as_raw_nonzero();
    let write = |file: &str, text: &str| std::fs::write(format!("/proc/{pid}/{file}"), text);
    // An ordinary user's single group may not be mapped while groups can be dropped.
    match write("gid_map", &config.gid_map.text()) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            write("setgroups", "deny")?;
            write("gid_map", &config.gid_map.text())?;
        }
        result => result?,
    }
    write("uid_map", &config.uid_map.text())
}
