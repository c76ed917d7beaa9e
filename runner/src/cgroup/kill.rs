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
    /// while they are killed, so that no new one gets away; without a freezer they are killed until there are none.
    ///
    /// # Errors
    /// When processes are left.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if let Some(path) = &self.unified
            && fs::write(path.join("cgroup.kill"), "1").is_ok()
        {
            return Ok(());
        }
        self.kill_one_by_one()
    }

    /// As [`Self::kill`], without `cgroup.kill`.
    fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        let Some(path) = self.unified.as_ref().or_else(|| self.directories.first()) else { return Ok(()) };
        let failed =
            |source| CgroupError::Change { doing: "kill the processes of", path: path.clone(), source };
        let until = Instant::now() + RELEASE;
        loop {
            // Frozen anew each time: what was being born while the list was read, or did not freeze, is in the next one.
            let is_frozen =
                self.freeze().inspect_err(|error| tracing::debug!(%error, "kill unfrozen")).is_ok();
            let killed = kill_by_number(path);
            if is_frozen {
                self.thaw()?;
            }
            let count = killed.map_err(failed)?;
            if count == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(failed(io::Error::other(format!("{count} of them are left"))));
            }
            if is_frozen {
                // They are dead or dying, and had no chance to bear others: there is no hurry.
                std::thread::sleep(PAUSE);
            }
        }
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

/// Kills the members of `path` and below: once over, how many there were.
fn kill_by_number(path: &Path) -> io::Result<usize> {
    let mut members = Vec::new();
    match members_below(path, &mut members) {
        // Removed by somebody else: nobody is in it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(0),
        result => result?,
    }
    let count = members.len();
    for pid in members {
        // It may have died since; another process cannot have taken its number and its cgroup.
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            && is_member(path, pid)
            && let Err(error) = crate::sys::signal::send(&pidfd, libc::SIGKILL)
        {
            tracing::debug!(%error, ?pid, "kill a member of the cgroup");
        }
    }
    Ok(count)
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::cgroup::{Hierarchies, Plan};
    use crate::config::CgroupPath;

    /// A cgroup of its own in the hierarchies that `wanted` takes, or none.
    fn cgroup(name: &str, wanted: impl Fn(&Path) -> bool) -> Option<Cgroup> {
        let hierarchies = Hierarchies::discover().ok()?;
        let path = CgroupPath::Relative(PathBuf::from(format!("{name}-{}", std::process::id())));
        let mut plan = Plan::new(&hierarchies, &path);
        plan.directories.retain(|planned| wanted(&planned.path));
        let cgroup = Cgroup::create(&plan, &[], &Default::default()).ok()?;
        (!cgroup.directories.is_empty()).then_some(cgroup)
    }

    /// A process in `cgroup` that bears others as fast as it can, each of which does the same.
    fn bomb(cgroup: &Cgroup) -> std::process::Child {
        let script = "read x; bomb() { while :; do bomb & sleep 0.001; done; }; bomb";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        cgroup.place(pid, false, false).unwrap();
        drop(child.stdin.take());
        child
    }

    fn dies_out(name: &str, wanted: impl Fn(&Path) -> bool) {
        let Some(mut cgroup) = cgroup(name, wanted) else {
            // Root and mounted hierarchies are what it takes; the tests of whole containers say so where CI has both.
            eprintln!("skipped: no such cgroup can be made here");
            return;
        };
        let mut child = bomb(&cgroup);
        let directory = cgroup.directories[0].clone();
        while count(&directory) < 20 {
            std::thread::yield_now();
        }
        let killed = cgroup.kill_one_by_one();
        let left = count(&directory);
        // Whatever was found, nothing stays.
        if left > 0 {
            fs::write(directory.join("cgroup.kill"), "1").ok();
        }
        child.wait().unwrap();
        cgroup.remove().unwrap();
        assert!(killed.is_ok(), "{killed:?}");
        assert_eq!(left, 0, "some have outrun it");
    }

    fn count(directory: &Path) -> usize {
        let mut members = Vec::new();
        members_below(directory, &mut members).unwrap();
        members.len()
    }

    #[test]
    fn a_fork_bomb_does_not_outrun_the_freezer_of_the_unified_hierarchy() {
        dies_out("layerfs-bomb-unified", |path| path.parent().is_some_and(has_freezer));
    }

    fn has_freezer(parent: &Path) -> bool {
        parent.join("cgroup.controllers").exists()
    }

    #[test]
    fn a_fork_bomb_does_not_outrun_the_legacy_freezer() {
        dies_out("layerfs-bomb-freezer", |path| path.starts_with("/sys/fs/cgroup/freezer"));
    }
}
