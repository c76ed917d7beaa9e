#![allow(unsafe_code)]
//! Extended attributes of a name beneath a directory descriptor, without following a symlink.
//!
//! Linux 6.13 has `getxattrat` and its family; before that the same object is reached as
//! `/proc/self/fd/N/NAME` by the calls that do not follow links.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// `struct xattr_args` of linux/xattr.h.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Cleared when the kernel says ENOSYS once.
static HAVE_AT: AtomicBool = AtomicBool::new(true);

/// An object that carries xattrs.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// The name in the directory, itself (a symlink is not followed).
    Name(BorrowedFd<'a>, &'a CStr),
    /// The object that the descriptor (also an `O_PATH` one) refers to.
    Fd(BorrowedFd<'a>),
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(result: libc::c_long) -> Result<usize, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result as usize) }
}

/// A path of /proc that names the target, with its terminating NUL, and whether its last component is to be
/// followed (it is for a descriptor: the magic link leads to the object itself).
fn proc_path(target: Target<'_>) -> (Vec<u8>, bool) {
    match target {
        Target::Fd(fd) => (format!("/proc/self/fd/{}\0", fd.as_raw_fd()).into_bytes(), true),
        Target::Name(dir, name) => {
            let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            path.extend_from_slice(name.to_bytes_with_nul());
            (path, false)
        }
    }
}

fn by_name<'a>(target: Target<'a>) -> Option<(i32, &'a CStr)> {
    match target {
        Target::Name(dir, name) if HAVE_AT.load(Ordering::Relaxed) => Some((dir.as_raw_fd(), name)),
        _ => None,
    }
}

/// An `O_PATH` descriptor takes no calls of its own; it is reached by its path in /proc.
fn is_path_only(errno: Errno) -> bool {
    errno == Errno::BADF
}

fn lacks_at(errno: Errno) -> bool {
    if errno == Errno::NOSYS {
        HAVE_AT.store(false, Ordering::Relaxed);
        return true;
    }
    false
}

/// Reads the value of `name` into `value` (empty: asks for the size) and returns its length in bytes.
///
/// # Errors
/// ENODATA when there is none, ERANGE when `value` is too short, and what getxattr(2) lists.
pub fn get(target: Target<'_>, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    if let Some((dir, file)) = by_name(target) {
        let args = XattrArgs { value: value.as_mut_ptr() as u64, size: value.len() as u32, flags: 0 };
        // SAFETY: names are NUL-terminated; `args` describes a buffer that outlives the call.
        let result = unsafe {
            libc::syscall(
                SYS_GETXATTRAT,
                dir,
                file.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                name.as_ptr(),
                &raw const args,
                size_of::<XattrArgs>(),
            )
        };
        match check(result) {
            Err(e) if lacks_at(e) => {}
            other => return other,
        }
    }
    if let Target::Fd(fd) = target {
        let (data, len) = (value.as_mut_ptr().cast(), value.len());
        // SAFETY: `name` is a C string, the buffer is as long as said.
        let result = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), data, len) };
        match check(result as libc::c_long) {
            Err(e) if is_path_only(e) => {}
            other => return other,
        }
    }
    let (path, follow) = proc_path(target);
    let (data, len) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: `path` ends in NUL, `name` is a C string, the buffer is as long as said.
    let result = unsafe {
        if follow {
            libc::getxattr(path.as_ptr().cast(), name.as_ptr(), data, len)
        } else {
            libc::lgetxattr(path.as_ptr().cast(), name.as_ptr(), data, len)
        }
    };
    check(result as libc::c_long)
}

/// Sets `name` to `value`; `flags` is 0, `XATTR_CREATE` or `XATTR_REPLACE`.
///
/// # Errors
/// What setxattr(2) lists.
pub fn set(target: Target<'_>, name: &CStr, value: &[u8], flags: i32) -> Result<(), Errno> {
    if let Some((dir, file)) = by_name(target) {
        let args = XattrArgs { value: value.as_ptr() as u64, size: value.len() as u32, flags: flags as u32 };
        // SAFETY: names are NUL-terminated; `args` describes a buffer that outlives the call.
        let result = unsafe {
            libc::syscall(
                SYS_SETXATTRAT,
                dir,
                file.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                name.as_ptr(),
                &raw const args,
                size_of::<XattrArgs>(),
            )
        };
        match check(result) {
            Err(e) if lacks_at(e) => {}
            other => return other.map(|_| ()),
        }
    }
    if let Target::Fd(fd) = target {
        let (data, len) = (value.as_ptr().cast(), value.len());
        // SAFETY: `name` is a C string, the buffer is as long as said.
        let result = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), data, len, flags) };
        match check(result.into()) {
            Err(e) if is_path_only(e) => {}
            other => return other.map(|_| ()),
        }
    }
    let (path, follow) = proc_path(target);
    let (data, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: `path` ends in NUL, `name` is a C string, the buffer is as long as said.
    let result = unsafe {
        if follow {
            libc::setxattr(path.as_ptr().cast(), name.as_ptr(), data, len, flags)
        } else {
            libc::lsetxattr(path.as_ptr().cast(), name.as_ptr(), data, len, flags)
        }
    };
    check(result.into()).map(|_| ())
}

