//! The calls that have no safe wrapper elsewhere: children that die with their test, and shared maps.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Makes the child die (SIGKILL) with the thread that spawns it, so that a killed test leaves no process.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: the closure makes one async-signal-safe system call (prctl) and allocates nothing.
    unsafe {
        command.pre_exec(|| set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from))
    }
}

/// Maps a whole file, shared and read-only. The tests that use it expect the bytes to change below it.
pub fn map_shared(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the map is only read through volatile-like copies in tests (`to_vec`); the files mapped are
    // never truncated below the mapped length while the map lives, so no access faults.
    unsafe { memmap2::MmapOptions::new().map(file) }
}

/// Maps `len` bytes from the beginning, shared and read-only; they may reach past the end of the file, up to
/// the end of its last page.
pub fn map_shared_len(file: &File, len: usize) -> io::Result<memmap2::Mmap> {
    // SAFETY: as in `map_shared`; callers read bytes of the last page only, which exists.
    unsafe { memmap2::MmapOptions::new().len(len).map(file) }
}

/// Maps a whole file, shared and writable.
pub fn map_shared_mut(file: &File) -> io::Result<memmap2::MmapMut> {
    // SAFETY: as in `map_shared`; one thread writes through the map.
    unsafe { memmap2::MmapOptions::new().map_mut(file) }
}

/// Maps a whole file, private and writable (copy-on-write in memory).
pub fn map_private(file: &File) -> io::Result<memmap2::MmapMut> {
    // SAFETY: as in `map_shared`.
    unsafe { memmap2::MmapOptions::new().map_copy(file) }
}

/// Gives the calling thread namespaces of its own (`unshare(2)`).
pub fn unshare_thread(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(rustix::thread::UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: unshare is only unsafe with CLONE_FILES, which the line above excludes.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// `truncate(2)` by path.
pub fn truncate(path: &std::path::Path, size: u64) -> rustix::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| rustix::io::Errno::INVAL)?;
    let size = libc::off_t::try_from(size).map_err(|_| rustix::io::Errno::INVAL)?;
    // SAFETY: the path is a C string that lives through the call.
    if unsafe { libc::truncate(path.as_ptr(), size) } == 0 {
        return Ok(());
    }
    Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO))
}
