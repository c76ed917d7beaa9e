//! Being told that the kernel has killed for lack of memory.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::EventfdFlags;
use rustix::fs::inotify;

use super::Cgroup;

/// Readable after the kernel had to kill in the cgroup.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    /// Of the unified hierarchy: the file that counts.
    counts: Option<(PathBuf, u64)>,
}

impl Cgroup {
    /// Watches for kills; `None` where the cgroup has no memory controller.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn watch_oom(&self) -> io::Result<Option<OomWatch>> {
        if let Some(control) = self.file("memory.oom_control")
            && let Some(directory) = control.parent()
        {
            let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let control = fs::File::open(&control)?;
            let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
            fs::write(directory.join("cgroup.event_control"), line)?;
            return Ok(Some(OomWatch { fd, counts: None }));
        }
        let Some(events) = self.file("memory.events") else { return Ok(None) };
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, &events, inotify::WatchFlags::MODIFY)?;
        let seen = kills(&events);
        Ok(Some(OomWatch { fd, counts: Some((events, seen)) }))
    }

    /// How often the kernel has killed in it for lack of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let file = self.file("memory.oom_control").or_else(|| self.file("memory.events"));
        file.map_or(0, |file| kills(&file))
    }
}

/// The line `oom_kill N` of `memory.events` and of `memory.oom_control`.
fn kills(file: &PathBuf) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

impl OomWatch {
    /// True when the kernel has killed since the last time; to be asked when the descriptor is readable.
    pub fn happened(&mut self) -> bool {
        let mut buffer = [0_u8; 4096];
        let read = rustix::io::read(&self.fd, &mut buffer);
        match &mut self.counts {
            // The removal of the cgroup makes it readable too.
            None => read.is_ok_and(|length| length > 0),
            Some((file, seen)) => {
                let now = kills(file);
                let more = now > *seen;
                *seen = now;
                more
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
