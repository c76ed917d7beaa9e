//! File data.
//!
//! A file in use without a handle of its own keeps one descriptor on its node, within the budget; an open handle
//! keeps it from being closed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::copy_up::Need;
use super::{Caller, Overlay};
use crate::attr::{Kind, Time};
use crate::error::{Errno, OpError, OpResult};
use crate::fdcache::{CachedFd, Holder};
use crate::node::{Node, OpenFile};
use crate::sys::xattr::{self, Target};

const CAPABILITY: &std::ffi::CStr = c"security.capability";

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// For writing.
    pub write: bool,
    /// Cut to nothing.
    pub truncate: bool,
    /// A lower file with much data is not copied before the first change: what follows an open for writing is often
    /// a truncation, or nothing.
    pub lazy: bool,
}

/// Data that is copied at an open for writing also when that may be lazy, in bytes.
const MUCH_DATA: u64 = 1 << 20;

/// An open file: keeps the node and its descriptor.
#[derive(Debug)]
pub struct FileHandle {
    /// The file.
    node: Arc<Node>,
    /// The descriptor at the time of opening; a copy-up replaces the node's, which reads and writes use.
    pub file: Arc<CachedFd>,
    /// The descriptor is the upper file's.
    pub is_upper: bool,
}

/// What is known of a descriptor that was just opened.
struct Opened {
    writable: bool,
    upper: bool,
    /// Where the data ends, as long as nobody changes it.
    end: Option<u64>,
    /// Of the node's slot, before the place was looked at.
    epoch: u32,
}

impl FileHandle {
    /// The file.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        let mut slot = self.node.file.lock();
        slot.handles = slot.handles.saturating_sub(1);
    }
}

impl Overlay {
    /// Target of a symlink.
    ///
    /// # Errors
    /// EINVAL for what is none.
    pub fn readlink(&self, node: &Arc<Node>) -> OpResult<Vec<u8>> {
        if node.kind != Kind::Symlink {
            return Err(Errno::INVAL.into());
        }
        let lower = {
            let place = node.place.read();
            if place.upper.is_some() { None } else { place.lower.clone() }
        };
        if let Some(lower) = lower {
            return Ok(self.layers.readlink(&lower.dir, &lower.name)?);
        }
        self.with_upper(node, |place| match place {
            super::UpperPlace::At { dir, name, .. } => self.layers.readlink(dir, name),
            super::UpperPlace::Held(fd) => {
                match rustix::fs::readlinkat(fd, c"", Vec::with_capacity(256)) {
                    Ok(target) => Ok(target.into_bytes()),
                    // A symlink kept as a file.
                    Err(_) => {
                        let file = rustix::fs::open(
                            super::attr::proc_path(fd),
                            OFlags::RDONLY | OFlags::CLOEXEC,
                            rustix::fs::Mode::empty(),
                        )?;
                        let mut target = vec![0; 4096];
                        let n = rustix::io::pread(&file, &mut target, 0)?;
                        target.truncate(n);
                        Ok(target)
                    }
                }
            }
        })
    }

    /// Opens a file. For writing, a lower file is copied up (without its data when it is truncated), unless the options
    /// let that wait; the handle is not the upper file's then.
    ///
    /// # Errors
    /// EROFS, and what open(2) and copying fail with.
    pub fn open(&self, node: &Arc<Node>, options: OpenOptions, caller: &Caller) -> OpResult<FileHandle> {
        if node.kind == Kind::Dir {
            return Err(Errno::ISDIR.into());
        }
        if options.truncate {
            let set = super::SetAttr { size: Some(0), ..Default::default() };
            self.setattr(node, &set, caller)?;
        } else if options.write && !(options.lazy && self.has_much_lower_data(node)) {
            self.copy_up(node, Need::Data)?;
        }
        let waits = options.write && node.place.read().lacks_upper_data();
        let file = self.file_for(node, options.write && !waits)?;
        let is_upper = file.upper;
        node.file.lock().handles += 1;
        Ok(FileHandle { node: node.clone(), file: file.fd, is_upper })
    }

    fn has_much_lower_data(&self, node: &Node) -> bool {
        let data = {
            let place = node.place.read();
            if !place.lacks_upper_data() {
                return false;
            }
            place.lower.clone()
        };
        // Unknown is taken for little: the copy then says what is wrong.
        data.and_then(|data| self.layers.stat_raw(&data.dir, &data.name).ok())
            .is_some_and(|attr| attr.size > MUCH_DATA)
    }

