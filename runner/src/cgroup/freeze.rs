//! Freezing and thawing: the unified hierarchy's freezer where there is one, else the legacy controller.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::{Cgroup, CgroupError, wait_for};

/// How long it may take, with processes in the middle of disk I/O.
const PATIENCE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Stops every process in it, and waits until they have stopped.
    ///
    /// # Errors
    /// Where there is no freezer, or they do not stop.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.change("freeze", true)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// Where there is no freezer.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.change("thaw", false)
    }

    /// True when its processes are stopped.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        if let Some(path) = &self.unified
            && let Ok(text) = fs::read_to_string(path.join("cgroup.freeze"))
        {
            return text.trim() == "1";
        }
        self.file("freezer.state")
            .and_then(|file| fs::read_to_string(file).ok())
            .is_some_and(|text| matches!(text.trim(), "FROZEN" | "FREEZING"))
    }

    fn change(&self, doing: &'static str, frozen: bool) -> Result<(), CgroupError> {
        if let Some(path) = &self.unified
            && path.join("cgroup.freeze").exists()
        {
            return unified(path, frozen).map_err(|source| CgroupError::Change {
                doing,
                path: path.clone(),
                source,
            });
        }
        let Some(file) = self.file("freezer.state") else {
            let path = self.directories.first().cloned().unwrap_or_default();
            let source = io::Error::other(
                "there is no freezer in it (a unified hierarchy, or the freezer controller)",
            );
            return Err(CgroupError::Change { doing, path, source });
        };
        legacy(&file, frozen).map_err(|source| CgroupError::Change { doing, path: file, source })
    }
}

fn unified(path: &Path, frozen: bool) -> io::Result<()> {
    let word = if frozen { "1" } else { "0" };
    fs::write(path.join("cgroup.freeze"), word)?;
    let wanted = format!("frozen {word}");
    let events = fs::File::open(path.join("cgroup.events"))?;
    let until = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(path.join("cgroup.events"))?;
        if text.lines().any(|line| line == wanted) {
            return Ok(());
        }
        if !frozen {
            // They go on by themselves from here.
            return Ok(());
        }
        if Instant::now() > until {
            fs::write(path.join("cgroup.freeze"), "0")?;
            return Err(io::Error::other("its processes do not stop"));
        }
        wait_for(&events, PollFlags::PRI, 100)?;
    }
}

fn legacy(file: &Path, frozen: bool) -> io::Result<()> {
    let word = if frozen { "FROZEN" } else { "THAWED" };
    let until = Instant::now() + PATIENCE;
    loop {
        // Said again each time: a process that was just born is stopped by the next word only.
        fs::write(file, word)?;
        if fs::read_to_string(file)?.trim() == word {
            return Ok(());
        }
        if Instant::now() > until {
            fs::write(file, "THAWED")?;
            return Err(io::Error::other("its processes do not stop"));
        }
        // The controller has no event to wait for.
        std::thread::sleep(Duration::from_millis(1));
    }
}
