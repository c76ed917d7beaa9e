//! What a stack of layer trees shows, read directly: no mount, no index, nothing written.
//!
//! For work that reads a whole tree once (export, commit) or a name now and then (hard links to lower layers).
//! The marks and their meaning are those of the kernel's overlayfs (`Documentation/filesystems/overlayfs.rst`) and of
//! the OCI image specification (layer.md).

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::disk::{self, OVERRIDE_STAT, Target};
use super::index::ObjectStat;
use super::remove::list;
use crate::tar::{Entry, EntryKind, Xattr};

/// One layer's tree, open.
#[derive(Debug, Clone)]
pub struct Layer {
    root: Arc<OwnedFd>,
    /// Owners, modes and types are in xattrs.
    overrides: bool,
}

impl Layer {
    /// Opens the tree at `path`.
    ///
    /// # Errors
    /// Those of opening a directory and reading an xattr.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::of(rustix::fs::open(path, flags, Mode::empty())?)
    }

    /// The tree whose root directory is open already.
    ///
    /// # Errors
    /// Those of reading an xattr.
    pub fn of(root: OwnedFd) -> Result<Self, Errno> {
        let overrides = disk::xattr(Target::Open(root.as_fd()), OVERRIDE_STAT)?.is_some();
        Ok(Self { root: Arc::new(root), overrides })
    }
}

/// Layers, the topmost first.
#[derive(Debug, Clone)]
pub struct Stack {
    layers: Vec<Layer>,
    trusted: bool,
    /// Marks mean nothing, and names of whiteouts are names.
    is_plain: bool,
}

/// A directory as it shows: its part in each layer that has one, the topmost first.
#[derive(Debug, Clone)]
pub struct MergedDirectory {
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    layer: usize,
    fd: Arc<OwnedFd>,
}

impl Part {
    fn target(&self) -> Target<'_> {
        Target::Open(self.fd.as_fd())
    }
}

/// An object as it shows.
#[derive(Debug, Clone)]
pub struct MergedObject {
    name: CString,
    /// The directory on disk that has it.
    holder: Part,
    stat: ObjectStat,
    kind: FileType,
    directory: Option<MergedDirectory>,
    /// Where to look for its data, when it has only metadata.
    data: Option<DataSource>,
}

#[derive(Debug, Clone)]
enum DataSource {
    Path(Vec<u8>),
    Name(MergedDirectory, Vec<u8>),
}

/// Lower layers that a search may be led to, one after the other.
const MAX_FOLLOWED: usize = 500;
/// As the kernel has it (MAXSYMLINKS).
const MAX_SYMLINKS: usize = 40;

