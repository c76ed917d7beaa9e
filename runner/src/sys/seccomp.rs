//! `seccomp(2)`: installing a compiled filter.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Operation.
    pub(crate) code: u16,
    /// So many are passed over when the comparison holds.
    pub(crate) then: u8,
    /// So many when not.
    pub(crate) or: u8,
    /// Operand.
    pub(crate) constant: u32,
}

/// Adds a filter to those of the calling thread, for itself and its children. Needs no_new_privs or
/// CAP_SYS_ADMIN. `flags` are `SECCOMP_FILTER_FLAG_*`; with `NEW_LISTENER` the result is the listener.
pub(crate) fn install(program: &[Instruction], flags: u64) -> io::Result<Option<OwnedFd>> {
    /// `struct sock_fprog` of linux/filter.h.
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const Instruction,
    }
    let length = libc::c_ushort::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp filter is too long"))?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: the kernel copies `length` instructions from the slice borrowed here and keeps no pointer;
    // `Instruction` has the kernel's layout (repr(C)).
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: with NEW_LISTENER a successful call returned a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}
