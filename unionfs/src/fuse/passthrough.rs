//! Which opens the kernel serves from the backing file itself.
//!
//! The kernel holds that all passthrough opens of one inode share one backing file and exclude opens through the
//! page cache. A lower file is therefore never passed through: opened before a copy-up, it would serve the old
//! file after it. An upper file is passed through when nobody has it open through the cache.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use dashmap::DashMap;

use super::abi::FopenFlags;
use super::device::Backing;
use crate::overlay::FileHandle;

/// How one open is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// Through the page cache, in a mode without passthrough.
    Plain,
    /// By the kernel, from the backing file.
    Passthrough {
        /// Also writes.
        write: bool,
    },
    /// Through the page cache, whose pages are still right.
    Cached,
    /// Through the page cache, whose pages are not: a passthrough write may have gone by them.
    CachedFresh,
    /// Without a cache: the inode is passed through, but reads and writes of this open must come to us. The kernel
    /// takes every open of such an inode for one more passthrough open, or refuses it (EIO, `fuse_file_io_open`);
    /// `FOPEN_DIRECT_IO` goes before it for reads and writes, and a mapping is of the backing file.
    Direct {
        /// Also writes.
        write: bool,
    },
}

impl OpenMode {
    pub(super) fn flags(self) -> FopenFlags {
        match self {
            Self::Plain | Self::Cached => FopenFlags::KEEP_CACHE,
            Self::Passthrough { .. } | Self::CachedFresh => FopenFlags::empty(),
            Self::Direct { .. } => FopenFlags::DIRECT_IO,
        }
    }

    /// The file is open for writing that may go by us.
    pub(super) fn writes_by_kernel(self) -> bool {
        matches!(self, Self::Passthrough { write: true } | Self::Direct { write: true })
    }
}

impl Opens {
    fn pass(&mut self, write: bool) {
        self.passed += 1;
        self.written |= write;
        self.writing += u32::from(write);
    }
}

#[derive(Debug, Default)]
struct Opens {
    backing: Option<Arc<Backing>>,
    passed: u32,
    /// Of these, for writing.
    writing: u32,
    cached: u32,
    /// A passthrough open for writing has been: pages in the cache may be old.
    written: bool,
}

/// Open files by inode number.
#[derive(Debug)]
pub(crate) struct Passthrough(DashMap<u64, Opens>);

impl Default for Passthrough {
    fn default() -> Self {
        Self(crate::shards::map())
    }
}

impl Passthrough {
    /// Decides how an open is served; `is_new`: the file was made by it; `register` makes the kernel know the backing file.
    pub(super) fn open(
        &self,
        file: &FileHandle,
        write: bool,
        is_new: bool,
        register: impl FnOnce(BorrowedFd<'_>) -> std::io::Result<Backing>,
    ) -> (OpenMode, Option<Arc<Backing>>) {
        let mut opens = self.0.entry(file.node().ino).or_default();
        // Writes that the kernel does itself would leave set-id bits and file capabilities in place.
        let keeps =
            |file: &FileHandle| file.node().may_have_set_id() || !is_new && has_capability_xattr(file);
        let allowed = file.is_upper && !(write && keeps(file));
        let wanted = write || opens.passed > 0 || is_large(file);
        if allowed && wanted && opens.cached == 0 {
            let backing = match &opens.backing {
                Some(backing) => Some(backing.clone()),
                None => match register(file.file.as_fd()) {
                    Ok(id) => Some(Arc::new(id)),
                    Err(e) => {
                        tracing::debug!("file not passed through: {e}");
                        None
                    }
                },
            };
            if let Some(backing) = backing {
                opens.backing = Some(backing.clone());
                opens.pass(write);
                return (OpenMode::Passthrough { write }, Some(backing));
            }
        }
        if opens.passed > 0 {
            opens.pass(write);
            return (OpenMode::Direct { write }, opens.backing.clone());
        }
        opens.cached += 1;
        let mode = if std::mem::take(&mut opens.written) { OpenMode::CachedFresh } else { OpenMode::Cached };
        (mode, None)
    }

    /// An open file is closed.
    pub(crate) fn release(&self, ino: u64, mode: OpenMode) {
        let Some(mut opens) = self.0.get_mut(&ino) else { return };
        match mode {
            OpenMode::Passthrough { write } | OpenMode::Direct { write } => {
                opens.passed = opens.passed.saturating_sub(1);
                opens.writing = opens.writing.saturating_sub(u32::from(write));
                if opens.passed == 0 {
                    opens.backing = None;
                }
            }
            OpenMode::Cached | OpenMode::CachedFresh => opens.cached = opens.cached.saturating_sub(1),
            OpenMode::Plain => {}
        }
        let unused = opens.passed == 0 && opens.cached == 0 && !opens.written;
        drop(opens);
        if unused {
            self.0.remove_if(&ino, |_, o| o.passed == 0 && o.cached == 0 && !o.written);
        }
    }

    /// The kernel has the file open for writing by itself.
    pub(crate) fn is_written(&self, ino: u64) -> bool {
        self.0.get(&ino).is_some_and(|opens| opens.writing > 0)
    }

    /// The inode's number may come back as another object.
    pub(crate) fn forget(&self, ino: u64) {
        self.0.remove_if(&ino, |_, o| o.passed == 0 && o.cached == 0);
    }
}

/// Bytes up to which a file is read through the page cache, once nobody writes it: that costs one request once, where each
/// open that is passed through costs two system calls here and, by the access time, a request for attributes.
const SMALL: u64 = 64 << 10;

fn is_large(file: &FileHandle) -> bool {
    crate::layer::dir::stat_fd(file.file.as_fd()).map_or(true, |attr| attr.size > SMALL)
}

fn has_capability_xattr(file: &FileHandle) -> bool {
    // Unreadable is taken for present: then the write comes to us, which is always right.
    !matches!(crate::layer::object::xattr_of_fd(&file.file, c"security.capability"), Ok(None))
}