impl Stack {
    /// `layers`, the topmost first.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers, trusted: reads_trusted(), is_plain: false }
    }

    /// Opens the trees at `paths`, the topmost first.
    ///
    /// # Errors
    /// Those of [`Layer::open`].
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self, Errno> {
        Ok(Self::new(paths.iter().map(|path| Layer::open(path.as_ref())).collect::<Result<_, _>>()?))
    }

    /// A directory that is no layer: what would be a mark in one is there as it is.
    ///
    /// # Errors
    /// Those of [`Layer::open`].
    pub fn plain(path: &Path) -> Result<Self, Errno> {
        Ok(Self { is_plain: true, ..Self::open(&[path])? })
    }

    /// The layers below the topmost one.
    #[must_use]
    pub fn lowers(&self) -> Self {
        self.below(1)
    }

    /// The layers below the topmost `count`.
    #[must_use]
    pub(super) fn below(&self, count: usize) -> Self {
        Self { layers: self.layers.iter().skip(count).cloned().collect(), ..*self }
    }

    /// True without any layer.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The root directory.
    ///
    /// # Errors
    /// Those of reading its marks.
    pub fn root(&self) -> Result<MergedDirectory, Errno> {
        self.root_below(0)
    }

    /// The root directory's attributes as an entry without a name; `None` without layers.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn root_entry(&self) -> Result<Option<Entry>, Errno> {
        let Some(layer) = self.layers.first() else { return Ok(None) };
        let target = Target::Open(layer.root.as_fd());
        let mut stat = disk::stat(target)?;
        let kind = overridden(layer.overrides, target, &mut stat)?;
        self.entry_of(target, &stat, kind, Vec::new()).map(Some)
    }

    /// What the topmost layer's root directory is; `None` without layers.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn root_stat(&self) -> Result<Option<ObjectStat>, Errno> {
        self.layers.first().map(|layer| disk::stat(Target::Open(layer.root.as_fd()))).transpose()
    }

    /// A mark of the topmost layer's root directory, by its name without prefix.
    pub(super) fn root_mark(&self, name: &str) -> Result<Option<Vec<u8>>, Errno> {
        match self.layers.first() {
            Some(layer) => self.mark(Target::Open(layer.root.as_fd()), name),
            None => Ok(None),
        }
    }

    fn root_below(&self, first: usize) -> Result<MergedDirectory, Errno> {
        let mut parts = Vec::new();
        for (layer, opened) in self.layers.iter().enumerate().skip(first) {
            let part = Part { layer, fd: opened.root.clone() };
            let opaque = self.is_opaque(&part)?;
            parts.push(part);
            if opaque {
                break;
            }
        }
        Ok(MergedDirectory { parts })
    }

    /// Where `path` (with a slash in front) leads in the tree that this shows, symlinks followed and never left by; as
    /// much of it as exists, the rest as it is said.
    ///
    /// # Errors
    /// ELOOP for too many symlinks; those of the system calls.
    pub fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let split = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/')
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .rev()
                .collect()
        };
        let mut waiting = split(path);
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut followed = 0;
        while let Some(name) = waiting.pop() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            let names: Vec<&[u8]> = done.iter().map(Vec::as_slice).collect();
            let Some(object) = self.lookup(&names)? else { continue };
            if object.kind != FileType::Symlink {
                continue;
            }
            followed += 1;
            if followed > MAX_SYMLINKS {
                return Err(Errno::LOOP);
            }
            let target = object.link_target()?;
            done.pop();
            if target.starts_with(b"/") {
                done.clear();
            }
            waiting.extend(split(&target));
        }
        Ok(done.iter().flat_map(|name| [b"/".as_slice(), name].concat()).collect())
    }

    /// The object that `names` lead to from the root, symlinks not followed.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn lookup(&self, names: &[&[u8]]) -> Result<Option<MergedObject>, Errno> {
        self.lookup_below(0, names)
    }

    fn lookup_below(&self, first: usize, names: &[&[u8]]) -> Result<Option<MergedObject>, Errno> {
        let mut at = self.root_below(first)?;
        let Some((last, parents)) = names.split_last() else { return Ok(None) };
        for name in parents {
            match self.child(&at, name)?.and_then(|object| object.directory) {
                Some(directory) => at = directory,
                None => return Ok(None),
            }
        }
        self.child(&at, last)
    }

    /// The object called `name` in `directory`.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn child(&self, directory: &MergedDirectory, name: &[u8]) -> Result<Option<MergedObject>, Errno> {
        if self.hides_name(name) {
            return Ok(None);
        }
        let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let whiteout_file = CString::new([b".wh.", name].concat()).map_err(|_| Errno::INVAL)?;
        let mut found: Option<MergedObject> = None;
        let mut parts: Vec<Part> = Vec::new();
        for (at, part) in directory.parts.iter().enumerate() {
            let target = Target::Name(part.fd.as_fd(), &c_name);
            let hides = || disk::stat(Target::Name(part.fd.as_fd(), &whiteout_file)).map(|_| ());
            let mut stat = match disk::stat(target) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => match hides() {
                    Ok(()) => break,
                    Err(Errno::NOENT | Errno::NAMETOOLONG) => continue,
                    Err(errno) => return Err(errno),
                },
                Err(errno) => return Err(errno),
            };
            let kind = overridden(self.layers[part.layer].overrides, target, &mut stat)?;
            if self.is_whiteout(part, target, &stat, kind)? {
                break;
            }
            if kind != FileType::Directory {
                if found.is_none() {
                    let below = MergedDirectory { parts: directory.parts[at + 1..].to_vec() };
                    let data = self.data_source(target, kind, below, name)?;
                    let holder = part.clone();
                    found = Some(MergedObject {
                        name: c_name.clone(),
                        holder,
                        stat,
                        kind,
                        directory: None,
                        data,
                    });
                }
                break;
            }
            let fd = Arc::new(disk::open_directory(&*part.fd, &c_name)?);
            let inner = Part { layer: part.layer, fd };
            if found.is_none() {
                let holder = part.clone();
                found = Some(MergedObject {
                    name: c_name.clone(),
                    holder,
                    stat,
                    kind,
                    directory: None,
                    data: None,
                });
            }
            let opaque = self.is_opaque(&inner)? || hides().is_ok();
            let redirect = if opaque { None } else { self.mark(inner.target(), "redirect")? };
            let layer = inner.layer;
            parts.push(inner);
            if opaque {
                break;
            }
            if let Some(redirect) = redirect {
                let below = MergedDirectory { parts: directory.parts[at + 1..].to_vec() };
                parts.extend(self.redirected(layer, &redirect, &below)?);
                break;
            }
        }
        if let Some(object) = &mut found
            && object.kind == FileType::Directory
        {
            object.directory = Some(MergedDirectory { parts });
        }
        Ok(found)
    }

    /// The parts of a directory that was renamed, in the layers below `layer`.
    fn redirected(&self, layer: usize, redirect: &[u8], below: &MergedDirectory) -> Result<Vec<Part>, Errno> {
        let found = match redirect.strip_prefix(b"/") {
            Some(path) => {
                let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
                if names.iter().any(|name| is_no_name(name)) {
                    return Err(Errno::IO);
                }
                self.lookup_below(layer + 1, &names)?
            }
            None if is_no_name(redirect) || redirect.contains(&b'/') => return Err(Errno::IO),
            None => self.child(below, redirect)?,
        };
        Ok(found.and_then(|object| object.directory).map_or_else(Vec::new, |directory| directory.parts))
    }

    fn data_source(
        &self,
        target: Target<'_>,
        kind: FileType,
        below: MergedDirectory,
        name: &[u8],
    ) -> Result<Option<DataSource>, Errno> {
        if kind != FileType::RegularFile || self.mark(target, "metacopy")?.is_none() {
            return Ok(None);
        }
        Ok(Some(match self.mark(target, "redirect")? {
            Some(path) if path.starts_with(b"/") => DataSource::Path(path[1..].to_vec()),
            Some(name) => DataSource::Name(below, name),
            None => DataSource::Name(below, name.to_vec()),
        }))
    }

    /// All objects in `directory`, sorted by name.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn list(&self, directory: &MergedDirectory) -> Result<Vec<(Vec<u8>, MergedObject)>, Errno> {
        let mut names = BTreeSet::new();
        for part in &directory.parts {
            for (name, _) in list(part.fd.as_fd())? {
                if !self.hides_name(name.to_bytes()) {
                    names.insert(name.into_bytes());
                }
            }
        }
        let mut objects = Vec::with_capacity(names.len());
        for name in names {
            if let Some(object) = self.child(directory, &name)? {
                objects.push((name, object));
            }
        }
        Ok(objects)
    }

    fn is_whiteout(
        &self,
        part: &Part,
        target: Target<'_>,
        stat: &ObjectStat,
        kind: FileType,
    ) -> Result<bool, Errno> {
        if kind == FileType::CharacterDevice {
            return Ok(stat.device == (0, 0));
        }
        if kind != FileType::RegularFile || stat.size != 0 {
            return Ok(false);
        }
        // Only there can an empty file be a whiteout; it is asked for last.
        Ok(self.mark(target, "whiteout")?.is_some()
            && self.mark(part.target(), "opaque")?.is_some_and(|value| value == b"x"))
    }

    fn hides_name(&self, name: &[u8]) -> bool {
        !self.is_plain && is_mark_name(name)
    }

    fn is_opaque(&self, part: &Part) -> Result<bool, Errno> {
        if self.is_plain {
            return Ok(false);
        }
        if self.mark(part.target(), "opaque")?.is_some_and(|value| value == b"y") {
            return Ok(true);
        }
        if disk::xattr(part.target(), c"user.fuseoverlayfs.opaque")?.is_some_and(|value| value == b"y") {
            return Ok(true);
        }
        match disk::stat(Target::Name(part.fd.as_fd(), c".wh..wh..opq")) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn mark(&self, target: Target<'_>, name: &str) -> Result<Option<Vec<u8>>, Errno> {
        if self.is_plain {
            return Ok(None);
        }
        for prefix in disk::PREFIXES {
            // What an ordinary user unpacked is opaque for root too, as through a mount.
            let is_read = match prefix {
                "trusted.overlay." => self.trusted,
                _ => !self.trusted || name == "opaque",
            };
            if !is_read {
                continue;
            }
            let name = CString::new(format!("{prefix}{name}")).map_err(|_| Errno::INVAL)?;
            match disk::xattr(target, &name) {
                Ok(None) => {}
                // User xattrs do not exist on what is no file and no directory.
                Err(Errno::PERM) => {}
                other => return other,
            }
        }
        Ok(None)
    }

    fn entry_of(
        &self,
        target: Target<'_>,
        stat: &ObjectStat,
        kind: FileType,
        link: Vec<u8>,
    ) -> Result<Entry, Errno> {
        let kind = match kind {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket | FileType::Unknown => return Err(Errno::OPNOTSUPP),
        };
        let mut entry = Entry::new(Vec::new(), kind);
        entry.link = link;
        entry.mode = stat.mode & 0o7777;
        (entry.uid, entry.gid) = (stat.uid, stat.gid);
        entry.size = if kind == EntryKind::File { stat.size } else { 0 };
        entry.mtime = stat.mtime;
        entry.device = stat.device;
        entry.xattrs = disk::xattrs(target)?
            .into_iter()
            .filter_map(|(name, value)| Some((self.shown(name)?, value)))
            .collect();
        Ok(entry)
    }

    /// What the xattr `stored` is called in the merged view; `None` for marks.
    fn shown(&self, stored: Vec<u8>) -> Option<Vec<u8>> {
        let own = if self.trusted { "trusted.overlay." } else { "user.overlay." };
        if let Some(rest) = stored.strip_prefix(own.as_bytes()) {
            return rest.strip_prefix(b"overlay.").map(|rest| [own.as_bytes(), rest].concat());
        }
        let is_mark = stored == OVERRIDE_STAT.to_bytes()
            || stored == b"security.fuseoverlayfs.override_stat"
            || stored.starts_with(b"user.fuseoverlayfs.");
        (!is_mark).then_some(stored)
    }
}

