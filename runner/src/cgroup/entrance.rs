//! How a process with one thread moves itself to a cgroup of version 1.
//!
//! A process that is moved by another keeps all forks and exits of the machine waiting meanwhile, and the mover waits
//! until the kernel has made sure of that: five to fifteen milliseconds on an idle machine. A thread that moves itself
//! can neither end nor fork under it, so that the kernel does without (`cgroup_procs_write_start`, kernel/cgroup/cgroup.c).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::step::{Doing, StepError};

/// The files `tasks` of a cgroup's directories, open for a child.
#[derive(Debug)]
pub(crate) struct Entrances(Vec<(PathBuf, File)>);

impl Entrances {
    /// Those of `directories`, all of version 1.
    ///
    /// # Errors
    /// Where one of them may not be written.
    pub(super) fn open<'a>(directories: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        let open = |directory: &Path| {
            let file = OpenOptions::new().write(true).open(directory.join("tasks"))?;
            Ok((directory.to_owned(), file))
        };
        directories.map(open).collect::<io::Result<_>>().map(Self)
    }

    /// Moves the calling process, which must have one thread, and the user that it had when they were opened.
    ///
    /// # Errors
    /// When a hierarchy refuses it.
    pub(crate) fn enter(&self) -> Result<(), StepError> {
        for (path, file) in &self.0 {
            let mut file = file;
            // Whoever writes, in whatever pid namespace.
            file.write_all(b"0").doing(|| format!("move to cgroup {}", path.display()))?;
        }
        Ok(())
    }
}
