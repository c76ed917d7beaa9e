//! What is known of a container on disk: one JSON document, written by rename.
//!
//! A process is remembered with the time it started: its number alone may be another's by the time it is read.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Where a container is in its life (specification, "Lifecycle").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made; the program does not run yet.
    Created,
    /// The program runs.
    Running,
    /// The program has ended.
    Stopped,
}

impl Status {
    /// The program may be run.
    #[must_use]
    pub fn can_start(self) -> bool {
        self == Self::Created
    }

    /// There is a process to send signals to.
    #[must_use]
    pub fn can_kill(self) -> bool {
        matches!(self, Self::Created | Self::Running)
    }

    /// Nothing of it runs.
    #[must_use]
    pub fn can_delete(self) -> bool {
        self == Self::Stopped
    }
}

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number, in the pid namespace of the writer.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessIdentity {
    /// Of a running process.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn of(pid: Pid) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        Ok(Self { pid, start_time: start_time(pid)? })
    }

    /// A descriptor of it, which is readable when it has ended (pidfd_open(2)); none when it has ended already.
    #[must_use]
    pub fn open(self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        // The number may be another's by now; the descriptor stays with whom it found.
        self.is_alive().then_some(process)
    }

    /// True while it runs; a dead process that nobody has waited for does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        stat_of(self.pid).is_ok_and(|stat| stat.start == self.start_time && !matches!(stat.state, 'Z' | 'X'))
    }

    /// True when it has ended or is about to: the kernel is closing what it had open.
    #[must_use]
    pub fn is_leaving(self) -> bool {
        /// linux/sched.h
        const PF_EXITING: u32 = 4;
        !stat_of(self.pid).is_ok_and(|stat| stat.start == self.start_time && stat.flags & PF_EXITING == 0)
    }

    /// Kills it and waits for its end, if it is still there.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(self) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            result => result?,
        };
        // The descriptor holds the process; only now is it certain whose number this is.
        if start_time(self.pid).ok() != Some(self.start_time) {
            return Ok(());
        }
        match sys::signal::send(&pidfd, libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            result => result?,
        }
        let mut wanted = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, None))?;
        Ok(())
    }
}

fn start_time(pid: i32) -> io::Result<u64> {
    stat_of(pid).map(|stat| stat.start)
}

/// Fields 3, 9 and 22 of /proc/PID/stat.
struct Stat {
    state: char,
    flags: u32,
    start: u64,
}

/// The name before the fields may contain anything, its closing parenthesis is the last.
fn stat_of(pid: i32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    let text = String::from_utf8_lossy(&text);
    let after_name = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next().and_then(|field| field.chars().next());
    let flags = fields.nth(5).and_then(|field| field.parse().ok());
    let start = fields.nth(12).and_then(|field| field.parse().ok());
    match (state, flags, start) {
        (Some(state), Some(flags), Some(start)) => Ok(Stat { state, flags, start }),
        _ => Err(io::Error::other(format!("/proc/{pid}/stat has no start time"))),
    }
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// The root filesystem it was made from.
    pub rootfs: PathBuf,
    /// Remove everything when the program has ended.
    pub remove: bool,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The program.
    pub process: Option<ProcessIdentity>,
    /// Processes that serve it from outside of its namespaces.
    pub servants: Vec<ProcessIdentity>,
    /// Directories of its cgroup.
    pub cgroup: Vec<PathBuf>,
    /// How the program ended, as a shell reports it.
    pub exit_code: Option<u8>,
}

impl State {
    /// Name of the document in the container's directory.
    pub const FILE: &'static str = "state.json";

    /// Writes it into `directory`: readers see the old document or the new one.
    ///
    /// # Errors
    /// Of the filesystem.
    pub fn save(&self, directory: &Path) -> io::Result<()> {
        let temporary = directory.join(".state.json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&temporary, directory.join(Self::FILE))
    }

    /// Reads it from `directory`.
    ///
    /// # Errors
    /// When it is missing, or not a state.
    pub fn load(directory: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(directory.join(Self::FILE))?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let me = ProcessIdentity::of(rustix::process::getpid()).unwrap();
        let mut state = State {
            id: "ab".repeat(32),
            status: Status::Running,
            rootfs: "/srv/root".into(),
            remove: true,
            created: 1_700_000_000,
            process: Some(me),
            servants: vec![me],
            cgroup: vec!["/sys/fs/cgroup/x".into()],
            exit_code: None,
        };
        state.save(dir.path()).unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), state);
        state.status = Status::Stopped;
        state.save(dir.path()).unwrap();
        assert_eq!(State::load(dir.path()).unwrap().status, Status::Stopped);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
        fs::write(dir.path().join(State::FILE), "{").unwrap();
        assert!(State::load(dir.path()).is_err());
    }

    #[test]
    fn what_may_be_done_depends_on_the_status() {
        let table = [
            (Status::Creating, false, false, false),
            (Status::Created, true, true, false),
            (Status::Running, false, true, false),
            (Status::Stopped, false, false, true),
        ];
        for (status, start, kill, delete) in table {
            let may = (status.can_start(), status.can_kill(), status.can_delete());
            assert_eq!(may, (start, kill, delete), "{status:?}");
        }
    }

    #[test]
    fn only_the_process_that_was_meant_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let right = ProcessIdentity::of(pid).unwrap();
        let wrong = ProcessIdentity { start_time: right.start_time + 1, ..right };
        wrong.kill().unwrap();
        assert!(right.is_alive() && !right.is_leaving() && !wrong.is_alive() && wrong.is_leaving());
        assert!(child.try_wait().unwrap().is_none(), "another process was killed");
        right.kill().unwrap();
        assert!(right.is_leaving() && !right.is_alive(), "nobody has waited for it yet");
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
        right.kill().unwrap();
    }
}