impl MergedDirectory {
    /// Its part in the topmost layer, when it has one.
    pub(super) fn top(&self) -> Option<BorrowedFd<'_>> {
        self.parts.first().filter(|part| part.layer == 0).map(|part| part.fd.as_fd())
    }

    /// Whether it shows what `below`, a directory of the layers below the topmost, does, with the topmost's on it.
    pub(super) fn merges_with(&self, below: &Self) -> bool {
        self.merges_above(1, below)
    }

    /// Whether it shows what `below`, a directory of the layers below the topmost `count`, does, with theirs on it.
    pub(super) fn merges_above(&self, count: usize, below: &Self) -> bool {
        let identity = |part: &Part| rustix::fs::fstat(&*part.fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        let own = self.parts.iter().find(|part| part.layer >= count);
        match (own, below.parts.first()) {
            (Some(own), Some(below)) => identity(own).is_some_and(|own| Some(own) == identity(below)),
            _ => false,
        }
    }

    /// The names about which the topmost `count` layers say something here, some of them several times.
    pub(super) fn names_above(&self, count: usize) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = Vec::new();
        for part in self.parts.iter().take_while(|part| part.layer < count) {
            for (name, _) in list(part.fd.as_fd())? {
                let mut name = name.into_bytes();
                if name == b".wh..wh..opq" {
                    continue;
                }
                // A whiteout file and what it stands for are one name.
                if is_mark_name(&name) {
                    name.drain(..4);
                }
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Whether layers below the topmost have parts of it.
    pub(super) fn has_lowers(&self) -> bool {
        self.parts.iter().any(|part| part.layer > 0)
    }
}

impl MergedObject {
    /// Attributes on disk, overrides applied. The size of a metadata-only copy is that of its data.
    pub fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    /// Its type.
    pub fn kind(&self) -> FileType {
        self.kind
    }

    /// Its entries, when it is a directory.
    pub fn directory(&self) -> Option<&MergedDirectory> {
        self.directory.as_ref()
    }

    /// True when it comes from the topmost layer.
    pub fn is_top(&self) -> bool {
        self.holder.layer == 0
    }

    /// Layer and inode number: equal for the names of one object.
    pub fn identity(&self) -> (usize, u64) {
        (self.holder.layer, self.stat.ino)
    }

    /// True when its data is in a layer below.
    pub fn is_metadata_only(&self) -> bool {
        self.data.is_some()
    }

    pub(super) fn target(&self) -> Target<'_> {
        Target::Name(self.holder.fd.as_fd(), &self.name)
    }

    /// Its xattrs as they show, sorted by name.
    ///
    /// # Errors
    /// Those of reading them.
    pub fn xattrs(&self, stack: &Stack) -> Result<Vec<Xattr>, Errno> {
        let shown = disk::xattrs(self.target())?
            .into_iter()
            .filter_map(|(name, value)| Some((stack.shown(name)?, value)));
        Ok(shown.collect())
    }

    /// Where it is in the layers below, when the topmost has renamed it; with a slash in front.
    ///
    /// # Errors
    /// Those of reading its marks.
    pub fn renamed_from(&self, stack: &Stack) -> Result<Option<Vec<u8>>, Errno> {
        Ok(self.mark(stack, "redirect")?.filter(|_| self.is_top()).filter(|path| path.starts_with(b"/")))
    }

    /// One of its marks, by its name without prefix.
    pub(super) fn mark(&self, stack: &Stack, name: &str) -> Result<Option<Vec<u8>>, Errno> {
        stack.mark(self.target(), name)
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn link_target(&self) -> Result<Vec<u8>, Errno> {
        if FileType::from_raw_mode(self.stat.mode) == FileType::Symlink {
            return Ok(rustix::fs::readlinkat(&*self.holder.fd, &self.name, Vec::new())?.into_bytes());
        }
        // Kept as a file: see `Marks::overrides`.
        let mut target = vec![0; 4096];
        let file = open_file(&self.holder, &self.name)?;
        let len = rustix::io::read(&file, &mut target[..])?;
        target.truncate(len);
        Ok(target)
    }

    /// Everything but its path, as an archive has it.
    ///
    /// # Errors
    /// EOPNOTSUPP for sockets, which archives do not have; those of the system calls.
    pub fn describe(&self, stack: &Stack) -> Result<Entry, Errno> {
        let link = match self.kind {
            FileType::Symlink => self.link_target()?,
            _ => Vec::new(),
        };
        stack.entry_of(self.target(), &self.stat, self.kind, link)
    }

    /// Its data, wherever that is.
    ///
    /// # Errors
    /// EIO when a metadata-only copy leads nowhere; those of opening a file.
    pub fn open(&self, stack: &Stack) -> Result<OwnedFd, Errno> {
        let mut object = self.clone();
        for _ in 0..MAX_FOLLOWED {
            let next = match &object.data {
                None => return open_file(&object.holder, &object.name),
                Some(DataSource::Path(path)) => {
                    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
                    stack.lookup_below(object.holder.layer + 1, &names)?
                }
                Some(DataSource::Name(directory, name)) => stack.child(directory, name)?,
            };
            object = next.filter(|found| found.kind == FileType::RegularFile).ok_or(Errno::IO)?;
        }
        Err(Errno::LOOP)
    }
}

fn open_file(holder: &Part, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // Where that is not permitted, the time of access is the price.
    match rustix::fs::openat(&*holder.fd, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(&*holder.fd, name, flags, Mode::empty()),
        other => other,
    }
}

/// Applies an `override_stat` (`uid:gid:mode[:type[-major-minor]]`, mode octal), where the layer works with such.
fn overridden(overrides: bool, target: Target<'_>, stat: &mut ObjectStat) -> Result<FileType, Errno> {
    let own = FileType::from_raw_mode(stat.mode);
    if !overrides || !matches!(own, FileType::RegularFile | FileType::Directory) {
        return Ok(own);
    }
    let Some(value) = disk::xattr(target, OVERRIDE_STAT)? else { return Ok(own) };
    let text = String::from_utf8_lossy(&value).into_owned();
    let mut fields = text.trim_end_matches('\0').split(':');
    let mut number = |radix| fields.next().and_then(|field| u32::from_str_radix(field, radix).ok());
    let (Some(uid), Some(gid), Some(mode)) = (number(10), number(10), number(8)) else {
        return Err(Errno::IO);
    };
    (stat.uid, stat.gid) = (uid, gid);
    stat.mode = stat.mode & 0o170_000 | mode & 0o7777;
    let mut word = fields.next().unwrap_or("").split('-');
    let kind = match word.next() {
        Some("symlink") => FileType::Symlink,
        Some("pipe") => FileType::Fifo,
        Some("char") => FileType::CharacterDevice,
        Some("block") => FileType::BlockDevice,
        Some("socket") => FileType::Socket,
        _ => return Ok(own),
    };
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        let mut part = || word.next().and_then(|number| number.parse().ok());
        stat.device = part().zip(part()).ok_or(Errno::IO)?;
    }
    Ok(kind)
}

fn is_no_name(name: &[u8]) -> bool {
    name.is_empty() || name == b"." || name == b".." || name.len() > 255
}

/// Names that are marks and never show.
pub(super) fn is_mark_name(name: &[u8]) -> bool {
    name.strip_prefix(b".wh.").is_some_and(|hidden| !matches!(hidden, b"" | b"." | b".."))
}

/// `trusted.` xattrs are for CAP_SYS_ADMIN of the initial user namespace: others do not even see them.
fn reads_trusted() -> bool {
    let whole = |text: &str| text.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"];
    rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").map_or(true, |map| whole(&map))
}
