//! Making a monitor: the program starts itself again, in a session and a mount namespace of its own.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;

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

/// What was begun for a monitor before it started.
#[derive(Debug)]
pub struct Begun {
    /// Open in the monitor, too.
    pub descriptor: OwnedFd,
    /// What else it has to know.
    pub word: OsString,
}

/// Starts `arguments` of the running program as a monitor, which gets the numbers of its two descriptors as further
/// arguments (for [`take_inherited`]). It belongs to no terminal, and what it mounts is seen by nobody else. The
/// connection to it comes back. The calling process must have one thread.
///
/// `begin` is called in the process that becomes the monitor, in its session and mount namespace and with no other
/// descriptors than these two, right before the program starts again: what it sets going there goes on meanwhile, and
/// is the monitor's. What it returns are two more arguments: the descriptor's number, and the word.
///
/// # Errors
/// Of the system calls. What fails later shows as the connection's end, or is said on it.
pub fn spawn(
    arguments: &[&OsStr],
    lock: BorrowedFd<'_>,
    begin: impl FnOnce() -> Option<Begun>,
) -> io::Result<Connection> {
    if !sys::process::is_single_threaded()? {
        return Err(io::Error::other("a monitor cannot be started from a process with several threads"));
    }
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    match sys::process::fork_into(0)? {
        Forked::Child => {
            let error = become_monitor(arguments, &theirs, lock, begin);
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
fn become_monitor(
    arguments: &[&OsStr],
    connection: &OwnedFd,
    lock: BorrowedFd<'_>,
    begin: impl FnOnce() -> Option<Begun>,
) -> io::Error {
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
    // Whatever goes wrong there, the monitor does itself.
    let begun = std::panic::catch_unwind(AssertUnwindSafe(begin)).ok().flatten();
    let begun = begun.filter(|begun| sys::process::keep_over_exec(begun.descriptor.as_raw_fd()).is_ok());
    let numbers = [Some(connection.as_raw_fd()), Some(lock.as_raw_fd())]
        .into_iter()
        .chain([begun.as_ref().map(|begun| begun.descriptor.as_raw_fd())])
        .flatten()
        .map(|number| number.to_string())
        .collect::<Vec<_>>();
    let own = std::env::args_os().next().unwrap_or_default();
    let words = std::iter::once(own.as_bytes())
        .chain(arguments.iter().map(|word| word.as_bytes()))
        .chain(numbers.iter().map(String::as_bytes))
        .chain(begun.iter().map(|begun| begun.word.as_bytes()));
    let words: Vec<CString> = words.filter_map(|word| CString::new(word).ok()).collect();
    match host::restart_protected(&words) {
        Ok(never) => match never {},
        Err(error) => io::Error::other(error.words()),
    }
}

/// Takes the descriptor of what was begun ([`Begun`]), once.
///
/// # Errors
/// When it is no open descriptor.
pub fn take_begun(descriptor: i32) -> io::Result<OwnedFd> {
    sys::process::take_descriptor(descriptor)
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
