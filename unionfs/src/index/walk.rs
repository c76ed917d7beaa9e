//! Reading a tree completely: one name at a time beneath a directory's descriptor, never through a symlink, never
//! onto another filesystem or mount, and never without noticing that a directory changed meanwhile.

use std::ffi::{CStr, CString, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, RawDir, Statx, StatxAttributes};
use rustix::io::Errno;

use super::error::IndexError;
use super::metadata::{self, Buffers, IndexedStat, ObjectMetadata};

/// Descriptors of ancestors kept open; those further up are opened again by `..`.
const KEPT_OPEN: usize = 64;
const LISTING_BUFFER: usize = 128 * 1024;

/// What a walk is done for.
pub(super) trait Visitor {
    /// How the visitor calls a directory that the walk is in.
    type Directory: Copy;

    /// An object in `directory`. Answers with the name for what is itself a directory to be walked, later.
    fn object(
        &mut self,
        directory: Self::Directory,
        name: &[u8],
        object: &ObjectMetadata,
    ) -> Result<Option<Self::Directory>, IndexError>;

    /// All objects of `directory` were shown.
    fn listed(&mut self, directory: Self::Directory) -> Result<(), IndexError>;
}

/// A directory between the root and the place where the walk is.
struct Level<D> {
    name: CString,
    /// `None` when too many levels lie below it.
    fd: Option<OwnedFd>,
    ino: u64,
    /// Still to be walked.
    pending: Vec<Pending<D>>,
}

struct Pending<D> {
    name: CString,
    stat: IndexedStat,
    key: D,
}

struct Walk<'v, V: Visitor> {
    visitor: &'v mut V,
    device: (u32, u32),
    levels: Vec<Level<V::Directory>>,
    buffers: Buffers,
    object: ObjectMetadata,
    listing: Vec<MaybeUninit<u8>>,
}

/// Shows everything beneath `root` (not the root itself) to `visitor`. `key` and `stat` are the root's.
pub(super) fn walk<V: Visitor>(
    root: BorrowedFd<'_>,
    key: V::Directory,
    stat: &IndexedStat,
    visitor: &mut V,
) -> Result<(), IndexError> {
    let mut walk = Walk {
        visitor,
        device: (0, 0),
        levels: Vec::new(),
        buffers: Buffers::default(),
        object: ObjectMetadata::default(),
        listing: vec![MaybeUninit::uninit(); LISTING_BUFFER],
    };
    let now = metadata::stat_at(root, c"").map_err(|e| walk.error("read attributes of", c"", e))?;
    walk.device = (now.stx_dev_major, now.stx_dev_minor);
    let pending = Pending { name: CString::default(), stat: *stat, key };
    let fd = open_directory(root, c".").map_err(|e| walk.error("open", c"", e))?;
    walk.enter(fd, pending)?;
    while let Some(level) = walk.levels.last_mut() {
        match level.pending.pop() {
            Some(pending) => {
                let parent = level.fd.as_ref().ok_or_else(|| IndexError::Changed { path: PathBuf::new() })?;
                let fd = open_directory(parent.as_fd(), &pending.name);
                let fd = match fd {
                    Ok(fd) => fd,
                    // It was there, and a directory, a moment ago.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        return Err(walk.changed(&pending.name));
                    }
                    Err(e) => return Err(walk.error("open", &pending.name, e)),
                };
                walk.enter(fd, pending)?;
            }
            None => walk.leave()?,
        }
    }
    Ok(())
}

