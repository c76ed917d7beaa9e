//! The directory that changes are written down to: every path is resolved beneath it, and no symlink is followed.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::ApplyError;

/// An open root.
#[derive(Debug)]
pub(in crate::layer) struct Root {
    fd: OwnedFd,
}

impl Root {
    pub(in crate::layer) fn open(path: &Path) -> Result<Self, ApplyError> {
        Self::open_directory(path).map_err(ApplyError::object("open", path.as_os_str().as_encoded_bytes()))
    }

    pub(in crate::layer) fn open_directory(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// The directory at `path`, which has a slash in front or is empty.
    pub(in crate::layer) fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    pub(in crate::layer) fn resolve(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = match path.strip_prefix(b"/").unwrap_or(path) {
            b"" => c".".to_owned(),
            path => CString::new(path).map_err(|_| Errno::INVAL)?,
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: a directory was renamed meanwhile.
        for _ in 0..16 {
            match rustix::fs::openat2(&self.fd, &path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The directory that has `path`, and the name there.
    pub(in crate::layer) fn place(&self, path: &[u8]) -> Result<(OwnedFd, CString), Errno> {
        let (parent, name) = split(path);
        Ok((self.directory(parent)?, CString::new(name).map_err(|_| Errno::INVAL)?))
    }
}

/// The object `name` in `dir`; `None` when there is none.
pub(in crate::layer) fn look_at(dir: &OwnedFd, name: &CString) -> Result<Option<Statx>, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A path's directory and its last name.
pub(in crate::layer) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
