//! Network namespaces by descriptor. Work in another one is done by a thread that goes there and ends there.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Doing, Error, Result};
use crate::netlink::socket::Socket;
use crate::sys;

/// Makes a network namespace whose loopback interface is up. It lives as long as a descriptor of it or a process in it.
///
/// # Errors
/// Those of unshare(2): mostly `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` at the limit of namespaces.
pub fn create() -> Result<OwnedFd> {
    in_thread(|| {
        sys::unshare::new_network_namespace().doing(|| "make a network namespace".into())?;
        let namespace =
            File::open("/proc/thread-self/ns/net").doing(|| "open the new network namespace".into())?;
        loopback_up()?;
        Ok(namespace.into())
    })
}

/// Opens the namespace of a process, or one that is mounted somewhere.
///
/// # Errors
/// When it is not there.
pub fn open(path: &Path) -> Result<OwnedFd> {
    let file = File::open(path).map_err(Error::io("open network namespace", path))?;
    Ok(file.into())
}

/// Brings the loopback interface of the calling thread's namespace up.
pub(crate) fn loopback_up() -> Result<()> {
    let up = || {
        let mut socket = Socket::route()?;
        // It is number 1 in every namespace.
        socket.set_up(1)
    };
    up().doing(|| "bring interface \"lo\" up".into())
}

/// Runs `work` in a thread that is in `namespace`.
pub(crate) fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    in_thread(|| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .doing(|| "enter the container's network namespace".into())?;
        work()
    })
}

fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(256 << 10);
        let handle = thread.spawn_scoped(scope, work).doing(|| "start a thread".into())?;
        handle.join().unwrap_or_else(|_| {
            Err(Error::Kernel {
                doing: "work in another network namespace".into(),
                source: std::io::Error::other("the thread ended early"),
            })
        })
    })
}
