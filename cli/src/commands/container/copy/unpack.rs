//! A tar stream into a directory of a tree. Nothing is made outside of that tree: names are resolved in it by the kernel.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{BufRead, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use layerfs_image::tar::{Entry, EntryKind, TarLimits, TarReader};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::place::Root;

/// Bytes from which a run of zeros becomes a hole.
const HOLE: usize = 4096;

/// Whom the copies belong to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner {
    /// As the archive says.
    Kept,
    /// User and group.
    Is(u32, u32),
}

struct Unpacker<'a> {
    root: &'a Root,
    directory: &'a Path,
    owner: Owner,
    /// The directory of the last entry.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Times of directories, which change as things are made in them.
    times: Vec<(PathBuf, Timestamps)>,
    bytes: u64,
}

/// Unpacks `archive` into `directory` of `root`. With `only`, the one name that everything in it must be called by or be
/// below. Gives the bytes of files.
pub(super) fn unpack(
    root: &Root,
    directory: &Path,
    only: Option<&[u8]>,
    archive: impl BufRead,
    owner: Owner,
) -> anyhow::Result<u64> {
    let mut reader = TarReader::new(archive, TarLimits::default());
    let mut unpacker = Unpacker { root, directory, owner, parent: None, times: Vec::new(), bytes: 0 };
    while let Some(entry) = reader.next_entry().context("read the archive")? {
        let path = clean(&entry.path)?;
        if let Some(only) = only.filter(|only| *only != b".")
            && path.components().next().map(|part| part.as_os_str().as_bytes()) != Some(only)
        {
            bail!("unexpected {} in the archive", path.display());
        }
        unpacker.entry(&entry, &path, &mut reader).with_context(|| format!("copy {}", path.display()))?;
    }
    for (path, times) in unpacker.times.iter().rev() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        if let Ok(made) = root.open(&directory.join(path), flags) {
            rustix::fs::futimens(made, times)
                .with_context(|| format!("set the times of {}", path.display()))?;
        }
    }
    Ok(unpacker.bytes)
}

/// The names of a path; none for the directory itself.
fn clean(path: &[u8]) -> anyhow::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => bail!("the archive has a name with '..': {}", String::from_utf8_lossy(path)),
            part => clean.push(OsStr::from_bytes(part)),
        }
    }
    Ok(clean)
}

impl Unpacker<'_> {
    /// The directory that `path` is in; missing ones are made.
    fn parent_of(&mut self, path: &Path) -> anyhow::Result<OwnedFd> {
        let above = path.parent().unwrap_or(Path::new("")).to_owned();
        if let Some((known, fd)) = &self.parent
            && *known == above
        {
            return Ok(fd.try_clone()?);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let found = match self.root.open(&self.directory.join(&above), flags) {
            Err(Errno::NOENT) if !above.as_os_str().is_empty() => {
                let higher = self.parent_of(&above)?;
                let name = above.file_name().unwrap_or_default();
                rustix::fs::mkdirat(&higher, name, Mode::from_raw_mode(0o755))?;
                self.root.open(&self.directory.join(&above), flags)
            }
            result => result,
        };
        let found = found.with_context(|| format!("open directory {}", above.display()))?;
        self.parent = Some((above, found.try_clone()?));
        Ok(found)
    }

    fn entry<R: BufRead>(
        &mut self,
        entry: &Entry,
        path: &Path,
        reader: &mut TarReader<R>,
    ) -> anyhow::Result<()> {
        let Some(name) = path.file_name() else {
            // The directory itself stays as it is.
            return Ok(());
        };
        let parent = self.parent_of(path)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o7777);
        let there = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        match (entry.kind, there) {
            (EntryKind::Directory, Some(FileType::Directory)) => {}
            (EntryKind::Directory, Some(FileType::Symlink))
                if self.root.kind(&self.directory.join(path))? == Some(super::place::Kind::Directory) =>
            {
                // A link to a directory stands for it.
                return Ok(());
            }
            (EntryKind::Directory, Some(_)) => bail!("cannot overwrite a non-directory with a directory"),
            (_, Some(FileType::Directory)) => bail!("cannot overwrite a directory with a non-directory"),
            (EntryKind::Directory, None) => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?,
            (EntryKind::File, _) => return self.file(entry, name, &parent, there.is_some(), reader),
            (kind, _) => {
                if there.is_some() {
                    rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                }
                let node = |kind: FileType| {
                    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                    rustix::fs::mknodat(&parent, name, kind, mode, device)
                };
                match kind {
                    EntryKind::Symlink => {
                        rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &parent, name)?
                    }
                    EntryKind::HardLink => {
                        let first = clean(&entry.link)?;
                        let from = self.parent_of(&first)?;
                        let old = first.file_name().context("a link to nothing")?;
                        rustix::fs::linkat(from, old, &parent, name, AtFlags::empty())?;
                        return Ok(());
                    }
                    EntryKind::CharDevice => node(FileType::CharacterDevice)?,
                    EntryKind::BlockDevice => node(FileType::BlockDevice)?,
                    EntryKind::Fifo => node(FileType::Fifo)?,
                    EntryKind::File | EntryKind::Directory => {}
                }
            }
        }
        let (uid, gid) = self.owner(entry);
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if entry.kind != EntryKind::Symlink {
            set_mode(&parent, name, mode)?;
        }
        match entry.kind {
            EntryKind::Directory => {
                if !entry.xattrs.is_empty() {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let made = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
                    set_xattrs(made.as_fd(), entry);
                }
                self.times.push((path.to_owned(), times(entry)));
            }
            _ => rustix::fs::utimensat(&parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?,
        }
        Ok(())
    }

    fn owner(&self, entry: &Entry) -> (Uid, Gid) {
        let (uid, gid) = match self.owner {
            Owner::Kept => (entry.uid, entry.gid),
            Owner::Is(uid, gid) => (uid, gid),
        };
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }

    fn file<R: BufRead>(
        &mut self,
        entry: &Entry,
        name: &OsStr,
        parent: &OwnedFd,
        exists: bool,
        reader: &mut TarReader<R>,
    ) -> anyhow::Result<()> {
        let file = match exists.then(|| rustix::fs::unlinkat(parent, name, AtFlags::empty())) {
            // Something is mounted on it: it is written in place.
            Some(Err(Errno::BUSY)) => open_in_place(parent, name)?,
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(())) | None => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?
            }
        };
        let mut file = File::from(file);
        if let Some(pieces) = &entry.sparse {
            for (offset, length) in pieces {
                file.seek(SeekFrom::Start(*offset))?;
                copy(reader, &mut file, *length)?;
            }
        } else {
            copy(reader, &mut file, entry.size)?;
        }
        file.set_len(entry.size)?;
        self.bytes += entry.size;
        let (uid, gid) = self.owner(entry);
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o7777))?;
        // After the owner: a change of it takes capabilities away.
        set_xattrs(file.as_fd(), entry);
        rustix::fs::futimens(&file, &times(entry))?;
        Ok(())
    }
}

