//! Reading one object of one layer: attributes, data, target, xattrs.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::Layers;
use super::dir::{LayerDir, UPPER, open_beneath, open_dir, stat_at, stat_fd, with_fds};
use super::mark_io::{DirMarks, XattrSource, c_name, dir_marks, override_stat};
use crate::attr::{Attr, Kind, Time};
use crate::error::Errno;
use crate::index::{Entry, EntryId, LayerIndex};
use crate::sys::xattr::{self, Target};

/// A name in a directory of a layer.
#[derive(Debug, Clone)]
pub struct Object {
    /// The directory.
    pub dir: Arc<LayerDir>,
    /// The name in it.
    pub name: Arc<[u8]>,
}

impl XattrSource for Entry<'_> {
    fn get(&self, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
        Ok(self.xattr(name.to_bytes()).map_err(|e| e.errno())?.map(<[u8]>::to_vec))
    }

    fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        Ok(self.xattrs().map_err(|e| e.errno())?.map(|(name, _)| name.to_vec()).collect())
    }
}

/// Attributes recorded in an index, for an object on the filesystem `dev`.
fn indexed_attr(entry: &Entry<'_>, dev: u64) -> Attr {
    let st = &entry.stat;
    let time = |(sec, nsec): (i64, u32)| Time { sec, nsec };
    Attr {
        ino: st.ino,
        dev,
        mode: st.mode,
        nlink: st.nlink,
        uid: st.uid,
        gid: st.gid,
        rdev: (st.rdev_major, st.rdev_minor),
        size: st.size,
        blocks: st.blocks,
        blksize: st.blksize,
        atime: time(st.atime),
        mtime: time(st.mtime),
        ctime: time(st.ctime),
    }
}

impl Layers {
    /// The entry of `name` in an indexed directory that needs no look at the disk.
    fn entry_of(&self, dir: &LayerDir, name: &[u8]) -> Option<Result<(&LayerIndex, EntryId), Errno>> {
        let index = self.immutable_index(dir.layer)?;
        let id = dir.index?;
        match index.lookup(id, name) {
            Ok(Some(child)) => Some(Ok((index, child))),
            Ok(None) => Some(Err(Errno::NOENT)),
            Err(e) => {
                self.lower(dir.layer)?.distrust_index(&e);
                None
            }
        }
    }

