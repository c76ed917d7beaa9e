//! `mount_setattr(2)`: attributes and propagation of mounts, recursively if wanted.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `struct mount_attr` of linux/mount.h, its first published size.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 for no change.
    pub(crate) propagation: u64,
    /// Descriptor of a user namespace for `MOUNT_ATTR_IDMAP`.
    pub(crate) userns_fd: u64,
}

/// Changes the mount that `path` beneath `dir` is the root of (`dir` itself when `path` is empty), and with
/// `recursive` all mounts below it. Linux 5.12 or later.
pub(crate) fn mount_setattr(
    dir: impl AsFd,
    path: &CStr,
    recursive: bool,
    attributes: MountAttr,
) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` is NUL-terminated, `attributes` is a live struct of the size passed, and the kernel
    // only reads both; the descriptor is borrowed for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
