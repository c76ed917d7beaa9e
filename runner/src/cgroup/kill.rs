//! Ending everything in a cgroup, and removing it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags};

use super::{Cgroup, CgroupError, wait_for};

/// How long the kernel may take to end a process that was killed, and to let go of its cgroup.
const RELEASE: Duration = Duration::from_secs(10);
/// How often a cgroup is looked at that is being let go of.
const PAUSE: Duration = Duration::from_micros(500);

impl Cgroup {
    /// Kills every process in it. Where the kernel cannot do it at once (unified hierarchy, Linux 5.14), they are frozen
    /// while they are killed, so that no new one gets away.
    ///
    /// # Errors
    /// When processes are left.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if let Some(path) = &self.unified
            && fs::write(path.join("cgroup.kill"), "1").is_ok()
        {
            return Ok(());
        }
        let Some(path) = self.unified.as_ref().or_else(|| self.directories.first()) else { return Ok(()) };
        let failed =
            |source| CgroupError::Change { doing: "kill the processes of", path: path.clone(), source };
        let frozen = self.freeze().is_ok();
        let killed = kill_by_number(path);
        if frozen {
            self.thaw()?;
        }
        killed.map_err(failed)
    }

    /// Sends a signal to every process in it.
    ///
    /// # Errors
    /// The first that could not be sent; the others are sent all the same.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let mut first_error = None;
        for pid in self.processes() {
            let sent = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                .map_err(io::Error::from)
                .and_then(|pidfd| crate::sys::signal::send(pidfd, signal));
            match sent {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    first_error.get_or_insert(error);
                }
                _ => {}
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Kills the members of `path` and below until there are none.
fn kill_by_number(path: &Path) -> io::Result<()> {
    let mut members = Vec::new();
    members_below(path, &mut members)?;
    for pid in members {
        // It may have died since; another process cannot have taken its number and its cgroup.
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            && is_member(path, pid)
            && let Err(error) = crate::sys::signal::send(&pidfd, libc::SIGKILL)
        {
            tracing::debug!(%error, ?pid, "kill a member of the cgroup");
        }
    }
    Ok(())
}

fn is_member(path: &Path, pid: Pid) -> bool {
    let mut members = Vec::new();
    members_below(path, &mut members).is_ok() && members.contains(&pid)
}

/// The processes of `path` and of the cgroups below it.
pub(super) fn members_below(path: &Path, found: &mut Vec<Pid>) -> io::Result<()> {
    let text = match fs::read_to_string(path.join("cgroup.procs")) {
        // A threaded cgroup; its processes are those of its parent.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        result => result?,
    };
    found.extend(text.lines().filter_map(|line| line.trim().parse().ok().and_then(Pid::from_raw)));
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match members_below(&entry.path(), found) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
    }
    Ok(())
}

/// Removes `path` and what the container made below it; what is in it is killed first.
pub(super) fn remove_directory(path: &Path) -> io::Result<()> {
    let until = Instant::now() + RELEASE;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                if Instant::now() > until {
                    return Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result,
        }
        empty(path)?;
    }
}

fn empty(path: &Path) -> io::Result<()> {
    let mut members = Vec::new();
    match members_below(path, &mut members) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    }
    if members.is_empty() {
        let entries = fs::read_dir(path)?;
        let mut has_children = false;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                has_children = true;
                remove_directory(&entry.path())?;
            }
        }
        if !has_children {
            // Dead and waited for, but the kernel is not done with them.
            std::thread::sleep(PAUSE);
        }
        return Ok(());
    }
    if fs::write(path.join("cgroup.kill"), "1").is_err() {
        // A frozen process does not die.
        for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            // Only one of the two is there, or none.
            fs::write(path.join(file), word).ok();
        }
        kill_by_number(path)?;
    }
    for pid in members {
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let milliseconds = i64::try_from(RELEASE.as_millis()).unwrap_or(i64::MAX);
        // A parent that does not wait for it keeps a dead process, which is no member any more.
        if !wait_for(&pidfd, PollFlags::IN, milliseconds)? {
            return Err(io::Error::other(format!("process {pid:?} in it does not end")));
        }
    }
    Ok(())
}
