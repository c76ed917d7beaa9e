#![allow(unsafe_code)]
//! Scheduling policy of threads (sched(7)). Thread ids are those of gettid(2); 0 is the calling thread.

use std::io;

/// The policies that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// `SCHED_OTHER`, with the nice value that the thread has.
    Other,
    /// `SCHED_BATCH`: the same share of the CPU, but a thread that wakes up does not interrupt the one that runs.
    Batch,
    /// `SCHED_IDLE`: runs when no other thread wants the CPU, and makes that CPU count as idle.
    Idle,
}

/// Sets the policy of a thread.
///
/// # Errors
/// EPERM: going back from `Idle` needs CAP_SYS_NICE (or RLIMIT_NICE); ESRCH.
pub fn set_policy(thread: i32, policy: Policy) -> io::Result<()> {
    let number = match policy {
        Policy::Other => libc::SCHED_OTHER,
        Policy::Batch => libc::SCHED_BATCH,
        Policy::Idle => libc::SCHED_IDLE,
    };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads a `struct sched_param` at the pointer, which outlives the call.
    match unsafe { libc::sched_setscheduler(thread, number, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// True if a thread has the policy that threads have by default.
pub fn has_default_policy(thread: i32) -> bool {
    // SAFETY: sched_getscheduler takes an integer.
    unsafe { libc::sched_getscheduler(thread) == libc::SCHED_OTHER }
}
