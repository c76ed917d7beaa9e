//! Paths of the container, resolved beneath its root by descriptor.
//!
//! Must hold: no name of the image leads outside the root, whatever its symlinks say and whoever changes
//! them meanwhile; links of /proc that jump (`/proc/self/fd/N`) are never followed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often a resolution that a concurrent rename disturbed is tried again.
const TRIES: u32 = 128;

/// Whether symlinks of the image are followed, within the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Followed; absolute ones begin at the root.
    Follow,
    /// ELOOP.
    Refuse,
}

/// Opens `path` beneath `root`.
pub(crate) fn open(root: impl AsFd, path: &Path, flags: OFlags, links: Links) -> io::Result<OwnedFd> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if links == Links::Refuse {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    // An empty path is no path to openat2; "." is the root itself.
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// A descriptor (`O_PATH`) of what `path` names beneath `root`.
pub(crate) fn find(root: impl AsFd, path: &Path, links: Links) -> io::Result<OwnedFd> {
    open(root, path, OFlags::PATH, links)
}

/// The directory `path` beneath `root`, made (mode 0755) with its parents where it is missing.
pub(crate) fn find_or_make_directory(root: impl AsFd, path: &Path, links: Links) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    match open(root, path, OFlags::PATH | OFlags::DIRECTORY, links) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let mut so_far = std::path::PathBuf::new();
    let mut current = find(root, Path::new("."), links)?;
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        so_far.push(name);
        current = match open(root, &so_far, OFlags::PATH | OFlags::DIRECTORY, links) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                    // Made by another in between, or a symlink to nothing: looking again tells.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open(root, &so_far, OFlags::PATH | OFlags::DIRECTORY, links)?
            }
            result => result?,
        };
    }
    Ok(current)
}

/// The object at `path` beneath `root`; an empty regular file is made where there is none.
pub(crate) fn find_or_make_file(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    match find(root, path, Links::Follow) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let (parent, name) = parent_of(root, path)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => find(root, path, Links::Follow),
        Err(error) => Err(error.into()),
    }
}

/// The directory that `path` is in, made where it is missing, and the last name.
pub(crate) fn parent_of(root: impl AsFd, path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok((find_or_make_directory(root, parent, Links::Follow)?, name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn root_of(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    fn inode(fd: &OwnedFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    #[test]
    fn absolute_and_climbing_links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("inner")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../../../inner", root.join("climbing")).unwrap();
        let fd = root_of(&root);
        let error = find(&fd, Path::new("/absolute"), Links::Follow).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let found = find(&fd, Path::new("/climbing"), Links::Follow).unwrap();
        assert_eq!(inode(&found), fs::metadata(root.join("inner")).unwrap().ino());
        let error = find(&fd, Path::new("/climbing"), Links::Refuse).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        let top = find(&fd, Path::new("/../.."), Links::Follow).unwrap();
        assert_eq!(inode(&top), inode(&fd));
    }

    #[test]
    fn making_goes_through_links_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("real")).unwrap();
        symlink("/real", root.join("alias")).unwrap();
        symlink("/nowhere", root.join("dangling")).unwrap();
        let fd = root_of(&root);
        find_or_make_directory(&fd, Path::new("/alias/a/b"), Links::Follow).unwrap();
        assert!(root.join("real/a/b").is_dir());
        let error = find_or_make_directory(&fd, Path::new("/dangling/x"), Links::Follow).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        find_or_make_file(&fd, Path::new("/alias/deep/file")).unwrap();
        assert!(root.join("real/deep/file").is_file());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was made outside");
    }

    #[test]
    fn links_of_proc_that_jump_are_refused() {
        let root = root_of(Path::new("/"));
        let fd_path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&root));
        let error = find(&root, Path::new(&fd_path), Links::Follow).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