impl<V: Visitor> Walk<'_, V> {
    /// Shows a directory's objects and makes it the innermost level.
    fn enter(&mut self, fd: OwnedFd, this: Pending<V::Directory>) -> Result<(), IndexError> {
        self.expect_unchanged(&fd, &this)?;
        let names = self.list(fd.as_fd()).map_err(|e| self.error("list", &this.name, e))?;
        let mut level = Level { name: this.name.clone(), fd: None, ino: this.stat.ino, pending: Vec::new() };
        for name in names {
            let mut object = std::mem::take(&mut self.object);
            let st = match object.refill(fd.as_fd(), &name, &mut self.buffers) {
                Ok(st) => st,
                Err((_, Errno::NOENT)) => return Err(self.changed_in(&this.name, &name)),
                Err((operation, source)) => {
                    return Err(IndexError::Tree {
                        operation,
                        path: self.path_in(&this.name, &name),
                        source,
                    });
                }
            };
            if self.is_elsewhere(&st) {
                return Err(IndexError::CrossesFilesystem { path: self.path_in(&this.name, &name) });
            }
            let key = self.visitor.object(this.key, name.to_bytes(), &object)?;
            if let Some(key) = key.filter(|_| object.stat.is_dir()) {
                level.pending.push(Pending { name, stat: object.stat, key });
            }
            self.object = object;
        }
        self.expect_unchanged(&fd, &this)?;
        self.visitor.listed(this.key)?;
        if level.pending.is_empty() {
            return Ok(());
        }
        level.fd = Some(fd);
        self.levels.push(level);
        let far = self.levels.len().checked_sub(KEPT_OPEN + 1).and_then(|i| self.levels.get_mut(i));
        if let Some(far) = far {
            far.fd = None;
        }
        Ok(())
    }

    /// Goes back to the level above, opening it again where its descriptor was given up.
    fn leave(&mut self) -> Result<(), IndexError> {
        let Some(below) = self.levels.pop() else { return Ok(()) };
        let Some(level) = self.levels.last() else { return Ok(()) };
        if level.fd.is_some() {
            return Ok(());
        }
        let changed = self.changed(&below.name);
        let Some(below_fd) = below.fd else { return Err(changed) };
        let fd = open_directory(below_fd.as_fd(), c"..")
            .map_err(|e| self.error("open parent of", &below.name, e))?;
        let st = metadata::stat_at(fd.as_fd(), c"")
            .map_err(|e| self.error("read attributes above", &below.name, e))?;
        // The directory may have been moved elsewhere meanwhile.
        match self.levels.last_mut() {
            Some(level) if level.ino == st.stx_ino && self.device == (st.stx_dev_major, st.stx_dev_minor) => {
                level.fd = Some(fd);
                Ok(())
            }
            _ => Err(changed),
        }
    }

    /// Names in a directory, in the order of inode numbers: reading them in that order saves seeks where the
    /// inodes are not cached.
    fn list(&mut self, fd: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
        let mut names = Vec::new();
        let mut listing = RawDir::new(fd, &mut self.listing);
        while let Some(entry) = listing.next() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push((entry.ino(), entry.file_name().to_owned()));
            }
        }
        names.sort_unstable();
        Ok(names.into_iter().map(|(_, name)| name).collect())
    }

    fn expect_unchanged(&self, fd: &OwnedFd, this: &Pending<V::Directory>) -> Result<(), IndexError> {
        let st = metadata::stat_at(fd.as_fd(), c"")
            .map_err(|e| self.error("read attributes of", &this.name, e))?;
        // Size and links of a directory show changes that fall into one tick of the filesystem's clock.
        let same =
            this.stat.same_object(&st) && (this.stat.size, this.stat.nlink) == (st.stx_size, st.stx_nlink);
        if self.device != (st.stx_dev_major, st.stx_dev_minor) || !same {
            return Err(self.changed(&this.name));
        }
        Ok(())
    }

    fn is_elsewhere(&self, st: &Statx) -> bool {
        // A bind mount of the same filesystem has the same device number.
        let mount_root = st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        mount_root || self.device != (st.stx_dev_major, st.stx_dev_minor)
    }

    fn error(&self, operation: &'static str, name: &CStr, source: Errno) -> IndexError {
        IndexError::Tree { operation, path: self.path_in(name, c""), source }
    }

    fn changed(&self, name: &CStr) -> IndexError {
        self.changed_in(name, c"")
    }

    fn changed_in(&self, directory: &CStr, name: &CStr) -> IndexError {
        IndexError::Changed { path: self.path_in(directory, name) }
    }

    /// Path of `name` in `directory` in the innermost level; either may be empty.
    fn path_in(&self, directory: &CStr, name: &CStr) -> PathBuf {
        let levels = self.levels.iter().map(|l| l.name.as_c_str());
        let names = levels.chain([directory, name]).map(CStr::to_bytes).filter(|n| !n.is_empty());
        OsString::from_vec(names.collect::<Vec<_>>().join(&b'/')).into()
    }
}

/// Opens a directory itself (not what a symlink leads to) without changing its atime, where that is permitted.
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner, or who is privileged over him, may leave the atime alone.
        Err(Errno::PERM) => rustix::fs::openat(parent, name, flags, Mode::empty()),
        other => other,
    }
}
