//! Calls without a safe wrapper: fork, closing what a caller left open, and the zone of the clock.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use rustix::process::Pid;

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The new process. It must not return to its caller's caller: destructors there are the parent's.
    Child,
    /// The old one, with the id of the new.
    Parent(Pid),
}

/// Forks a process that has one thread.
///
/// # Errors
/// `EBUSY` wrapped in words when there are more threads; whatever fork(2) reports.
pub(crate) fn fork() -> io::Result<Fork> {
    // A directory for each, and two links of its own.
    let threads = std::fs::metadata("/proc/self/task").map_or(1, |tasks| tasks.nlink().saturating_sub(2));
    if threads != 1 {
        return Err(io::Error::other(format!("fork with {threads} threads running")));
    }
    // SAFETY: there is one thread (checked above; only this thread could start another), so no lock of the
    // allocator or of std is held by a thread that would be missing in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or_else(|| io::Error::other("fork returned an impossible process id")),
    }
}

/// The time at which the clock of this machine's zone shows what one of UTC shows `seconds` after 1970; `None` where there
/// is none.
pub(crate) fn from_local_time(seconds: i64) -> Option<i64> {
    // SAFETY: all zeros are a value of this structure of numbers and one pointer, which may be null.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to what lives until the call is over; `parts` is written.
    if unsafe { libc::gmtime_r(&seconds, &mut parts) }.is_null() {
        return None;
    }
    // Whether it was summer is for the C library to find out.
    parts.tm_isdst = -1;
    // SAFETY: `parts` is a time that gmtime_r has made.
    match unsafe { libc::mktime(&mut parts) } {
        -1 => None,
        local => Some(local),
    }
}

/// Descriptors above stderr that this process holds now, without `except`.
pub(crate) fn open_descriptors(except: BorrowedFd<'_>) -> Vec<RawFd> {
    use std::os::fd::AsRawFd;
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let listed: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > libc::STDERR_FILENO && *fd != except.as_raw_fd())
        .collect();
    // The listing's own descriptor is among them, and closed by now: its number must not be closed again later,
    // when something else may have it.
    // SAFETY: F_GETFD takes any number and answers EBADF for one that is not open.
    listed.into_iter().filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1).collect()
}

/// Closes descriptors inherited from the caller.
///
/// To be called only in a forked child that owns none of them: their owners in the parent's code never run here.
pub(crate) fn close_all(descriptors: &[RawFd]) {
    for fd in descriptors {
        // SAFETY: inherited at fork, listed before this process opened anything of its own, and no owner of it
        // is ever dropped in this process (see above). A failure leaves it closed or as it was.
        unsafe { libc::close(*fd) };
    }
}

/// The signals that ask the mount process to leave: SIGTERM, SIGINT and SIGHUP.
#[derive(Clone, Copy)]
pub(crate) struct LeaveSignals(libc::sigset_t);

impl std::fmt::Debug for LeaveSignals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LeaveSignals")
    }
}

impl LeaveSignals {
    /// All three; with `honour_ignored` without SIGINT and SIGHUP where the caller had them ignored (`nohup`, a
    /// shell's background job). Linux queues a blocked signal even when it is ignored, so they would arrive.
    pub(crate) fn new(honour_ignored: bool) -> Self {
        // SAFETY: an all-zero sigset_t is valid storage, and sigemptyset initialises it.
        let mut set = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            set
        };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            if !(honour_ignored && signal != libc::SIGTERM && is_ignored(signal)) {
                // SAFETY: the set is initialised and the number valid, so the call cannot fail.
                unsafe { libc::sigaddset(&raw mut set, signal) };
            }
        }
        Self(set)
    }

    /// Blocks them in this thread and in those it starts, so that [`Self::wait`] gets them.
    ///
    /// # Errors
    /// Whatever pthread_sigmask(3) reports.
    pub(crate) fn block(&self) -> io::Result<()> {
        // SAFETY: the set is initialised, and the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const self.0, std::ptr::null_mut()) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Waits for one of them; they must be blocked. Returns its number.
    ///
    /// # Errors
    /// Whatever sigwait(3) reports.
    pub(crate) fn wait(&self) -> io::Result<libc::c_int> {
        let mut signal = 0;
        // SAFETY: both pointers are to initialised memory that outlives the call.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(signal),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: with no new action the call only fills `action`, for which zeroes are valid storage.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}
