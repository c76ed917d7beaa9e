//! The user's terminal: raw while a container has it, and always given back as it was.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios};

use crate::config::TerminalSize;

/// Size of the terminal that `tty` is, if it is one and has a size.
#[must_use]
pub fn size_of(tty: impl AsFd) -> Option<TerminalSize> {
    let size = rustix::termios::tcgetwinsize(tty).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the size of the terminal whose master or slave `tty` is; its foreground processes get SIGWINCH.
///
/// # Errors
/// Of the system call.
pub fn resize(tty: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let tty = tty.as_fd();
    let mut window = rustix::termios::tcgetwinsize(tty)?;
    (window.ws_row, window.ws_col) = (size.rows, size.columns);
    Ok(rustix::termios::tcsetwinsize(tty, window)?)
}

/// A terminal in raw mode; dropping it restores the mode it had.
#[derive(Debug)]
pub struct RawMode {
    tty: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Every key goes to the reader as it is, and output comes as it is written.
    ///
    /// # Errors
    /// When `tty` is not a terminal.
    pub fn enter(tty: impl AsFd) -> io::Result<Self> {
        let tty = rustix::io::fcntl_dupfd_cloexec(tty, 3)?;
        let before = rustix::termios::tcgetattr(&tty)?;
        let mut raw = before.clone();
        raw.make_raw();
        // From here on the guard restores, whatever happens.
        let mode = Self { tty, before };
        // Not with Flush: what was typed ahead is for the program.
        rustix::termios::tcsetattr(&mode.tty, OptionalActions::Now, &raw)?;
        Ok(mode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Drain: what the container wrote last is shown in the mode it was written for.
        let restored = rustix::io::retry_on_intr(|| {
            rustix::termios::tcsetattr(&self.tty, OptionalActions::Drain, &self.before)
        });
        if let Err(error) = restored {
            tracing::debug!(%error, "restore the terminal's mode (it may have hung up)");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::OpenptFlags;
    use rustix::termios::LocalModes;

    use super::*;

    fn pty() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        (master, slave)
    }

    #[test]
    fn raw_mode_ends_with_its_guard_and_with_a_panic() {
        let (_master, slave) = pty();
        let modes = || rustix::termios::tcgetattr(&slave).unwrap().local_modes;
        let before = modes();
        assert!(before.contains(LocalModes::ICANON | LocalModes::ECHO));
        {
            let _raw = RawMode::enter(&slave).unwrap();
            assert!(!modes().intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        }
        assert_eq!(modes(), before);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _raw = RawMode::enter(&slave).unwrap();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        assert_eq!(modes(), before);
    }

    #[test]
    fn sizes_are_set_and_read() {
        let (master, slave) = pty();
        assert_eq!(size_of(&slave), None);
        resize(&master, TerminalSize { rows: 33, columns: 101 }).unwrap();
        assert_eq!(size_of(&slave), Some(TerminalSize { rows: 33, columns: 101 }));
        let file = tempfile::tempfile().unwrap();
        assert!(RawMode::enter(&file).is_err());
    }
}