    /// The node's descriptor, opened where it has none, or none that may write.
    pub(super) fn file_for(&self, node: &Arc<Node>, write: bool) -> OpResult<OpenFile> {
        loop {
            let epoch = {
                let mut slot = node.file.lock();
                slot.used = true;
                if let Some(file) = &slot.file
                    && (file.writable || !write)
                {
                    return Ok(file.clone());
                }
                slot.epoch
            };
            let (lower, in_upper) = {
                let place = node.place.read();
                let in_upper = !place.lacks_upper_data();
                (place.lower.clone(), in_upper)
            };
            let (fd, end) = if in_upper {
                let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
                (self.open_upper(node, flags)?, None)
            } else if write {
                return Err(Errno::STALE.into());
            } else {
                let Some(lower) = lower else {
                    let name = node.place.read().name.clone();
                    return Err(OpError::NoData { name: crate::error::os_name(&name) });
                };
                self.open_lower(node, &lower)?
            };
            let opened = Opened { writable: write, upper: in_upper, end, epoch };
            if let Some(file) = self.put_file(node, fd, opened) {
                return Ok(file);
            }
        }
    }

    /// A lower file's data, and where it ends.
    fn open_lower(
        &self,
        node: &Node,
        lower: &crate::layer::object::Object,
    ) -> OpResult<(OwnedFd, Option<u64>)> {
        let fd = self.layers.open_file(&lower.dir, &lower.name, OFlags::RDONLY)?;
        let attr = crate::layer::dir::stat_fd(&fd)?;
        if attr.kind() != Kind::File {
            return Err(Errno::IO.into());
        }
        let hole = attr.size > 0 && (lower.dir.is_impure() || attr.blocks * 512 < attr.size);
        if hole && node.place.read().upper.is_none() {
            let parts = node.place.read().parent.clone().map(|p| p.parts()).unwrap_or_default();
            if let Some(data) = self.metacopy_data(&lower.dir, &lower.name, &parts)? {
                return Ok((self.layers.open_file(&data.dir, &data.name, OFlags::RDONLY)?, None));
            }
        }
        Ok((fd, Some(attr.size)))
    }

    /// Keeps a descriptor on the node. `None` when the file has moved to the upper meanwhile.
    fn put_file(&self, node: &Arc<Node>, fd: OwnedFd, opened: Opened) -> Option<OpenFile> {
        let Opened { writable, upper, end, epoch } = opened;
        let file = OpenFile { fd: self.layers.context.fds.count_file(fd, end), writable, upper };
        let fresh = {
            let mut slot = node.file.lock();
            if slot.epoch != epoch {
                return None;
            }
            slot.used = true;
            slot.file.replace(file.clone()).is_none()
        };
        if fresh {
            self.layers.context.fds.register(Arc::downgrade(node) as Weak<dyn Holder>);
        }
        Some(file)
    }

    /// Keeps the descriptor that creating a file gave.
    pub(super) fn keep_file(&self, node: &Arc<Node>, fd: OwnedFd, writable: bool) {
        let epoch = node.file.lock().epoch;
        self.put_file(node, fd, Opened { writable, upper: true, end: None, epoch });
    }

