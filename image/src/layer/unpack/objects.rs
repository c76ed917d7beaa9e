//! The objects of a layer, made one by one as their entries come.

use std::ffi::CString;
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::{UnpackError, Unpacked};
use crate::layer::disk::{self, Attributes, Target};
use crate::layer::tree::{InodeId, Kind, NodeId};
use crate::tar::{Entry, EntryKind, TarReader, lossy};

impl Unpacked {
    pub(super) fn whiteout(&mut self, parent: NodeId, name: &[u8]) -> Result<(), UnpackError> {
        if let Some(id) = self.tree.child(parent, name) {
            // It hides what is below, not what this layer has. Only a directory would show more than its own.
            if let Some(plan) = self.tree.plan_mut(id) {
                plan.is_opaque = true;
            }
            return Ok(());
        }
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        let made = disk::whiteout(self.marks, dir.as_fd(), &c_name);
        self.on_disk("make whiteout", parent, name, made)?;
        let inode = self.tree.add_inode(Kind::Whiteout);
        self.tree.add_name(parent, name, inode);
        self.record(inode, Target::Name(dir.as_fd(), &disk::whiteout_name(self.marks, &c_name)))
            .map_err(|source| self.disk_error("look at", parent, name, source))
    }

    pub(super) fn file<R: BufRead>(
        &mut self,
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        if entry.size > self.limits.file_size {
            return Err(UnpackError::Refused {
                path: lossy(&entry.path),
                what: "a file larger than 16 TiB, more than ext4 can have",
            });
        }
        self.bytes = self.bytes.saturating_add(entry.data_len());
        self.check_bytes()?;
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        let file = disk::create_file(dir.as_fd(), &c_name);
        let file = self.on_disk("create", parent, name, file)?;
        let failed = |source| self.disk_error("write", parent, name, source);
        match &entry.sparse {
            None => loop {
                let bytes = reader.data()?;
                if bytes.is_empty() {
                    break;
                }
                let len = bytes.len();
                write_all(&file, bytes).map_err(failed)?;
                reader.consume(len);
            },
            Some(pieces) => {
                for &(mut at, mut left) in pieces {
                    while left > 0 {
                        let bytes = reader.data()?;
                        let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                        write_all_at(&file, &bytes[..len], at).map_err(failed)?;
                        reader.consume(len);
                        at += len as u64;
                        left -= len as u64;
                    }
                }
                rustix::fs::ftruncate(&file, entry.size).map_err(failed)?;
            }
        }
        let inode = self.tree.add_inode(Kind::File);
        self.tree.add_name(parent, name, inode);
        self.settle(inode, Target::Open(file.as_fd()), entry, "file", parent, name)
    }

    pub(super) fn check_bytes(&self) -> Result<(), UnpackError> {
        if self.bytes > self.limits.bytes {
            return Err(UnpackError::Limit { what: "bytes of data", limit: self.limits.bytes });
        }
        Ok(())
    }

    pub(super) fn symlink(&mut self, parent: NodeId, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let refused = |what| UnpackError::Refused { path: lossy(&entry.path), what };
        if entry.link.is_empty() {
            return Err(refused("a symlink without target"));
        }
        let target =
            CString::new(entry.link.as_slice()).map_err(|_| refused("a symlink with a NUL in its target"))?;
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        let inode = self.tree.add_inode(Kind::Symlink(entry.link.as_slice().into()));
        if self.marks.overrides {
            // User xattrs cannot be set on a symlink: it is kept as a file.
            let file = disk::create_file(dir.as_fd(), &c_name)
                .and_then(|file| write_all(&file, target.to_bytes()).map(|()| file));
            let file = self.on_disk("create", parent, name, file)?;
            self.tree.add_name(parent, name, inode);
            return self.settle(inode, Target::Open(file.as_fd()), entry, "symlink", parent, name);
        }
        self.on_disk("make symlink", parent, name, rustix::fs::symlinkat(&target, &*dir, &c_name))?;
        self.tree.add_name(parent, name, inode);
        self.settle(inode, Target::Name(dir.as_fd(), &c_name), entry, "symlink", parent, name)
    }

    pub(super) fn special(&mut self, parent: NodeId, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let refused = |what| UnpackError::Refused { path: lossy(&entry.path), what };
        let (major, minor) = entry.device;
        let (kind, word) = match entry.kind {
            EntryKind::CharDevice if (major, minor) == (0, 0) => {
                return Err(refused("a device 0:0, which means a whiteout in a layer on disk"));
            }
            EntryKind::CharDevice => (FileType::CharacterDevice, format!("char-{major}-{minor}")),
            EntryKind::BlockDevice => (FileType::BlockDevice, format!("block-{major}-{minor}")),
            _ => (FileType::Fifo, "pipe".to_owned()),
        };
        if kind != FileType::Fifo {
            // The kernel's own width of the two numbers.
            if major >= 1 << 12 || minor >= 1 << 20 {
                return Err(refused("a device number that Linux does not have"));
            }
            self.devices += 1;
            if self.devices > self.limits.devices {
                return Err(UnpackError::Limit { what: "devices", limit: self.limits.devices });
            }
        }
        let dir = self.fd(parent)?;
        let c_name = self.c_name(parent, name)?;
        let inode = self.tree.add_inode(Kind::Special);
        if self.marks.overrides {
            let file = self.on_disk("create", parent, name, disk::create_file(dir.as_fd(), &c_name))?;
            self.tree.add_name(parent, name, inode);
            return self.settle(inode, Target::Open(file.as_fd()), entry, &word, parent, name);
        }
        let device = rustix::fs::makedev(major, minor);
        let made = rustix::fs::mknodat(&*dir, &c_name, kind, Mode::RUSR | Mode::WUSR, device);
        self.on_disk("make device", parent, name, made)?;
        self.tree.add_name(parent, name, inode);
        self.settle(inode, Target::Name(dir.as_fd(), &c_name), entry, &word, parent, name)
    }

    /// Attributes of a new object, and what it looks like then.
    pub(super) fn settle(
        &mut self,
        inode: InodeId,
        target: Target<'_>,
        entry: &Entry,
        type_word: &str,
        parent: NodeId,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let attributes = Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            atime: entry.atime,
            xattrs: &entry.xattrs,
            type_word,
        };
        let applied = disk::apply(self.marks, target, entry.kind == EntryKind::Symlink, &attributes);
        let refused = self.on_disk("give attributes to", parent, name, applied)?;
        self.warn_of(&entry.path, refused);
        self.record(inode, target).map_err(|source| self.disk_error("look at", parent, name, source))
    }

    pub(super) fn warn_of(&mut self, path: &[u8], xattrs: Vec<Vec<u8>>) {
        for name in xattrs {
            self.warnings.push(format!("{:?}: xattr {:?} cannot be kept here", lossy(path), lossy(&name)));
        }
    }

    pub(super) fn record(&mut self, inode: InodeId, target: Target<'_>) -> Result<(), Errno> {
        let (stat, xattrs) = (disk::stat(target)?, disk::xattrs(target)?);
        let inode = self.tree.inode_mut(inode);
        (inode.stat, inode.xattrs, inode.is_stale) = (stat, xattrs, false);
        Ok(())
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn write_all_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(len) => {
                bytes = &bytes[len..];
                at += len as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
