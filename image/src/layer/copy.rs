//! Copying the data of a file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

/// Bytes that are compared at a time.
const BLOCK: usize = 128 * 1024;

/// A clone where the filesystem can, else a copy that keeps holes. Answers with the bytes of data.
pub(crate) fn copy_data(from: &File, to: &File) -> io::Result<u64> {
    let len = from.metadata()?.len();
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(len);
    }
    to.set_len(len)?;
    let (mut at, mut copied) = (0, 0);
    while at < len {
        let start = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = match rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start)) {
            Ok(end) => end.min(len),
            // It has become shorter since: a program writes to it.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let (mut from_at, mut to_at) = (start, start);
        while from_at < end {
            let left = usize::try_from(end - from_at).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), left) {
                Ok(0) => break,
                Ok(_) => {}
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    let mut buffer = vec![0; left.min(256 * 1024)];
                    let len = from.read_at(&mut buffer, from_at)?;
                    if len == 0 {
                        break;
                    }
                    to.write_all_at(&buffer[..len], to_at)?;
                    from_at += len as u64;
                    to_at += len as u64;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        copied += end - start;
        at = end;
    }
    Ok(copied)
}

/// Whether both have the same bytes from where they are on.
pub(crate) fn same_data(a: &mut impl Read, b: &mut impl Read) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let (a_len, b_len) = (fill(a, &mut left)?, fill(b, &mut right)?);
        if a_len != b_len || left[..a_len] != right[..b_len] {
            return Ok(false);
        }
        if a_len == 0 {
            return Ok(true);
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// `commit --pause=false` of a container that writes failed at times: a file that lost its data between two seeks.
    #[test]
    fn regression_a_file_that_becomes_shorter_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let (from, to) = (File::open(&path).unwrap(), File::create(dir.path().join("copy")).unwrap());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = File::options().write(true).open(&path).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    file.set_len(0).unwrap();
                    file.write_at(&[1; 8192], 0).unwrap();
                }
            });
            let results: Vec<io::Result<u64>> = (0..100_000).map(|_| copy_data(&from, &to)).collect();
            is_over.store(true, Ordering::Relaxed);
            for result in results {
                result.unwrap();
            }
        });
    }
}
