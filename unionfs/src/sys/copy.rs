//! Copying file data: shared where the filesystem can, with holes kept.

use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Copies the first `length` bytes of `from` to the empty file `to`. `whole`: that is all of `from`, so that its
/// extents can be shared.
///
/// # Errors
/// ENOSPC, EIO and what else reading and writing fail with; `to` may hold a part of the data then.
pub fn copy_data(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64, whole: bool) -> Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    if whole && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    // The length first: what is not written then stays a hole.
    rustix::fs::ftruncate(to, length)?;
    let mut at = 0;
    let mut by_kernel = true;
    while at < length {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No more data.
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        if start >= length {
            break;
        }
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(length).min(length).max(start + 1);
        copy_range(from, to, start, end, &mut by_kernel)?;
        at = end;
    }
    Ok(())
}

/// Bytes per call: large enough to cost nothing, small enough that a signal is not waited for.
const CHUNK: u64 = 64 << 20;

fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
    by_kernel: &mut bool,
) -> Result<(), Errno> {
    let mut at = start;
    while *by_kernel && at < end {
        let (mut source, mut target) = (at, at);
        let wanted = (end - at).min(CHUNK) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            // Shorter than its length says: the rest reads as zeroes, as a hole does.
            Ok(0) => return Ok(()),
            Ok(n) => at += n as u64,
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::BADF) => {
                *by_kernel = false;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    if at >= end {
        return Ok(());
    }
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let wanted = (end - at).min(buffer.len() as u64) as usize;
        let n = match rustix::io::pread(from, &mut buffer[..wanted], at) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        let mut written = 0;
        while written < n {
            match rustix::io::pwrite(to, &buffer[written..n], at + written as u64) {
                Ok(m) => written += m,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn data_and_holes_arrive() {
        let mut from = tempfile::tempfile().unwrap();
        from.set_len(10 << 20).unwrap();
        from.seek(std::io::SeekFrom::Start(5 << 20)).unwrap();
        from.write_all(b"in the middle").unwrap();
        for length in [10 << 20, (5 << 20) + 6] {
            let mut to = tempfile::tempfile().unwrap();
            copy_data(from.as_fd(), to.as_fd(), length, length == 10 << 20).unwrap();
            assert_eq!(to.metadata().unwrap().len(), length);
            to.seek(std::io::SeekFrom::Start(5 << 20)).unwrap();
            let mut text = [0; 6];
            to.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"in the");
            use std::os::unix::fs::MetadataExt;
            assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "holes were filled");
        }
    }
}