    /// Runs `read` on the index entry of an object, or `None` where the disk has to be asked.
    pub(crate) fn indexed<T>(
        &self,
        dir: &LayerDir,
        name: &[u8],
        read: impl FnOnce(&Entry<'_>) -> T,
    ) -> Option<Result<T, Errno>> {
        let (index, id) = match self.entry_of(dir, name)? {
            Ok(found) => found,
            Err(e) => return Some(Err(e)),
        };
        // Xattrs that cannot be read would be taken for none.
        match index.entry(id).and_then(|entry| entry.xattrs().map(|_| entry)) {
            Ok(entry) => Some(Ok(read(&entry))),
            Err(e) => {
                self.lower(dir.layer)?.distrust_index(&e);
                None
            }
        }
    }

    /// Attributes as on disk, no override applied.
    ///
    /// # Errors
    /// ENOENT, and what stat(2) lists.
    pub fn stat_raw(&self, dir: &Arc<LayerDir>, name: &[u8]) -> Result<Attr, Errno> {
        if let Some(answer) = self.indexed(dir, name, |entry| indexed_attr(entry, dir.dev)) {
            return answer;
        }
        stat_at(dir.fd(&self.context)?.as_fd(), name)
    }

    /// Attributes, with owner, mode and type from `override_stat` where the layer keeps them there.
    ///
    /// # Errors
    /// ENOENT, and what stat(2) lists.
    pub fn stat(&self, dir: &Arc<LayerDir>, name: &[u8]) -> Result<Attr, Errno> {
        let mut attr = self.stat_raw(dir, name)?;
        self.apply_override(dir, name, &mut attr)?;
        Ok(attr)
    }

    /// True where an object can carry an override: everywhere in a layer that works so, else among the entries of an
    /// impure directory, where an empty file may stand for a device 0:0. Anybody may set the xattr on a file of
    /// their own: without the layer's word it must not make them an owner, a mode or a device.
    pub fn may_override(&self, dir: &LayerDir, attr: &Attr) -> bool {
        let possible = matches!(attr.kind(), Kind::File | Kind::Dir);
        possible && (self.overrides(dir.layer) || Self::may_be_device(dir, attr))
    }

    /// An empty file that may stand for a device 0:0, in a layer that does not work with overrides otherwise.
    fn may_be_device(dir: &LayerDir, attr: &Attr) -> bool {
        dir.is_impure() && attr.kind() == Kind::File && attr.size == 0
    }

    fn apply_override(&self, dir: &Arc<LayerDir>, name: &[u8], attr: &mut Attr) -> Result<(), Errno> {
        if !self.may_override(dir, attr) {
            return Ok(());
        }
        let found = match self.indexed(dir, name, |entry| override_stat(entry)) {
            Some(answer) => answer??,
            None => super::mark_io::with_name(dir.fd(&self.context)?.as_fd(), name, |t| override_stat(&t))?,
        };
        if let Some(found) = found {
            let is_whiteout_device = found.file_type == Some(libc::S_IFCHR) && found.rdev == (0, 0);
            if self.overrides(dir.layer) || is_whiteout_device {
                apply(found, attr);
            }
        }
        Ok(())
    }

    /// As [`Self::stat`] for an open object.
    ///
    /// # Errors
    /// What fstat(2) lists.
    pub fn stat_open(&self, dir_may_override: bool, fd: impl AsFd) -> Result<Attr, Errno> {
        let mut attr = stat_fd(&fd)?;
        if dir_may_override
            && matches!(attr.kind(), Kind::File | Kind::Dir)
            && let Some(found) = override_stat(&Target::Fd(fd.as_fd()))?
        {
            apply(found, &mut attr);
        }
        Ok(attr)
    }

    /// Runs `read` on the xattrs of an object, from the index where that may answer.
    ///
    /// # Errors
    /// What `read` says, ENOENT.
    pub fn with_xattrs<T>(
        &self,
        dir: &Arc<LayerDir>,
        name: &[u8],
        read: impl Fn(&dyn XattrSource) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if let Some(answer) = self.indexed(dir, name, |entry| read(entry)) {
            return answer?;
        }
        let name = c_name(name)?;
        read(&Target::Name(dir.fd(&self.context)?.as_fd(), &name))
    }

    /// Target of a symlink.
    ///
    /// # Errors
    /// What readlink(2) lists.
    pub fn readlink(&self, dir: &Arc<LayerDir>, name: &[u8]) -> Result<Vec<u8>, Errno> {
        if let Some(answer) = self.indexed(dir, name, |entry| entry.symlink.map(<[u8]>::to_vec))
            && let Some(target) = answer?
        {
            return Ok(target);
        }
        let fd = dir.fd(&self.context)?;
        match rustix::fs::readlinkat(fd.as_fd(), name, Vec::with_capacity(256)) {
            Ok(target) => Ok(target.into_bytes()),
            // A symlink kept as a file, whose override names its type.
            Err(Errno::INVAL) => self.read_all(dir, name),
            Err(e) => Err(e),
        }
    }

    fn read_all(&self, dir: &Arc<LayerDir>, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let fd = self.open_file(dir, name, OFlags::RDONLY)?;
        let mut target = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let n = rustix::io::pread(&fd, &mut buffer, target.len() as u64)?;
            if n == 0 || target.len() > 4096 {
                return Ok(target);
            }
            target.extend_from_slice(&buffer[..n]);
        }
    }

