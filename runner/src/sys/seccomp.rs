//! Installing a seccomp filter without the `no_new_privs` that wrappers set on their own.
#![allow(unsafe_code)]

use std::io;

/// Installs `program` on the calling thread. Needs `no_new_privs` or CAP_SYS_ADMIN in its user namespace.
pub(crate) fn install(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    /// `struct sock_fprog` of linux/filter.h.
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const seccompiler::sock_filter,
    }
    let length = libc::c_ushort::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp filter is too long"))?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: the kernel copies `length` instructions from the slice borrowed here and keeps no pointer;
    // seccompiler's sock_filter has the kernel's layout (repr(C)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0 as libc::c_ulong,
            &raw const program,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
