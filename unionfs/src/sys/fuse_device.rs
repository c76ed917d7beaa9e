#![allow(unsafe_code)]
//! The ioctls of /dev/fuse (`linux/fuse.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `FUSE_DEV_IOC_CLONE`: _IOR(229, 0, uint32_t)
const CLONE: libc::Ioctl = 0x8004_e500;
/// `FUSE_DEV_IOC_BACKING_OPEN`: _IOW(229, 1, struct fuse_backing_map)
const BACKING_OPEN: libc::Ioctl = 0x4010_e501;
/// `FUSE_DEV_IOC_BACKING_CLOSE`: _IOW(229, 2, uint32_t)
const BACKING_CLOSE: libc::Ioctl = 0x4004_e502;

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

fn check(result: libc::c_int) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Connects a freshly opened `device` to the mount of `connected`.
///
/// # Errors
/// EINVAL where `connected` belongs to no mount.
pub fn connect(device: BorrowedFd<'_>, connected: BorrowedFd<'_>) -> io::Result<()> {
    let source: u32 = connected.as_raw_fd() as u32;
    // SAFETY: the kernel reads a u32 at the pointer, which outlives the call; both descriptors are open.
    check(unsafe { libc::ioctl(device.as_raw_fd(), CLONE, &raw const source) }).map(drop)
}

/// Registers `file` and returns its backing id.
///
/// # Errors
/// EPERM, EOPNOTSUPP, ELOOP (see Documentation/filesystems/fuse/fuse-passthrough.rst).
pub fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the kernel reads a `struct fuse_backing_map` at the pointer, which outlives the call and has its layout.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN, &raw const map) })
}

/// Takes a backing id back.
///
/// # Errors
/// ENOENT for an id that is not registered.
pub fn close_backing(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the kernel reads a u32 at the pointer, which outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const id) }).map(drop)
}