/// Lists the names, each ended by NUL, into `list` (empty: asks for the size); returns the length in bytes.
///
/// # Errors
/// ERANGE when `list` is too short, and what listxattr(2) lists.
pub fn list(target: Target<'_>, list: &mut [u8]) -> Result<usize, Errno> {
    if let Some((dir, file)) = by_name(target) {
        // SAFETY: `file` is NUL-terminated; the buffer is as long as said.
        let result = unsafe {
            libc::syscall(
                SYS_LISTXATTRAT,
                dir,
                file.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                list.as_mut_ptr(),
                list.len(),
            )
        };
        match check(result) {
            Err(e) if lacks_at(e) => {}
            other => return other,
        }
    }
    if let Target::Fd(fd) = target {
        let (data, len) = (list.as_mut_ptr().cast(), list.len());
        // SAFETY: the buffer is as long as said.
        let result = unsafe { libc::flistxattr(fd.as_raw_fd(), data, len) };
        match check(result as libc::c_long) {
            Err(e) if is_path_only(e) => {}
            other => return other,
        }
    }
    let (path, follow) = proc_path(target);
    let (data, len) = (list.as_mut_ptr().cast(), list.len());
    // SAFETY: `path` ends in NUL; the buffer is as long as said.
    let result = unsafe {
        if follow {
            libc::listxattr(path.as_ptr().cast(), data, len)
        } else {
            libc::llistxattr(path.as_ptr().cast(), data, len)
        }
    };
    check(result as libc::c_long)
}

/// Removes `name`.
///
/// # Errors
/// ENODATA when there is none, and what removexattr(2) lists.
pub fn remove(target: Target<'_>, name: &CStr) -> Result<(), Errno> {
    if let Some((dir, file)) = by_name(target) {
        // SAFETY: both names are NUL-terminated.
        let result = unsafe {
            libc::syscall(SYS_REMOVEXATTRAT, dir, file.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, name.as_ptr())
        };
        match check(result) {
            Err(e) if lacks_at(e) => {}
            other => return other.map(|_| ()),
        }
    }
    if let Target::Fd(fd) = target {
        // SAFETY: `name` is a C string.
        let result = unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) };
        match check(result.into()) {
            Err(e) if is_path_only(e) => {}
            other => return other.map(|_| ()),
        }
    }
    let (path, follow) = proc_path(target);
    // SAFETY: `path` and `name` end in NUL.
    let result = unsafe {
        if follow {
            libc::removexattr(path.as_ptr().cast(), name.as_ptr())
        } else {
            libc::lremovexattr(path.as_ptr().cast(), name.as_ptr())
        }
    };
    check(result.into()).map(|_| ())
}

/// The whole value of `name`, or `None` when there is none (or the filesystem has no xattrs of the kind).
///
/// # Errors
/// Any errno but ENODATA and EOPNOTSUPP.
pub fn get_vec(target: Target<'_>, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match get(target, name, &mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(Some(buffer));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(Errno::RANGE) => {
                // The value may grow between the two calls: ask again with room to spare.
                let size = match get(target, name, &mut []) {
                    Ok(size) => size,
                    Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
                    Err(e) => return Err(e),
                };
                buffer.resize(size + 64, 0);
            }
            Err(e) => return Err(e),
        }
    }
}

/// All names, without their NULs; empty where the filesystem has no xattrs.
///
/// # Errors
/// Any errno but EOPNOTSUPP.
pub fn list_vec(target: Target<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buffer = vec![0; 512];
    loop {
        match list(target, &mut buffer) {
            Ok(len) => {
                return Ok(buffer[..len]
                    .split(|b| *b == 0)
                    .filter(|n| !n.is_empty())
                    .map(Vec::from)
                    .collect());
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) => {
                let size = list(target, &mut [])?;
                buffer.resize(size + 256, 0);
            }
            Err(e) => return Err(e),
        }
    }
}