    /// Reads up to `buffer.len()` bytes at `offset`; returns how many, less only at the end of the file.
    ///
    /// # Errors
    /// What pread(2) lists.
    pub fn read(&self, node: &Arc<Node>, offset: u64, buffer: &mut [u8]) -> OpResult<usize> {
        let file = self.file_for(node, false)?;
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(file.fd.as_fd(), &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    // A short read that ends where the file ended when it was opened has met the end; any other
                    // may have been cut by an error, which the next one tells.
                    if file.fd.ends_at(offset + done as u64) {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(e) if done == 0 => return Err(e.into()),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes `data` at `offset`; returns how many bytes, less than all only when some error came after them.
    /// `kill_set_id` names the caller when its writes clear set-id bits; `from_cache`: the kernel writes back pages
    /// of a shared mapping, which clears nothing.
    ///
    /// # Errors
    /// EROFS, ENOSPC, and what pwrite(2) and copying fail with.
    pub fn write(
        &self,
        node: &Arc<Node>,
        offset: u64,
        data: &[u8],
        kill_set_id: Option<&Caller>,
        from_cache: bool,
    ) -> OpResult<usize> {
        self.before_write(node, kill_set_id)?;
        let file = self.file_for(node, true)?;
        // The backing filesystem drops file capabilities on any write.
        let keep = if from_cache { xattr::get_vec(Target::Fd(file.fd.as_fd()), CAPABILITY)? } else { None };
        let kept = from_cache && self.kernel_keeps_mtime.load(Ordering::Relaxed);
        let mtime = if kept { Some(self.kernel_mtime(node, &file)?) } else { None };
        let result = Self::write_to(&file, offset, data);
        if let Some(time) = mtime {
            super::attr::set_mtime(file.fd.as_fd(), time)?;
        }
        if let Some(value) = keep {
            xattr::set(Target::Fd(file.fd.as_fd()), CAPABILITY, &value, 0)?;
        }
        result
    }

    /// Runs a change of a file's data that leaves its time of change to the kernel, where the kernel keeps it.
    fn keeping_mtime<T>(
        &self,
        node: &Node,
        file: &OpenFile,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> OpResult<T> {
        if !self.kernel_keeps_mtime.load(Ordering::Relaxed) {
            return Ok(change()?);
        }
        let time = self.kernel_mtime(node, file)?;
        let result = change()?;
        super::attr::set_mtime(file.fd.as_fd(), time)?;
        Ok(result)
    }

    /// What the kernel takes for the file's time of change.
    fn kernel_mtime(&self, node: &Node, file: &OpenFile) -> OpResult<Time> {
        if let Some(time) = node.kernel_mtime.lock().as_deref() {
            return Ok(*time);
        }
        let now = crate::layer::dir::stat_fd(file.fd.as_fd())?.mtime;
        Ok(**node.kernel_mtime.lock().get_or_insert_with(|| Box::new(now)))
    }

    fn write_to(file: &OpenFile, offset: u64, data: &[u8]) -> OpResult<usize> {
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(file.fd.as_fd(), &data[done..], offset + done as u64) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) if done == 0 => return Err(e.into()),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn before_write(&self, node: &Arc<Node>, kill_set_id: Option<&Caller>) -> OpResult<()> {
        if node.kind == Kind::Dir {
            return Err(Errno::ISDIR.into());
        }
        if node.place.read().lacks_upper_data() {
            self.copy_up(node, Need::Data)?;
        }
        if let Some(caller) = kill_set_id.filter(|_| node.may_have_set_id()) {
            let _changing = node.change.lock();
            self.clear_set_id(node, caller)?;
        }
        Ok(())
    }

    /// As fallocate(2), with its mode bits.
    ///
    /// # Errors
    /// EROFS, ENOSPC, EOPNOTSUPP, and what fallocate(2) lists.
    pub fn fallocate(
        &self,
        node: &Arc<Node>,
        mode: u32,
        offset: u64,
        length: u64,
        caller: &Caller,
    ) -> OpResult<()> {
        self.before_write(node, Some(caller).filter(|c| c.uid != 0))?;
        let file = self.file_for(node, true)?;
        let change =
            || rustix::fs::fallocate(file.fd.as_fd(), FallocateFlags::from_bits_retain(mode), offset, length);
        self.keeping_mtime(node, &file, change)
    }

    /// The next data (or hole) from `offset` on.
    ///
    /// # Errors
    /// ENXIO past the end.
    pub fn seek(&self, node: &Arc<Node>, offset: u64, data: bool) -> OpResult<u64> {
        let file = self.file_for(node, false)?;
        let to = if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
        Ok(rustix::fs::seek(file.fd.as_fd(), to)?)
    }

    /// As copy_file_range(2) between two files of the mount.
    ///
    /// # Errors
    /// EOPNOTSUPP or EXDEV where the filesystem cannot (the kernel copies by reading and writing then), EROFS,
    /// ENOSPC.
    pub fn copy_range(
        &self,
        from: (&Arc<Node>, u64),
        to: (&Arc<Node>, u64),
        length: u64,
        caller: &Caller,
    ) -> OpResult<usize> {
        self.before_write(to.0, Some(caller).filter(|c| c.uid != 0))?;
        let target = self.file_for(to.0, true)?;
        let source = self.file_for(from.0, false)?;
        let (mut at, mut into) = (from.1, to.1);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        let copy = || {
            let (source, target) = (source.fd.as_fd(), target.fd.as_fd());
            rustix::fs::copy_file_range(source, Some(&mut at), target, Some(&mut into), length)
        };
        self.keeping_mtime(to.0, &target, copy)
    }
}