    /// Opens the regular file `name`. Devices, fifos and sockets are never opened here: callers ask only for
    /// what they know to be a file, and O_NONBLOCK keeps a wrong guess from hanging.
    ///
    /// # Errors
    /// What openat(2) lists.
    pub fn open_file(&self, dir: &Arc<LayerDir>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let fd = dir.fd(&self.context)?;
        let flags = flags | OFlags::NONBLOCK;
        if dir.layer == UPPER && !self.config.flags.noatime {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return with_fds(&self.context.fds, || {
                rustix::fs::openat(fd.as_fd(), name, flags, Mode::empty())
            });
        }
        with_fds(&self.context.fds, || open_beneath(fd.as_fd(), name, flags))
    }

    /// Opens the directory `name` in `dir` as a part of a merged directory.
    ///
    /// # Errors
    /// ENOTDIR, ENOENT, and what openat(2) lists.
    pub fn open_child(
        &self,
        dir: &Arc<LayerDir>,
        name: &Arc<[u8]>,
    ) -> Result<(Arc<LayerDir>, DirMarks), Errno> {
        let lower = dir.layer != UPPER;
        if let Some(found) = self.entry_of(dir, name) {
            let (index, id) = found?;
            if let Ok(entry) = index.entry(id) {
                if Kind::of_mode(entry.stat.mode) != Kind::Dir {
                    return Err(Errno::NOTDIR);
                }
                let marks = dir_marks(&entry, &self.names, lower)?;
                let place = (dir.dev, entry.stat.ino);
                let child = LayerDir::child(
                    dir,
                    name.clone(),
                    Some(id),
                    place,
                    marks.opaque,
                    marks.flags,
                    None,
                    &self.context.fds,
                );
                return Ok((child, marks));
            }
        }
        // An index that must be compared with the directory still tells where in it the directory is.
        let index_id = dir
            .index
            .zip(self.index_of(dir.layer))
            .and_then(|(id, index)| index.lookup(id, name).ok().flatten());
        let parent = dir.fd(&self.context)?;
        let fd = with_fds(&self.context.fds, || open_dir(parent.as_fd(), name))?;
        let attr = stat_fd(&fd)?;
        let marks = dir_marks(&Target::Fd(fd.as_fd()), &self.names, lower)?;
        // Below a mount point of another filesystem the index (made of one filesystem) has nothing to say.
        let index_id = index_id.filter(|_| attr.dev == dir.dev);
        let place = (attr.dev, attr.ino);
        let child = LayerDir::child(
            dir,
            name.clone(),
            index_id,
            place,
            marks.opaque,
            marks.flags,
            Some(fd),
            &self.context.fds,
        );
        Ok((child, marks))
    }
}

fn apply(found: crate::marks::OverrideStat, attr: &mut Attr) {
    attr.uid = found.uid;
    attr.gid = found.gid;
    let file_type = found.file_type.unwrap_or(attr.mode & libc::S_IFMT);
    attr.mode = file_type | found.mode;
    if matches!(attr.kind(), Kind::Block | Kind::Char) {
        attr.rdev = found.rdev;
    }
    if !matches!(attr.kind(), Kind::File | Kind::Dir | Kind::Symlink) {
        attr.size = 0;
    }
}

/// Reads one xattr of an open file.
///
/// # Errors
/// What getxattr(2) lists, but ENODATA.
pub fn xattr_of_fd(fd: impl AsFd, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    xattr::get_vec(Target::Fd(fd.as_fd()), name)
}

impl Layers {
    /// Attributes of an indexed directory.
    ///
    /// # Errors
    /// What reading the index fails with; the index is not used any more then.
    pub fn indexed_dir(
        &self,
        index: &LayerIndex,
        id: EntryId,
        dir: &LayerDir,
    ) -> Result<Attr, crate::index::IndexError> {
        match index.entry(id) {
            Ok(entry) => {
                let mut attr = indexed_attr(&entry, dir.dev);
                if self.overrides(dir.layer)
                    && let Ok(Some(found)) = override_stat(&entry)
                {
                    apply(found, &mut attr);
                }
                Ok(attr)
            }
            Err(e) => {
                if let Some(lower) = self.lower(dir.layer) {
                    lower.distrust_index(&e);
                }
                Err(e)
            }
        }
    }
}
