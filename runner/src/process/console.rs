//! The pseudo terminal of a program, seen from inside of its container.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{OFlags, Uid};
use rustix::pty::OpenptFlags;

use crate::config::{Process, TerminalSize};
use crate::rootfs::resolve;
use crate::step::{Doing, StepError};
use crate::sys;

/// Both ends.
pub(super) struct Terminal {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

impl Terminal {
    /// Opens one of the container's own instance.
    pub(super) fn open(root: &OwnedFd, size: TerminalSize, process: &Process) -> Result<Self, StepError> {
        let words = || "open a terminal in the container's /dev/pts".to_owned();
        let path = Path::new("/dev/pts/ptmx");
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let master = resolve::open(root, path, flags, resolve::Links::Refuse).doing(words)?;
        rustix::pty::unlockpt(&master).doing(words)?;
        // By descriptor: a name in the container may be anything.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).doing(words)?;
        let mut window = rustix::termios::tcgetwinsize(&slave).doing(words)?;
        (window.ws_row, window.ws_col) = (size.rows, size.columns);
        rustix::termios::tcsetwinsize(&slave, window).doing(|| "set the terminal's size".into())?;
        rustix::fs::fchown(&slave, Some(Uid::from_raw(process.user.uid)), None)
            .doing(|| "give the terminal to the user".into())?;
        Ok(Self { master, slave })
    }

    /// Makes it the session's terminal and the standard streams; the master is what is left.
    pub(super) fn make_controlling(self) -> Result<OwnedFd, StepError> {
        // Where a later step fails, the master is closed before the failure is told: that must not end this process.
        sys::signal::ignore(libc::SIGHUP, true);
        rustix::process::ioctl_tiocsctty(&self.slave).doing(|| "take the terminal".into())?;
        rustix::stdio::dup2_stdin(&self.slave)
            .and_then(|()| rustix::stdio::dup2_stdout(&self.slave))
            .and_then(|()| rustix::stdio::dup2_stderr(&self.slave))
            .doing(|| "set the standard streams".into())?;
        Ok(self.master)
    }
}
