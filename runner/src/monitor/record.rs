//! What the monitor writes down of its container: `state.json`, replaced by rename.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::state::ProcessIdentity;

/// Where a container is in its life, in docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made; has never run.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended and will be started again.
    Restarting,
    /// Its program has ended.
    Exited,
    /// It is being removed.
    Removing,
    /// It could not be removed.
    Dead,
}

impl Status {
    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The image it is on, by the digest of its config.
    pub image: Option<String>,
    /// The root filesystem it is on, where it is no image.
    pub rootfs: Option<PathBuf>,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Where it is in its life.
    pub status: Status,
    /// In which run of the kernel that was: numbers of processes mean nothing in another.
    pub boot: String,
    /// The monitor.
    pub monitor: Option<ProcessIdentity>,
    /// The program.
    pub process: Option<ProcessIdentity>,
    /// The process behind its root filesystem.
    pub mount: Option<ProcessIdentity>,
    /// Directories of its cgroup.
    pub cgroup: Vec<PathBuf>,
    /// When the program was last started (RFC 3339); empty: never.
    pub started_at: String,
    /// When it last ended (RFC 3339); empty: never.
    pub finished_at: String,
    /// How it last ended, as a shell reports it.
    pub exit_code: u8,
    /// The kernel killed in it for lack of memory.
    pub oom_killed: bool,
    /// Why it could not be started, or did not end by itself.
    pub error: String,
    /// How often it was restarted by its policy since it was started.
    pub restart_count: u32,
    /// Somebody has stopped it: see [`super::restart::RestartPolicy::UnlessStopped`].
    pub stopped_by_user: bool,
    /// What its health checks have found since its last start; `None`: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<super::health::HealthRecord>,
}

impl Record {
    /// Name in a container's directory.
    pub const FILE: &'static str = "state.json";

    /// Of a container that was just made.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            image: None,
            rootfs: None,
            args: Vec::new(),
            status: Status::Created,
            boot: String::new(),
            monitor: None,
            process: None,
            mount: None,
            cgroup: Vec::new(),
            started_at: String::new(),
            finished_at: String::new(),
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            restart_count: 0,
            stopped_by_user: false,
            health: None,
        }
    }

    /// Says that the calling process is its monitor. False when it said so already.
    ///
    /// # Errors
    /// When /proc does not say when this process started.
    pub fn take_over(&mut self) -> io::Result<bool> {
        let own = Some(ProcessIdentity::of(rustix::process::getpid())?);
        let before = (self.monitor, std::mem::replace(&mut self.boot, boot()));
        self.monitor = own;
        Ok((before.0, &before.1) != (own, &self.boot))
    }

    /// Replaces the document in `directory`. A reader sees the old one or the new one. It need not survive a power cut,
    /// after which nothing of it runs.
    ///
    /// # Errors
    /// Of the filesystem.
    pub fn save(&self, directory: &Path) -> io::Result<()> {
        let temporary = directory.join(".state.json.new");
        let mut options = fs::OpenOptions::new();
        // Its owner's alone, whatever the umask of the caller.
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&temporary)?.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&temporary, directory.join(Self::FILE))
    }

    /// Reads the document in `directory`.
    ///
    /// # Errors
    /// When it is missing or no such document.
    pub fn load(directory: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(directory.join(Self::FILE))?)?)
    }

    /// True while its monitor lives.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.monitor.is_some_and(|monitor| self.boot == boot() && monitor.is_alive())
    }

    /// True when it says that something runs, and nobody is there who would know.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        let settled = matches!(self.status, Status::Created | Status::Exited | Status::Dead)
            && self.monitor.is_none()
            && self.mount.is_none();
        !settled && !self.is_watched()
    }
}

/// Which run of the kernel this is.
#[must_use]
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_monitor_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let me = ProcessIdentity::of(rustix::process::getpid()).unwrap();
        let mut record = Record::new(&"a".repeat(64));
        assert!(!record.is_watched() && !record.is_abandoned());
        (record.status, record.monitor, record.boot) = (Status::Running, Some(me), boot());
        record.save(dir.path()).unwrap();
        let read = Record::load(dir.path()).unwrap();
        assert_eq!(read, record);
        assert!(read.is_watched() && !read.is_abandoned());
        record.boot = "another".into();
        assert!(!record.is_watched() && record.is_abandoned());
        record.boot = boot();
        record.monitor = Some(ProcessIdentity { start_time: me.start_time + 1, ..me });
        assert!(record.is_abandoned());
    }
}
