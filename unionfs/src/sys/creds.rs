#![allow(unsafe_code)]
//! Per-thread identity: filesystem uid and gid, umask, securebits, capabilities.

use std::cell::Cell;
use std::io;

/// What this thread's identity is set to at the moment; the kernel starts threads with the creator's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    uid: u32,
    gid: u32,
}

thread_local! {
    static PREPARED: Cell<bool> = const { Cell::new(false) };
    static OWN_FS: Cell<bool> = const { Cell::new(false) };
    static OWN_UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// `SECBIT_NO_SETUID_FIXUP` of linux/securebits.h: keep capabilities when the filesystem uid leaves 0.
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// Gives this thread a umask (and working directory) of its own. Repeated calls are free.
fn own_fs() -> bool {
    if !OWN_FS.get() {
        // SAFETY: unshare(CLONE_FS) takes no pointers and only gives this thread its own cwd, root and umask.
        OWN_FS.set(unsafe { libc::unshare(libc::CLONE_FS) } == 0);
    }
    OWN_FS.get()
}

/// Makes this thread fit to act for callers: securebits that keep its capabilities while the filesystem uid is
/// another's. Repeated calls are free.
///
/// Returns whether the identity can be switched without losing capabilities.
pub fn prepare_thread() -> bool {
    if PREPARED.get() {
        return true;
    }
    // SAFETY: prctl with integer arguments only.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    if bits < 0 {
        return false;
    }
    // SAFETY: prctl with integer arguments only; affects this thread alone.
    let set = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong | SECBIT_NO_SETUID_FIXUP) };
    if set != 0 {
        return false;
    }
    PREPARED.set(true);
    true
}

/// Sets this thread's umask to `mask`, with a system call only when it changes. False where a thread cannot have
/// one of its own (a seccomp filter): the caller then masks the mode itself, and nothing is set.
#[must_use]
pub fn set_umask(mask: u32) -> bool {
    if OWN_UMASK.get() == Some(mask) {
        return true;
    }
    if !own_fs() {
        return false;
    }
    // SAFETY: umask cannot fail and takes an integer.
    unsafe { libc::umask(mask as libc::mode_t) };
    OWN_UMASK.set(Some(mask));
    true
}

/// The thread acts as another owner on filesystems until this is dropped. Gid is taken before uid and both are
/// given back in the reverse order.
#[derive(Debug)]
pub struct ActingAs {
    previous: Option<(u32, u32)>,
}

impl ActingAs {
    /// Takes `uid` and `gid` as this thread's filesystem ids. Acting as what the thread is already costs nothing.
    ///
    /// # Errors
    /// EPERM where the kernel refuses the switch (ids not mapped in this user namespace, or no capability).
    pub fn new(uid: u32, gid: u32, own: (u32, u32)) -> io::Result<Self> {
        if (uid, gid) == own {
            return Ok(Self { previous: None });
        }
        let guard = Self { previous: Some(own) };
        set_ids(Identity { uid, gid })?;
        Ok(guard)
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.previous {
            // Going back to one's own real ids is always permitted, so a failure cannot be met here.
            if let Err(e) = set_ids(Identity { uid, gid }) {
                tracing::error!("give back filesystem ids: {e}");
            }
        }
    }
}

fn set_ids(id: Identity) -> io::Result<()> {
    // The calls report the previous id, never an error: a second call with an impossible id reads the current one.
    // SAFETY: setfsgid and setfsuid take integers and change this thread only (raw system calls, not glibc's).
    unsafe {
        libc::syscall(libc::SYS_setfsgid, libc::c_long::from(id.gid));
        if libc::syscall(libc::SYS_setfsgid, -1 as libc::c_long) != libc::c_long::from(id.gid) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        libc::syscall(libc::SYS_setfsuid, libc::c_long::from(id.uid));
        if libc::syscall(libc::SYS_setfsuid, -1 as libc::c_long) != libc::c_long::from(id.uid) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    Ok(())
}

/// True when this process has `capability` (number of linux/capability.h) in its effective set.
pub fn has_capability(capability: u32) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.bits() & (1 << capability) != 0)
}

/// The `CapEff` mask in the text of a /proc/PID/status file.
pub fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// True when this process' user namespace is the first one, which maps every id to itself.
pub fn in_initial_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"])
}
