//! Files of a directory that somebody else filled: regular files within it and nothing else are opened.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::Error;

/// The file called `name` beneath `directory`, and its length; `None` when there is none. Symlinks are followed within
/// the directory: docker's older archives have some for layers that are there twice.
///
/// # Errors
/// When it leads out of the directory, or is no regular file: opening a pipe would wait for its other end, and opening
/// a device can set something off.
pub(super) fn open(directory: &Path, name: &str) -> Result<Option<(File, u64)>, Error> {
    let path = directory.join(name);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(directory, flags, Mode::empty()).map_err(Error::io("open", directory))?;
    let found = match look(&top, name) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::XDEV | Errno::LOOP) => {
            let words = "a symlink that leads out of the directory, or in a circle; it is not followed";
            return Err(Error::document(path.display().to_string(), words));
        }
        Err(errno) => return Err(Error::io("open", &path)(errno)),
    };
    let stat = rustix::fs::fstat(&found).map_err(Error::io("look at", &path))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Ok(None),
        _ => return Err(Error::document(path.display().to_string(), "it is no regular file")),
    }
    // The very object that was looked at, now to read.
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(again, flags, Mode::empty()).map_err(Error::io("open", &path))?;
    Ok(Some((File::from(file), stat.st_size.cast_unsigned())))
}

/// Finds an object without opening it.
fn look(top: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(top, name, flags, Mode::empty(), resolve) {
        // Before Linux 5.6, and under filters of older container programs.
        Err(Errno::NOSYS | Errno::PERM) => by_hand(top, name),
        other => other,
    }
}

/// As above without openat2(2), and without any symlink.
fn by_hand(top: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(top, c".", flags, Mode::empty())?;
    for part in name.split('/').filter(|part| !part.is_empty() && *part != ".") {
        let part = CString::new(part).map_err(|_| Errno::INVAL)?;
        let kind = FileType::from_raw_mode(
            rustix::fs::statat(&at, &part, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)?.st_mode,
        );
        if kind == FileType::Symlink || part.as_bytes() == b".." {
            return Err(Errno::LOOP);
        }
        at = rustix::fs::openat(&at, &part, flags, Mode::empty())?;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn regular_files_within_the_directory_alone_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("layout");
        fs::create_dir_all(top.join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(top.join("blobs/sha256/aa"), "content").unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, top.join(name)).unwrap();
        link("blobs/sha256/aa", "within");
        link("../secret", "out");
        link("/etc/passwd", "absolute");
        link("circle", "circle");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, top.join("pipe"), FileType::Fifo, mode, 0).unwrap();
        std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
        for name in ["blobs/sha256/aa", "within"] {
            assert_eq!(open(&top, name).unwrap().unwrap().1, 7, "{name}");
        }
        assert!(open(&top, "none").unwrap().is_none() && open(&top, "blobs").unwrap().is_none());
        for (name, words) in [
            ("out", "leads out"),
            ("absolute", "leads out"),
            ("circle", "in a circle"),
            ("pipe", "no regular file"),
            ("socket", "no regular file"),
        ] {
            let error = open(&top, name).unwrap_err();
            assert!(error.to_string().contains(words), "{name}: {error}");
        }
        // The way without openat2 follows none.
        let root = rustix::fs::open(&top, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert!(by_hand(&root, "blobs/sha256/aa").is_ok());
        for name in ["within", "out", "absolute", "../secret", "blobs/../../secret"] {
            assert_eq!(by_hand(&root, name).unwrap_err(), Errno::LOOP, "{name}");
        }
    }
}
