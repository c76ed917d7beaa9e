//! A container as it is now: the record, and what has become of its process since.

use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags};
use serde_json::json;

use super::record::{self, Record};
use super::{OnSystem, RuntimeError, socket, word_of};
use crate::cgroup::Cgroup;
use crate::state::Status;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct View {
    record: Record,
    status: Status,
    frozen: bool,
    directory: PathBuf,
}

impl View {
    pub(super) fn load(directory: &Path, id: &str) -> Result<Self, RuntimeError> {
        match Record::load(directory)? {
            Some(record) => Ok(Self::of(record, directory)),
            None if directory.is_dir() => Ok(Self::of_nothing(directory, id)),
            None => Err(RuntimeError::Missing { id: id.to_owned() }),
        }
    }

    pub(super) fn of(record: Record, directory: &Path) -> Self {
        let status = status_of(&record, directory);
        let frozen = matches!(status, Status::Running | Status::Created)
            && Cgroup::borrowed(&record.cgroup).is_frozen();
        Self { record, status, frozen, directory: directory.to_owned() }
    }

    /// Its maker is about to write the record, or was killed before it could.
    fn of_nothing(directory: &Path, id: &str) -> Self {
        let record = Record {
            id: id.to_owned(),
            status: Status::Creating,
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            annotations: Default::default(),
            created: String::new(),
            owner: 0,
            process: None,
            boot: String::new(),
            cgroup: Vec::new(),
            cgroup_parents: Vec::new(),
            own_pid_namespace: true,
            late_hooks: false,
            seccomp_listener: None,
        };
        Self::of(record, directory)
    }

    /// What is written down.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Where it is in its life.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Its processes are stopped by `pause`.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.frozen
    }

    /// In the specification's words, and `paused`.
    #[must_use]
    pub fn status_word(&self) -> &'static str {
        word_of(self.status, self.frozen)
    }

    /// The number of its first process; 0 when that has ended.
    #[must_use]
    pub fn pid(&self) -> i32 {
        match self.status {
            Status::Created | Status::Running => self.record.process.map_or(0, |process| process.pid),
            Status::Creating | Status::Stopped => 0,
        }
    }

    /// Its cgroup; dropping the value leaves it.
    #[must_use]
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::borrowed(&self.record.cgroup)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The specification's state, with what runc adds to it.
    #[must_use]
    pub fn state(&self) -> serde_json::Value {
        let mut state = self.record.state(self.status_word(), Some(self.pid()));
        if let Some(object) = state.as_object_mut() {
            object.insert("rootfs".into(), json!(self.record.rootfs));
            object.insert("created".into(), json!(self.record.created));
            object.insert("owner".into(), json!(owner_name(self.record.owner)));
        }
        state
    }

    /// Number and descriptor of its first process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn open_process(&self) -> Result<(Pid, std::os::fd::OwnedFd), RuntimeError> {
        self.process("watch")
    }

    /// A descriptor of its first process, which cannot be another's.
    pub(super) fn process(
        &self,
        operation: &'static str,
    ) -> Result<(Pid, std::os::fd::OwnedFd), RuntimeError> {
        let ended = || self.refused(operation, "");
        let identity = self.record.process.ok_or_else(ended)?;
        let pid = Pid::from_raw(identity.pid).ok_or_else(ended)?;
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Err(ended()),
            result => result.when("open the container's process")?,
        };
        // The descriptor holds the number; only now is it certain whose it is.
        if !identity.is_alive() {
            return Err(ended());
        }
        Ok((pid, pidfd))
    }

    pub(super) fn refused(&self, operation: &'static str, hint: &'static str) -> RuntimeError {
        let id = self.record.id.clone();
        RuntimeError::Status { id, status: self.status_word(), operation, hint }
    }

    /// Refuses unless the program runs or waits to.
    pub(super) fn require_process(&self, operation: &'static str) -> Result<(), RuntimeError> {
        match self.status {
            Status::Created | Status::Running => Ok(()),
            Status::Creating | Status::Stopped => Err(self.refused(operation, "")),
        }
    }
}

/// The user's name, else the number.
fn owner_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    found.map_or_else(|| uid.to_string(), str::to_owned)
}

fn status_of(record: &Record, directory: &Path) -> Status {
    let Some(process) = record.process else {
        // While it is being made, its maker holds the lock.
        let free = std::fs::File::open(directory)
            .is_ok_and(|lock| rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared).is_ok());
        return if free { Status::Stopped } else { Status::Creating };
    };
    if !process.is_alive() || record.boot != record::boot() {
        return Status::Stopped;
    }
    match record.status {
        // Whoever told it to start may have been killed before it could write that down. While the first process waits,
        // it listens.
        Status::Created | Status::Creating if !socket::is_answered(directory) => Status::Running,
        Status::Creating => Status::Created,
        status => status,
    }
}