/// Sets the mode of what was just made. A program in the container may have put a symlink in its place since, which leads
/// anywhere on this machine: it is not followed.
fn set_mode(parent: &OwnedFd, name: &OsStr, mode: Mode) -> anyhow::Result<()> {
    let name = CString::new(name.as_bytes())?;
    match layerfs_image::layer::set_mode(parent, &name, mode) {
        Err(Errno::LOOP) => bail!("it was exchanged while it was copied"),
        result => Ok(result?),
    }
}

/// Opens a file that cannot be replaced, to be written anew. A pipe would be waited for, and a device set off.
fn open_in_place(parent: &OwnedFd, name: &OsStr) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::RegularFile {
        bail!("something that is no regular file is mounted there");
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(again, flags, Mode::empty())?)
}

/// Copies `length` bytes; runs of zeros become holes.
fn copy<R: BufRead>(reader: &mut TarReader<R>, file: &mut File, length: u64) -> anyhow::Result<()> {
    let mut left = length;
    while left > 0 {
        let data = reader.data().context("read the archive")?;
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
        let Some(data) = data.get(..count).filter(|data| !data.is_empty()) else {
            bail!("the archive ends in the middle of a file")
        };
        for piece in data.chunks(HOLE) {
            match piece.len() == HOLE && piece.iter().all(|byte| *byte == 0) {
                true => drop(file.seek(SeekFrom::Current(piece.len() as i64))?),
                false => file.write_all(piece)?,
            }
        }
        reader.consume(count);
        left -= count as u64;
    }
    Ok(())
}

/// What the filesystem does not keep is left out.
fn set_xattrs(fd: std::os::fd::BorrowedFd<'_>, entry: &Entry) {
    for (name, value) in &entry.xattrs {
        if let Err(error) = rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            tracing::debug!(%error, name = %String::from_utf8_lossy(name), "an extended attribute is left out");
        }
    }
}

fn times(entry: &Entry) -> Timestamps {
    let time = |(seconds, nanoseconds): (i64, u32)| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    let modified = time(entry.mtime);
    Timestamps { last_access: entry.atime.map_or(modified, time), last_modification: modified }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_what_is_written_in_place_is_a_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "old content").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let parent = OwnedFd::from(File::open(dir.path()).unwrap());
        // The pipe has no reader: opening it for writing would never come back.
        for name in ["pipe", "link"] {
            assert!(open_in_place(&parent, OsStr::new(name)).is_err(), "{name}");
        }
        assert_eq!(std::fs::read(path("file")).unwrap(), b"old content");
        File::from(open_in_place(&parent, OsStr::new("file")).unwrap()).write_all(b"new").unwrap();
        assert_eq!(std::fs::read(path("file")).unwrap(), b"new");
    }

    #[test]
    fn names_stay_inside() {
        assert_eq!(clean(b"/a//./b/").unwrap(), Path::new("a/b"));
        assert_eq!(clean(b"./").unwrap(), Path::new(""));
        assert!(clean(b"a/../../b").is_err());
    }
}
