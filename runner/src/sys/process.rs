//! Making processes and becoming another program.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// What [`fork_into`] returns, on either side.
#[derive(Debug)]
pub(crate) enum Forked {
    /// In the caller: the child and a descriptor of it.
    Parent {
        /// Its id in the caller's pid namespace.
        pid: Pid,
        /// Close-on-exec.
        pidfd: OwnedFd,
    },
    /// In the child.
    Child,
}

/// `clone3(2)` without shared memory: a fork whose child is born in new namespaces (`CLONE_NEW*` bits).
///
/// The caller must have one thread only: another thread's locks (the allocator's among them) would stay
/// locked in the child for ever. [`is_single_threaded`] tells.
pub(crate) fn fork_into(namespaces: u64) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let arguments = libc::clone_args {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: the struct is live and of the size passed. Without CLONE_VM and with no stack the child
    // continues here on its own copy of all memory, as after fork.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Forked::Child),
        pid if pid > 0 => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // SAFETY: with CLONE_PIDFD a successful call has stored a new descriptor that only we know.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            match pid {
                Some(pid) => Ok(Forked::Parent { pid, pidfd }),
                None => Err(io::Error::other("clone3 returned an impossible process id")),
            }
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// True when this process has one thread only.
pub(crate) fn is_single_threaded() -> io::Result<bool> {
    Ok(std::fs::read_dir("/proc/self/task")?.take(2).count() == 1)
}

/// Leaves the process at once, without running exit handlers of the parent that was copied.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes any status, never returns, and runs no code of this process.
    unsafe { libc::_exit(status) }
}

/// Becomes the program at `path`. Returns only on failure.
pub(crate) fn exec(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer, all strings are NUL-terminated and outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Becomes the program that `file` is open on. Returns only on failure.
pub(crate) fn exec_descriptor(file: impl AsFd, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer, all strings are NUL-terminated and outlive the call, and
    // the descriptor is borrowed for it.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Makes every descriptor from `first` on close-on-exec.
pub(crate) fn set_close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on, `keep` excepted.
///
/// Owners of such descriptors in this process (`OwnedFd`, `File`) must not be used or dropped afterwards:
/// for a child that will exec or exit only.
pub(crate) fn close_from_except(first: u32, keep: impl AsFd) -> io::Result<()> {
    let keep = keep.as_fd().as_raw_fd().unsigned_abs();
    if keep > first {
        close_range(first, keep - 1, 0)?;
    }
    close_range(first.max(keep.saturating_add(1)), u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the call touches no memory; what closing means to owners is the callers' contract.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves the calling process into new namespaces (`CLONE_NEW*` bits). It must have one thread only.
pub(crate) fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: without CLONE_FILES, CLONE_FS or CLONE_VM among the bits that callers pass, the call changes
    // namespaces only and touches no memory.
    let result = unsafe { libc::unshare(namespaces) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a new, anonymous session keyring.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING with a null name touches no memory of the caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING as libc::c_int,
            std::ptr::null::<libc::c_char>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
