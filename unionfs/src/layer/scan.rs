//! Listing one directory of one layer, with its whiteouts understood.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RawDir};

use super::Layers;
use super::dir::{LayerDir, UPPER, stat_at, stat_fd};
use super::mark_io::with_name;
use crate::attr::Kind;
use crate::error::Errno;
use crate::marks::{MarkNames, NameMark, Opaque};
use crate::sys::xattr;

/// What a name is in one directory of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found {
    /// An object of this name that is no whiteout.
    pub object: Option<ObjectKind>,
    /// The name itself is a whiteout (device, or empty file with the xattr).
    pub whiteout: bool,
    /// A file `.wh.NAME` hides the name in the layers below.
    pub whiteout_file: bool,
}

impl Found {
    /// Nothing of the layers below shows under this name.
    pub fn hides_below(&self) -> bool {
        self.whiteout || self.whiteout_file || self.object == Some(ObjectKind::Other)
    }
}

/// All that merging needs to know of an object's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// Merges with directories below.
    Dir,
    /// Hides what is below.
    Other,
}

/// The names in a directory, unordered; a name may come twice (as object and hidden by its `.wh.` file).
#[derive(Debug, Default)]
pub struct Scan {
    /// Name and what it is.
    pub entries: Vec<(Arc<[u8]>, Found)>,
    /// `.wh..wh..opq` was among them: the layers below do not show.
    pub opaque: bool,
}

impl Scan {
    fn add(&mut self, name: &[u8], found: Found) {
        self.entries.push((Arc::from(name), found));
    }
}

impl Layers {
    /// Lists a directory.
    ///
    /// # Errors
    /// What openat(2) and getdents(2) list.
    pub fn scan(&self, dir: &Arc<LayerDir>) -> Result<Scan, Errno> {
        if let (Some(lower), Some(id)) = (self.lower(dir.layer), dir.index)
            && let Some(index) = lower.index()
        {
            match self.scan_index(dir, index, id, lower.immutable) {
                Ok(Some(scan)) => return Ok(scan),
                Ok(None) => lower.distrust_index(&"the directory has changed since it was made"),
                Err(e) => lower.distrust_index(&e),
            }
        }
        self.scan_directory(dir)
    }

    /// `None`: the directory is not the one that was indexed any more.
    fn scan_index(
        &self,
        dir: &Arc<LayerDir>,
        index: &crate::index::LayerIndex,
        id: crate::index::EntryId,
        immutable: bool,
    ) -> Result<Option<Scan>, crate::index::IndexError> {
        if !immutable {
            let recorded = index.entry(id)?.stat;
            let Ok(now) = dir.fd(&self.context).and_then(stat_fd) else { return Ok(None) };
            let time = |t: crate::attr::Time| (t.sec, t.nsec);
            // A rename of the layer's root changes its ctime and nothing in it.
            let ctime_fits = id == index.root() || recorded.ctime == time(now.ctime);
            if recorded.ino != now.ino || recorded.mtime != time(now.mtime) || !ctime_fits {
                return Ok(None);
            }
        }
        let mut scan = Scan::default();
        for child in index.children(id)? {
            let child = child?;
            let kind = Kind::of_mode(child.mode);
            let whiteout_device = kind == Kind::Char && (child.rdev_major, child.rdev_minor) == (0, 0);
            let marked = || -> Result<bool, crate::index::IndexError> {
                let entry = index.entry(child.id)?;
                Ok(entry.stat.size == 0
                    && (entry.xattr(c"trusted.overlay.whiteout".to_bytes())?.is_some()
                        || entry.xattr(c"user.overlay.whiteout".to_bytes())?.is_some()))
            };
            let may_be_marked = dir.opaque() == Opaque::XattrWhiteouts && kind == Kind::File;
            let whiteout = whiteout_device || (may_be_marked && marked()?);
            classify(&mut scan, dir, child.name, kind, whiteout);
        }
        Ok(Some(scan))
    }

    fn scan_directory(&self, dir: &Arc<LayerDir>) -> Result<Scan, Errno> {
        let fd = dir.fd(&self.context)?;
        // A description of its own: the cached one's position is shared between threads.
        let list = super::dir::with_fds(&self.context.fds, || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::openat(fd.as_fd(), c".", flags | OFlags::NOATIME, Mode::empty()) {
                Err(Errno::PERM) => rustix::fs::openat(fd.as_fd(), c".", flags, Mode::empty()),
                other => other,
            }
        })?;
        let mut scan = Scan::default();
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&list, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let (kind, whiteout) = match entry.file_type() {
                FileType::Directory => (Kind::Dir, false),
                FileType::RegularFile => {
                    let whiteout =
                        dir.opaque() == Opaque::XattrWhiteouts && self.is_xattr_whiteout(&list, name, dir)?;
                    (Kind::File, whiteout)
                }
                FileType::CharacterDevice | FileType::Unknown => match stat_at(&list, name) {
                    Ok(attr) => (attr.kind(), attr.is_whiteout_device()),
                    // Gone since the listing: then it is not there.
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(e),
                },
                _ => (Kind::Symlink, false),
            };
            classify(&mut scan, dir, name, kind, whiteout);
        }
        Ok(scan)
    }

    fn is_xattr_whiteout(&self, fd: impl AsFd, name: &[u8], dir: &LayerDir) -> Result<bool, Errno> {
        let attr = match stat_at(&fd, name) {
            Ok(attr) => attr,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(e),
        };
        if attr.size != 0 {
            return Ok(false);
        }
        let both = [MarkNames::trusted().whiteout, MarkNames::user().whiteout];
        let names = if dir.layer == UPPER { std::slice::from_ref(&self.names.whiteout) } else { &both[..] };
        with_name(fd, name, |target| {
            for name in names {
                match xattr::get(target, name, &mut []) {
                    Ok(_) => return Ok(true),
                    Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(false)
        })
    }
}

/// Adds an entry by what its name and type say.
fn classify(scan: &mut Scan, dir: &LayerDir, name: &[u8], kind: Kind, whiteout: bool) {
    if whiteout {
        scan.add(name, Found { whiteout: true, ..Found::default() });
        return;
    }
    let mark = if dir.has_plain_names() { NameMark::None } else { NameMark::of(name) };
    match mark {
        NameMark::Opaque => scan.opaque = true,
        NameMark::Whiteout(hidden) => scan.add(hidden, Found { whiteout_file: true, ..Found::default() }),
        NameMark::None => {
            let object = if kind == Kind::Dir { ObjectKind::Dir } else { ObjectKind::Other };
            scan.add(name, Found { object: Some(object), ..Found::default() });
        }
    }
}
