//! Making processes and becoming another program.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

use crate::config::{MemoryPolicy, Scheduler};

/// Has `/proc/PID/cmdline` of this process say `name`, and `environ` nothing. For a process with one thread that does not
/// look at its arguments and its environment any more.
pub(crate) fn replace_arguments(name: &[u8]) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Behind the name, which may have spaces in it, is field 3 of proc(5).
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let mut places =
        fields.split_ascii_whitespace().skip(48 - 3).map(|field| field.parse::<usize>().unwrap_or(0));
    for (is_arguments, (start, end)) in
        [true, false].into_iter().map_while(|kind| Some((kind, (places.next()?, places.next()?))))
    {
        let Some(length) = end.checked_sub(start).filter(|_| start != 0) else { continue };
        let mut text = vec![0_u8; length];
        if let (true, [begin @ .., last]) = (is_arguments, &mut text[..]) {
            let name = name.get(..begin.len()).unwrap_or(name);
            begin.get_mut(..name.len()).unwrap_or_default().copy_from_slice(name);
            // Where the end is not zero, the kernel takes what is before the first zero for all (setproctitle(3)).
            *last = 1;
        }
        // SAFETY: the kernel put the strings of the arguments, or of the environment, into these bytes of the stack,
        // writable, when the program was executed. Nobody else writes to them, there being one thread, and nobody has a
        // reference to them that is used later, which the caller promises; the libraries' pointers to them find strings
        // that end, as the last byte is followed by another string or by the zeros at the end of the stack.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), start as *mut u8, length) };
    }
    Ok(())
}

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

/// Of linux/sched.h; the C library's constant is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How a child is born.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Birth<'a> {
    /// New namespaces (`CLONE_NEW*` bits).
    pub(crate) namespaces: u64,
    /// A cgroup of the unified hierarchy.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// The caller's parent becomes its parent.
    pub(crate) as_sibling: bool,
}

/// A child born in new namespaces; see [`fork`].
pub(crate) fn fork_into(namespaces: u64) -> io::Result<Forked> {
    fork(Birth { namespaces, ..Birth::default() })
}

/// `clone3(2)` without shared memory: a fork whose child is born as `birth` says.
///
/// The caller must have one thread only: another thread's locks (the allocator's among them) would stay
/// locked in the child for ever. [`is_single_threaded`] tells.
pub(crate) fn fork(birth: Birth<'_>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut flags = birth.namespaces | libc::CLONE_PIDFD as u64;
    if birth.as_sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    if birth.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let arguments = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        // A sibling has the signal of its new parent's other child.
        exit_signal: if birth.as_sibling { 0 } else { libc::SIGCHLD as u64 },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: birth.cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
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

/// Closes every descriptor from `first` on, those of `keep` excepted.
///
/// Owners of such descriptors in this process (`OwnedFd`, `File`) must not be used or dropped afterwards:
/// for a child that will exec or exit only.
pub(crate) fn close_from_except(first: u32, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut next = first;
    for fd in kept.into_iter().filter(|fd| *fd >= first) {
        if fd > next {
            close_range(next, fd - 1, 0)?;
        }
        next = fd.saturating_add(1);
    }
    close_range(next, u32::MAX, 0)
}

/// Has the descriptor with this number survive exec.
pub(crate) fn keep_over_exec(number: i32) -> io::Result<()> {
    // SAFETY: F_SETFD takes an integer and touches no memory; a number that is not open makes it fail with EBADF.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over a descriptor that was handed to this program by its number; close-on-exec from now on.
///
/// To be called once for a number, before anything else can have been opened under it.
pub(crate) fn take_descriptor(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an integer and touches no memory; it fails for a number that is not open.
    if number <= libc::STDERR_FILENO || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::other(format!("descriptor {number} was not handed on")));
    }
    // SAFETY: it is open (above), came over exec, and nothing in this program owns it: see the function's text.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// True when a descriptor of this number is open.
pub(crate) fn is_open(number: i32) -> bool {
    // SAFETY: F_GETFD takes no argument and touches no memory.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
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

/// Moves the calling process into the namespaces that `fd` stands for: a namespace's file, or (several `kinds` at
/// once) a pidfd. It must have one thread only. A pid namespace is entered by its children.
pub(crate) fn set_namespaces(fd: impl AsFd, kinds: u64) -> io::Result<()> {
    let kinds = libc::c_int::try_from(kinds).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is borrowed for the call, which touches no memory of this process.
    let result = unsafe { libc::setns(fd.as_fd().as_raw_fd(), kinds) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the execution domain.
pub(crate) fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: the call takes an integer and touches no memory.
    let result = unsafe { libc::personality(persona) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets class and priority of the calling thread's disk I/O (`IOPRIO_PRIO_VALUE`).
pub(crate) fn set_io_priority(value: i32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: the call takes integers; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the scheduling policy of the calling thread.
pub(crate) fn set_scheduler(scheduler: &Scheduler) -> io::Result<()> {
    /// `struct sched_attr` of linux/sched/types.h, its first published size.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let Scheduler { policy, flags, nice, priority, runtime, deadline, period } = *scheduler;
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the struct is live, names its own size, and is only read; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the NUMA policy of the calling thread and of what it starts.
pub(crate) fn set_memory_policy(policy: &MemoryPolicy) -> io::Result<()> {
    let bits = usize::BITS as usize;
    let mut mask = vec![0_usize; policy.nodes.iter().max().map_or(0, |last| last / bits + 1)];
    for node in &policy.nodes {
        if let Some(word) = mask.get_mut(node / bits) {
            *word |= 1 << (node % bits);
        }
    }
    // The kernel leaves the last bit of the number it is given out.
    let (pointer, count) = match mask.is_empty() {
        true => (std::ptr::null(), 0),
        false => (mask.as_ptr(), mask.len() * bits + 1),
    };
    // SAFETY: the kernel reads `count - 1` bits from the vector, which has as many and lives beyond the call, or
    // nothing where the pointer is null.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, policy.mode, pointer, count) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Dead children go to this process, those of dead children too.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes an integer.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
