#![allow(unsafe_code)]
//! Writing a file's pages to its filesystem without committing its metadata.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Writes all dirty pages of a file and waits for them: their blocks are allocated and written then. What makes them
/// part of the file may still be in the journal only (sync_file_range(2)).
///
/// # Errors
/// EIO, ENOSPC, EDQUOT: writing failed.
pub fn write_back(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    loop {
        // SAFETY: takes integers only; the descriptor is open.
        if unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } == 0 {
            return Ok(());
        }
        match std::io::Error::last_os_error().raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::INTR) => {}
            Some(e) => return Err(e),
            None => return Err(Errno::IO),
        }
    }
}
