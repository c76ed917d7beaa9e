//! A thread of its own network namespace.
#![allow(unsafe_code)]

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Moves the calling thread into a new network namespace. For threads that do one thing and end.
pub(crate) fn new_network_namespace() -> Result<(), Errno> {
    // SAFETY: unsharing is unsafe where it separates the threads' descriptors or filesystem state, on which safe code
    // relies. A network namespace is neither: descriptors stay common, sockets keep theirs.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}
