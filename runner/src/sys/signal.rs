//! Signals as a descriptor, and the state of signals that a new program must find.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set, sigaddset changes an initialised one; both only touch
    // the memory passed. An invalid signal number makes sigaddset fail without effect.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks `signals` in the calling thread, besides those blocked already.
pub(crate) fn block(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is live and initialised; no old set is asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Unblocks every signal of the calling thread.
pub(crate) fn unblock_all() -> io::Result<()> {
    let none = set_of(&[]);
    // SAFETY: `none` is a live, initialised set; no old set is asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Sets every signal's action to the default, as a program expects that is started by a shell: ignored
/// signals (SIGPIPE in a Rust program, SIGHUP under nohup) would survive exec otherwise.
pub(crate) fn reset_actions() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours; for numbers that cannot be changed (SIGKILL, SIGSTOP, the C
        // library's own) the call fails without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ignores a signal, or has it do again what it does by default.
pub(crate) fn ignore(signal: i32, ignored: bool) {
    let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither action runs code of ours; for a number that cannot be changed the call fails without effect.
    unsafe { libc::signal(signal, action) };
}

/// True when `signal` is ignored in this process.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given; the call writes the present one to live memory of its size, which
    // was zeroed, so that it is initialised even when the call fails.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Signals of the calling thread as a descriptor; they must be blocked.
#[derive(Debug)]
pub(crate) struct SignalFd(OwnedFd);

impl SignalFd {
    /// A non-blocking, close-on-exec descriptor that tells of `signals`.
    pub(crate) fn new(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals);
        // SAFETY: `set` is live and initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was made by the call above and is owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that has arrived, if one has.
    pub(crate) fn next(&self) -> io::Result<Option<i32>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is live and of the size passed; a signalfd writes whole structs only.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if read < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: zeroed before, and overwritten by the kernel as far as `read` says; any bits are valid.
        let info = unsafe { info.assume_init() };
        Ok(i32::try_from(info.ssi_signo).ok().filter(|signal| *signal != 0))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends any signal number, real-time ones included, to the process of a pidfd.
pub(crate) fn send(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call; a null siginfo means "as kill does".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
