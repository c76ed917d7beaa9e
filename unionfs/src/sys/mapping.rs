#![allow(unsafe_code)]
//! Files mapped into memory for reading.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps the first `len` bytes of `file`, shared and read-only.
///
/// The file must not be written or cut while it is mapped: a write shows through, and reading past a cut is
/// SIGBUS. Files mapped here are published by rename and never opened for writing again.
///
/// # Errors
/// What mmap(2) lists; `InvalidInput` for `len` 0.
pub fn map_readonly(file: &File, len: usize) -> io::Result<Mmap> {
    // SAFETY: a shared read-only mapping. Nobody writes to the file (see above); should someone do so all the
    // same, readers check every length and offset that they take from the bytes and decode nothing but plain
    // integers and byte strings, for which every bit pattern is valid.
    unsafe { memmap2::MmapOptions::new().len(len).map(file) }
}
