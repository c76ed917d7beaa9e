//! Copying a tree with all that it carries, marks included: an upper as a layer, a snapshot, or another container's.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::copy::copy_data;
use super::disk::{all_xattrs, copy_name_xattrs, set_mode};
use super::remove::list;
use crate::error::Error;

/// How a tree is copied.
#[derive(Debug, Clone, Default)]
pub struct TreeCopy {
    /// Paths in it, with a slash in front, that are left out, with all beneath them.
    pub omitted: BTreeSet<Vec<u8>>,
    /// Sockets are left out.
    pub without_sockets: bool,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeCopied {
    /// Bytes of data; what was cloned counts.
    pub bytes: u64,
    /// Names.
    pub entries: u64,
    /// Some object's content is in a layer below.
    pub refers_below: bool,
}

impl TreeCopy {
    /// Copies the tree `from` to `to`, which is made. Data is cloned where the filesystem can. A half-made copy is the
    /// caller's to remove.
    ///
    /// # Errors
    /// Those of reading and writing, with the path.
    pub fn copy(&self, from: &Path, to: &Path) -> Result<TreeCopied, Error> {
        fs::create_dir(to).map_err(Error::io("make", to))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source = rustix::fs::open(from, flags, Mode::empty()).map_err(Error::io("open", from))?;
        let target = rustix::fs::open(to, flags, Mode::empty()).map_err(Error::io("open", to))?;
        let mut copier = Copier { how: self, links: HashMap::new(), copied: TreeCopied::default() };
        copier.copy_directory(&source, &target, to, b"")?;
        Ok(copier.copied)
    }
}

struct Copier<'a> {
    how: &'a TreeCopy,
    /// First copy of each object that has several names.
    links: HashMap<(u64, u64), PathBuf>,
    copied: TreeCopied,
}

impl Copier<'_> {
    /// `path` is where the copy is, `within` the same below the tree's root.
    fn copy_directory(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        path: &Path,
        within: &[u8],
    ) -> Result<(), Error> {
        for (name, _) in list(source.as_fd()).map_err(Error::io("list", path))? {
            let within = [within, b"/", name.to_bytes()].concat();
            if self.how.omitted.contains(&within) {
                continue;
            }
            let path = path.join(<OsStr as OsStrExt>::from_bytes(name.to_bytes()));
            self.copy_object(source, target, &name, &path, &within)?;
        }
        attributes(source.as_fd(), target.as_fd()).map_err(Error::io("give attributes to", path))?;
        self.note_marks(source.as_fd());
        Ok(())
    }

    fn copy_object(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        name: &CString,
        path: &Path,
        within: &[u8],
    ) -> Result<(), Error> {
        let failed = |operation| Error::io::<Errno>(operation, path);
        self.copied.entries += 1;
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return fs::hard_link(first, path).map_err(Error::io("link", path));
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        let open = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(target, name, Mode::RWXU).map_err(failed("make"))?;
                let flags = open | OFlags::RDONLY | OFlags::DIRECTORY;
                let from = rustix::fs::openat(source, name, flags, Mode::empty()).map_err(failed("open"))?;
                let to = rustix::fs::openat(target, name, flags, Mode::empty()).map_err(failed("open"))?;
                self.copy_directory(&from, &to, path, within)
            }
            FileType::RegularFile => {
                let from = rustix::fs::openat(source, name, open | OFlags::RDONLY, Mode::empty());
                let from = File::from(from.map_err(failed("open"))?);
                let flags = open | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR);
                let to = File::from(to.map_err(failed("create"))?);
                if self.note_marks(from.as_fd()) {
                    to.set_len(stat.st_size.cast_unsigned()).map_err(Error::io("write", path))?;
                } else {
                    self.copied.bytes += copy_data(&from, &to).map_err(Error::io("copy", path))?;
                }
                attributes(from.as_fd(), to.as_fd()).map_err(failed("give attributes to"))
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new()).map_err(failed("read"))?;
                rustix::fs::symlinkat(&link, target, name).map_err(failed("make"))?;
                name_attributes(source, target, name, &stat, true).map_err(failed("give attributes to"))
            }
            FileType::Socket if self.how.without_sockets => Ok(()),
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(target, name, kind, mode, stat.st_rdev).map_err(failed("make"))?;
                name_attributes(source, target, name, &stat, false).map_err(failed("give attributes to"))
            }
        }
    }

    /// Notes what leads to the layers below; true for a file whose data is there.
    fn note_marks(&mut self, object: BorrowedFd<'_>) -> bool {
        let has = |name: &str| {
            ["trusted.overlay.", "user.overlay."].iter().any(|prefix| {
                rustix::fs::fgetxattr(object, format!("{prefix}{name}"), &mut [0_u8; 4096][..]).is_ok()
            })
        };
        let is_copy = has("metacopy");
        self.copied.refers_below |= is_copy || has("redirect");
        is_copy
    }
}

/// Owner, xattrs with all marks, mode and times of an open object.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    for (name, value) in all_xattrs(from)? {
        rustix::fs::fsetxattr(to, name, &value, rustix::fs::XattrFlags::empty())?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(&stat))
}

fn name_attributes(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &CString,
    stat: &rustix::fs::Stat,
    is_link: bool,
) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    copy_name_xattrs(from.as_fd(), to.as_fd(), name)?;
    if !is_link {
        set_mode(to, name, Mode::from_raw_mode(stat.st_mode))?;
    }
    rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &rustix::fs::Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_copy_has_all_and_what_is_omitted_is_not_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/file"), "content").unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("a/file"), from.join("a/b/again")).unwrap();
        symlink("nowhere", from.join("link")).unwrap();
        fs::create_dir_all(from.join("etc/omitted/below")).unwrap();
        std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        let how = TreeCopy { omitted: [b"/etc/omitted".to_vec()].into(), ..TreeCopy::default() };
        let copied = how.copy(&from, &to).unwrap();
        assert!(!copied.refers_below);
        let (one, two) =
            (fs::metadata(to.join("a/file")).unwrap(), fs::metadata(to.join("a/b/again")).unwrap());
        assert_eq!((one.ino(), one.mode() & 0o7777), (two.ino(), 0o4751));
        assert_eq!(one.mtime_nsec(), fs::metadata(from.join("a/file")).unwrap().mtime_nsec());
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("nowhere"));
        assert!(fs::symlink_metadata(to.join("socket")).unwrap().file_type().is_socket());
        assert!(to.join("etc").is_dir() && !to.join("etc/omitted").exists());
    }
}
