//! A tree, or one object, as a tar stream.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, anyhow};
use layerfs_image::tar::{Entry, EntryKind, TarWriter};
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::place::Object;

/// Writes `object` under `name`; a directory with all that is in it. Gives the bytes of files.
pub(super) fn pack(object: &Object, name: &[u8], out: impl Write) -> anyhow::Result<u64> {
    let mut packer = Packer { out: TarWriter::new(out), seen: HashMap::new(), bytes: 0 };
    if object.is_directory() {
        let stat = rustix::fs::fstat(&object.parent).context("look at the directory")?;
        let path = if name == b"." { b"./".to_vec() } else { name.to_vec() };
        packer.directory(object.parent.as_fd(), &path, &stat)?;
    } else {
        packer.object(object.parent.as_fd(), &object.name, name)?;
    }
    packer.out.finish().context("write the archive")?;
    Ok(packer.bytes)
}

/// Whether a failure only says that nobody reads any more.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

struct Packer<W: Write> {
    out: TarWriter<W>,
    /// Where a file with several names was written.
    seen: HashMap<(u64, u64), Vec<u8>>,
    bytes: u64,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, directory: BorrowedFd<'_>, path: &[u8], stat: &Stat) -> anyhow::Result<()> {
        let words = || format!("read directory {}", String::from_utf8_lossy(path));
        let listed = rustix::fs::openat(
            directory,
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(words)?;
        let mut entry = entry(path, EntryKind::Directory, stat);
        entry.xattrs = xattrs(listed.as_fd());
        self.out.header(&entry).context("write the archive")?;
        let mut names = Vec::new();
        for found in Dir::read_from(&listed).with_context(words)? {
            let found = found.with_context(words)?;
            let name = found.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        for name in names {
            let mut below = path.to_vec();
            if !below.ends_with(b"/") {
                below.push(b'/');
            }
            below.extend_from_slice(&name);
            self.object(listed.as_fd(), &name, &below)?;
        }
        Ok(())
    }

    fn object(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> anyhow::Result<()> {
        let words = || format!("read {}", String::from_utf8_lossy(path));
        // A file that a symlink has led to is its own parent (see `Root::source`).
        let is_itself = FileType::from_raw_mode(rustix::fs::fstat(parent).with_context(words)?.st_mode)
            != FileType::Directory;
        let found = match is_itself {
            true => parent.try_clone_to_owned().with_context(words)?,
            // A descriptor that does nothing: a program in the container may exchange a file for a pipe, which would be
            // waited for, or for a device, which opening sets off.
            false => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(parent, name, flags, Mode::empty()) {
                    // Gone since it was listed.
                    Err(Errno::NOENT) => return Ok(()),
                    found => found.with_context(words)?,
                }
            }
        };
        let stat = rustix::fs::fstat(&found).with_context(words)?;
        self.found(&found, &stat, path)
    }

    /// An object that was looked at, by a descriptor of it.
    fn found(&mut self, found: &OwnedFd, stat: &Stat, path: &[u8]) -> anyhow::Result<()> {
        let words = || format!("read {}", String::from_utf8_lossy(path));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.directory(found.as_fd(), path, stat),
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => EntryKind::Symlink,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::Fifo => EntryKind::Fifo,
            // A socket is its program's, as docker has it.
            FileType::Socket | FileType::Unknown => return Ok(()),
        };
        let mut entry = entry(path, kind, stat);
        if stat.st_nlink > 1 {
            let first = self.seen.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_vec());
            if *first != path {
                entry.kind = EntryKind::HardLink;
                entry.link.clone_from(first);
                entry.size = 0;
                return self.out.header(&entry).context("write the archive");
            }
        }
        match kind {
            EntryKind::File => {
                // The very object that was looked at.
                let again = format!("/proc/self/fd/{}", found.as_raw_fd());
                let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
                let mut file = File::from(rustix::fs::open(again, flags, Mode::empty()).with_context(words)?);
                entry.xattrs = xattrs(file.as_fd());
                // As it is now, of the file that was opened.
                entry.size = file.metadata().with_context(words)?.len();
                self.out.header(&entry).context("write the archive")?;
                self.out.data(&mut file, entry.size).with_context(words)?;
                self.bytes += entry.size;
                return Ok(());
            }
            EntryKind::Symlink => {
                entry.link = rustix::fs::readlinkat(found, c"", Vec::new()).with_context(words)?.into_bytes();
            }
            _ => {}
        }
        self.out.header(&entry).map_err(|error| anyhow!(error).context("write the archive"))
    }
}

fn entry(path: &[u8], kind: EntryKind, stat: &Stat) -> Entry {
    let mut entry = Entry::new(path, kind);
    entry.mode = stat.st_mode & 0o7777;
    (entry.uid, entry.gid) = (stat.st_uid, stat.st_gid);
    entry.mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    if matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
        entry.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    }
    entry
}

/// Those that mean something in another place: the user's, and capabilities of programs.
fn xattrs(fd: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0_u8; 64 << 10];
    // A filesystem without them has none.
    let Ok(length) = rustix::fs::flistxattr(fd, &mut names[..]) else { return Vec::new() };
    let names = names.get(..length).unwrap_or_default();
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name != b"security.capability" && !name.starts_with(b"user.") {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        if let Ok(length) = rustix::fs::fgetxattr(fd, name, &mut value[..]) {
            value.truncate(length);
            found.push((name.to_owned(), value));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn regression_a_file_exchanged_for_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "content").unwrap();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::open(path("file"), flags, Mode::empty()).unwrap();
        let stat = rustix::fs::fstat(&found).unwrap();
        // As a program does between the look and the reading.
        fs::rename(path("file"), path("old")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("file"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let mut packer = Packer { out: TarWriter::new(Vec::new()), seen: HashMap::new(), bytes: 0 };
        packer.found(&found, &stat, b"file").unwrap();
        assert_eq!(packer.bytes, 7);
        // And one that was a pipe when it was looked at is copied as one.
        let parent = fs::File::open(dir.path()).unwrap();
        packer.object(parent.as_fd(), b"file", b"pipe").unwrap();
        assert_eq!(packer.bytes, 7);
    }
}
