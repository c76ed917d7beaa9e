//! Making a monitor: the program starts itself again, in a session and a mount namespace of its own.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::connection::Connection;
use crate::host;
use crate::sys;
use crate::sys::process::Forked;

/// What a monitor has of the command that made it.
#[derive(Debug)]
pub struct Inherited {
    /// Connected to that command.
    pub connection: OwnedFd,
    /// The lock on the container; free when the monitor has ended.
    pub lock: OwnedFd,
}

/// Starts `arguments` of the running program as a monitor, which gets the numbers of its two descriptors as the last two
/// arguments (for [`take_inherited`]). It belongs to no terminal, and what it mounts is seen by nobody else. The
/// connection to it comes back. The calling process must have one thread.
///
/// # Errors
/// Of the system calls. What fails later shows as the connection's end, or is said on it.
pub fn spawn(arguments: &[&OsStr], lock: BorrowedFd<'_>) -> io::Result<Connection> {
    if !sys::process::is_single_threaded()? {
        return Err(io::Error::other("a monitor cannot be started from a process with several threads"));
    }
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    match sys::process::fork_into(0)? {
        Forked::Child => {
            let error = become_monitor(arguments, &theirs, lock);
            // Whoever asked reads it as any other failure.
            let event = super::protocol::Event::Failed {
                kind: crate::channel::FailureKind::Setup,
                words: format!("start the container's monitor: {error}"),
            };
            if let Ok(text) = super::protocol::text_of(&event) {
                super::protocol::send(&theirs, [&text, &[]], &[], rustix::net::SendFlags::empty()).ok();
            }
            sys::process::exit_now(125)
        }
        Forked::Parent { .. } => {
            drop(theirs);
            Ok(Connection::of(ours))
        }
    }
}

/// Returns only when it failed.
fn become_monitor(arguments: &[&OsStr], connection: &OwnedFd, lock: BorrowedFd<'_>) -> io::Error {
    let prepare = || -> io::Result<()> {
        rustix::process::setsid()?;
        let words = |error: crate::StepError| io::Error::other(error.words());
        host::enter_private_mounts().map_err(words)?;
        rustix::process::chdir("/")?;
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        drop(null);
        sys::process::close_from_except(3, &[connection.as_fd(), lock])?;
        sys::process::keep_over_exec(connection.as_raw_fd())?;
        sys::process::keep_over_exec(lock.as_raw_fd())
    };
    if let Err(error) = prepare() {
        return error;
    }
    let numbers = [connection.as_raw_fd(), lock.as_raw_fd()].map(|number| number.to_string());
    let own = std::env::args_os().next().unwrap_or_default();
    let words = std::iter::once(own.as_bytes())
        .chain(arguments.iter().map(|word| word.as_bytes()))
        .chain(numbers.iter().map(String::as_bytes));
    let words: Vec<CString> = words.filter_map(|word| CString::new(word).ok()).collect();
    match host::restart_protected(&words) {
        Ok(never) => match never {},
        Err(error) => io::Error::other(error.words()),
    }
}

/// Takes the descriptors that [`spawn`] has handed on, once.
///
/// # Errors
/// When these are no open descriptors.
pub fn take_inherited(connection: i32, lock: i32) -> io::Result<Inherited> {
    Ok(Inherited {
        connection: sys::process::take_descriptor(connection)?,
        lock: sys::process::take_descriptor(lock)?,
    })
}
