//! The engine without a mount: the same operations, applied to an [`Overlay`] as the kernel would ask for them.
//!
//! What the kernel does before it asks is done here too: paths are walked name by name, and types are checked
//! where the kernel does. Symlinks are not followed; operations that would have to are not applicable.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use layerfs_unionfs::attr::{Attr, Kind, Time};
use layerfs_unionfs::config::{Config, LowerSpec, MarkNamespace, UpperSpec};
use layerfs_unionfs::layer::Layers;
use layerfs_unionfs::node::Node;
use layerfs_unionfs::overlay::{
    Caller, NewObject, OpenOptions, Overlay, RenameMode, Reply, SetAttr, SetTime,
};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::mount::Stack;
use crate::ops::{Allocation, Answer, Op, Outcome, Renaming, Special, When, XattrHow};
use crate::snapshot::{Look, Record, Snapshot, digest};

/// Descriptors that the engine may keep open in tests: few, so that closing and opening again is tested too.
const FEW_DESCRIPTORS: usize = 40;

/// An engine over a stack of directories.
#[derive(Debug)]
pub struct EngineFs {
    overlay: Overlay,
    /// Nodes that "the kernel" still knows, and so keeps alive.
    known: Mutex<Vec<Arc<Node>>>,
    remembers: bool,
}

impl EngineFs {
    /// Opens the layers. `remembers`: the caller keeps every node it has seen, as a kernel with much memory
    /// does; otherwise every node is forgotten as soon as its answer is used.
    pub fn open(stack: &Stack, marks: MarkNamespace, remembers: bool) -> Result<Self, String> {
        Self::open_with(stack, remembers, |config| config.marks = marks)
    }

    /// As [`Self::open`], with the configuration changed first.
    pub fn open_with(
        stack: &Stack,
        remembers: bool,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self, String> {
        let lowers = stack.lowers.iter().map(LowerSpec::plain).collect();
        let upper =
            stack.upper.as_ref().map(|(upper, work)| UpperSpec { upper: upper.clone(), work: work.clone() });
        let mut config = Config::new(lowers, upper);
        change(&mut config);
        let layers = Layers::open(config, FEW_DESCRIPTORS).map_err(|e| e.to_string())?;
        let overlay = Overlay::new(layers).map_err(|e| e.to_string())?;
        Ok(Self { overlay, known: Mutex::default(), remembers })
    }

    /// The engine itself.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// This process as a caller.
    #[must_use]
    pub fn caller() -> Caller {
        Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: std::process::id(),
        }
    }

    fn know(&self, reply: Reply) -> Reply {
        if self.remembers {
            self.known.lock().expect("no test thread panicked").push(reply.node.clone());
        }
        reply
    }

    fn child(&self, dir: &Arc<Node>, name: &[u8]) -> Result<Reply, Errno> {
        if dir.kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        match self.overlay.lookup(dir, name) {
            Ok(Some(reply)) => Ok(self.know(reply)),
            Ok(None) => Err(Errno::NOENT),
            Err(e) => Err(e.errno()),
        }
    }

    /// The object at a path; symlinks on the way are not followed, but an error.
    pub fn find(&self, path: &Path) -> Result<Reply, Errno> {
        let root = self.overlay.root().clone();
        let attr = self.overlay.getattr(&root).map_err(|e| e.errno())?;
        let mut at = Reply { node: root, attr };
        for part in path.components() {
            at = self.child(&at.node, part.as_os_str().as_bytes())?;
        }
        Ok(at)
    }

    fn parent_of<'a>(&self, path: &'a Path) -> Result<(Arc<Node>, &'a [u8]), Errno> {
        // The root cannot be made, moved or removed; who asks to make it hears that it exists.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EXIST) };
        let (parent, name) = (self.find(parent)?.node, name.as_bytes());
        if parent.kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        Ok((parent, name))
    }

    /// True when the kernel would follow a symlink on the way to the path, or at its end.
    fn meets_symlink(&self, path: &Path, at_end: bool) -> bool {
        path.ancestors().skip(usize::from(!at_end)).any(|part| {
            !part.as_os_str().is_empty()
                && self.find(part).is_ok_and(|reply| reply.node.kind == Kind::Symlink)
        })
    }

    /// Applies an operation; `None` where it needs something that only a kernel has.
    pub fn apply(&self, op: &Op<PathBuf>, umask: u32) -> Option<Outcome> {
        let (paths, follows): (Vec<&Path>, bool) = match op {
            Op::Create { at, .. } | Op::Write { at, .. } | Op::Read { at } | Op::Truncate { at, .. } => {
                (vec![at], true)
            }
            Op::Fallocate { at, .. } | Op::Readdir { at } | Op::Access { at, .. } | Op::Chmod { at, .. } => {
                (vec![at], true)
            }
            Op::CopyRange { from, to, .. } => (vec![from, to], true),
            Op::Chown { at, follow, .. } | Op::Utimens { at, follow, .. } | Op::Stat { at, follow } => {
                (vec![at], *follow)
            }
            Op::Link { from, to, follow } if !*follow => (vec![from, to], false),
            Op::Link { from, to, .. } => (vec![from, to], true),
            Op::Rename { from, to, .. } => (vec![from, to], false),
            Op::Mkdir { at, .. } | Op::Rmdir { at } | Op::Unlink { at } | Op::Symlink { at, .. } => {
                (vec![at], false)
            }
            Op::Mknod { at, .. } | Op::Readlink { at } => (vec![at], false),
            Op::SetXattr { at, .. } | Op::RemoveXattr { at, .. } | Op::GetXattr { at, .. } => {
                (vec![at], false)
            }
            _ => return None,
        };
        if paths.iter().any(|path| self.meets_symlink(path, follows)) {
            return None;
        }
        // The kernel opens these itself, and looks at permissions before it asks.
        let opened = matches!(
            op,
            Op::Create { .. }
                | Op::Write { .. }
                | Op::Read { .. }
                | Op::Truncate { .. }
                | Op::Fallocate { .. }
                | Op::CopyRange { .. }
        );
        let is_file = |path: &Path| self.find(path).map_or(true, |reply| reply.node.kind == Kind::File);
        if matches!(op, Op::Access { .. }) || opened && !paths.iter().all(|path| is_file(path)) {
            return None;
        }
        Some(match op {
            Op::Create { .. } | Op::Write { .. } | Op::Read { .. } | Op::Truncate { .. } => {
                self.data(op, umask)
            }
            Op::Fallocate { .. } | Op::CopyRange { .. } => self.data(op, umask),
            Op::Mkdir { .. } | Op::Rmdir { .. } | Op::Unlink { .. } | Op::Symlink { .. } => {
                self.names(op, umask)
            }
            Op::Link { .. } | Op::Rename { .. } | Op::Mknod { .. } | Op::Readdir { .. } => {
                self.names(op, umask)
            }
            _ => self.metadata(op),
        })
    }

    fn create(&self, path: &Path, new: NewObject<'_>, umask: u32) -> Result<Reply, Errno> {
        let (dir, name) = self.parent_of(path)?;
        match self.child(&dir, name) {
            Ok(_) => return Err(Errno::EXIST),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        let made = self.overlay.create(&dir, name, new, umask, &Self::caller()).map_err(|e| e.errno())?;
        Ok(self.know(made))
    }

    fn open_file(&self, node: &Arc<Node>, write: bool, truncate: bool) -> Result<(), Errno> {
        let options = OpenOptions { write, truncate, lazy: false };
        self.overlay.open(node, options, &Self::caller()).map(drop).map_err(|e| e.errno())
    }

    fn data(&self, op: &Op<PathBuf>, umask: u32) -> Outcome {
        match op {
            Op::Create { at, mode, exclusive } => match self.find(at) {
                Ok(_) if *exclusive => Err(Errno::EXIST),
                Ok(reply) => self.open_file(&reply.node, true, false).map(|()| Answer::Done),
                Err(Errno::NOENT) => self.create(at, NewObject::File(*mode), umask).map(|_| Answer::Done),
                Err(e) => Err(e),
            },
            Op::Write { at, offset, len, fill, append, truncate, create } => {
                let node = match self.find(at) {
                    Ok(reply) => {
                        self.open_file(&reply.node, true, *truncate)?;
                        reply.node
                    }
                    Err(Errno::NOENT) if *create => self.create(at, NewObject::File(0o666), umask)?.node,
                    Err(e) => return Err(e),
                };
                let size = self.overlay.getattr(&node).map_err(|e| e.errno())?.size;
                let at = if *append { size } else { *offset };
                if *len > 0 {
                    let bytes = vec![*fill; *len as usize];
                    let caller = Self::caller();
                    // Root's writes leave set-id bits.
                    let kills = (caller.uid != 0).then_some(&caller);
                    let count = self.overlay.write(&node, at, &bytes, kills, false).map_err(|e| e.errno())?;
                    assert_eq!(count, bytes.len(), "a short write without an error");
                }
                Ok(Answer::Count(u64::from(*len)))
            }
            Op::Read { at } => {
                let node = self.find(at)?.node;
                self.open_file(&node, false, false)?;
                self.content(&node).map(|bytes| Answer::Text(digest(&bytes)))
            }
            Op::Truncate { at, size } => {
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                self.set(at, &set).map(|_| Answer::Done)
            }
            Op::Fallocate { at, how, offset, len } => {
                let mode = match how {
                    Allocation::Plain => FallocateFlags::empty(),
                    Allocation::KeepSize => FallocateFlags::KEEP_SIZE,
                    Allocation::Punch => FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                    Allocation::Zero => FallocateFlags::ZERO_RANGE,
                    Allocation::ZeroKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                };
                let node = self.find(at)?.node;
                self.open_file(&node, true, false)?;
                let (mode, caller) = (mode.bits(), Self::caller());
                let result = self.overlay.fallocate(&node, mode, *offset, *len, &caller);
                result.map(|()| Answer::Done).map_err(|e| e.errno())
            }
            Op::CopyRange { from, to, from_offset, to_offset, len } => {
                let (from, to) = (self.find(from)?.node, self.find(to)?.node);
                self.open_file(&from, false, false)?;
                self.open_file(&to, true, false)?;
                let mut done = 0;
                while done < u64::from(*len) {
                    let (source, target) = ((&from, *from_offset + done), (&to, *to_offset + done));
                    let left = u64::from(*len) - done;
                    match self.overlay.copy_range(source, target, left, &Self::caller()) {
                        Ok(0) => break,
                        Ok(count) => done += count as u64,
                        Err(e) => return Err(e.errno()),
                    }
                }
                Ok(Answer::Count(done))
            }
            other => unreachable!("{other:?} is no operation on data"),
        }
    }

    /// The whole content of a file.
    pub fn content(&self, node: &Arc<Node>) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 100_000];
        loop {
            let count = self.overlay.read(node, bytes.len() as u64, &mut chunk).map_err(|e| e.errno())?;
            bytes.extend_from_slice(&chunk[..count]);
            if count < chunk.len() {
                return Ok(bytes);
            }
        }
    }

    fn names(&self, op: &Op<PathBuf>, umask: u32) -> Outcome {
        let done = |made: Result<Reply, Errno>| made.map(|_| Answer::Done);
        match op {
            Op::Mkdir { at, mode } => done(self.create(at, NewObject::Dir(*mode), umask)),
            Op::Symlink { at, text } => done(self.create(at, NewObject::Symlink(text.as_bytes()), umask)),
            Op::Mknod { at, kind, mode } => {
                let (kind, device) = match kind {
                    Special::Fifo => (libc::S_IFIFO, (0, 0)),
                    Special::Socket => (libc::S_IFSOCK, (0, 0)),
                    Special::Regular => (libc::S_IFREG, (0, 0)),
                    Special::CharNull => (libc::S_IFCHR, (1, 3)),
                    Special::CharZero => (libc::S_IFCHR, (0, 0)),
                    Special::Block => (libc::S_IFBLK, (259, 4095)),
                };
                done(self.create(at, NewObject::Node(kind | *mode, device), umask))
            }
            Op::Unlink { at } => {
                let (dir, name) = self.parent_of(at)?;
                if self.child(&dir, name)?.node.kind == Kind::Dir {
                    return Err(Errno::ISDIR);
                }
                self.overlay.unlink(&dir, name).map(|()| Answer::Done).map_err(|e| e.errno())
            }
            Op::Rmdir { at } => {
                let (dir, name) = self.parent_of(at)?;
                if self.child(&dir, name)?.node.kind != Kind::Dir {
                    return Err(Errno::NOTDIR);
                }
                self.overlay.rmdir(&dir, name).map(|()| Answer::Done).map_err(|e| e.errno())
            }
            Op::Link { from, to, .. } => {
                let node = self.find(from)?.node;
                let (dir, name) = self.parent_of(to)?;
                match self.child(&dir, name) {
                    Ok(_) => return Err(Errno::EXIST),
                    Err(Errno::NOENT) => {}
                    Err(e) => return Err(e),
                }
                if node.kind == Kind::Dir {
                    return Err(Errno::PERM);
                }
                done(
                    self.overlay.link(&node, &dir, name).map(|reply| self.know(reply)).map_err(|e| e.errno()),
                )
            }
            Op::Rename { from, to, how } => self.rename(from, to, *how).map(|()| Answer::Done),
            Op::Readdir { at } => {
                let node = self.find(at)?.node;
                if node.kind != Kind::Dir {
                    return Err(Errno::NOTDIR);
                }
                let names = self.list(&node)?.into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>();
                Ok(Answer::Names(names))
            }
            other => unreachable!("{other:?} is no operation on names"),
        }
    }

    /// A rename with the checks of the kernel, in the kernel's order.
    fn rename(&self, from: &Path, to: &Path, how: Renaming) -> Result<(), Errno> {
        let (from_dir, from_name) = self.parent_of(from)?;
        let (to_dir, to_name) = self.parent_of(to)?;
        let source = self.child(&from_dir, from_name)?.node;
        let target = match self.child(&to_dir, to_name) {
            Ok(reply) => Some(reply.node),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e),
        };
        match (how, &target) {
            (Renaming::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Renaming::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        let below = |path: &Path, above: &Path| path != above && path.starts_with(above);
        if below(to, from) {
            return Err(Errno::INVAL);
        }
        if below(from, to) {
            return Err(if how == Renaming::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if let Some(target) = &target {
            if Arc::ptr_eq(target, &source) {
                return Ok(());
            }
            if how != Renaming::Exchange {
                match (source.kind == Kind::Dir, target.kind == Kind::Dir) {
                    (true, false) => return Err(Errno::NOTDIR),
                    (false, true) => return Err(Errno::ISDIR),
                    _ => {}
                }
            }
        }
        let mode = match how {
            Renaming::Plain => RenameMode::Replace,
            Renaming::NoReplace => RenameMode::NoReplace,
            Renaming::Exchange => RenameMode::Exchange,
            Renaming::Whiteout => RenameMode::Whiteout,
        };
        let caller = Self::caller();
        self.overlay.rename(&from_dir, from_name, &to_dir, to_name, mode, &caller).map_err(|e| e.errno())
    }

    fn list(&self, dir: &Arc<Node>) -> Result<Vec<(OsString, Reply)>, Errno> {
        let mut entries = Vec::new();
        let mut reading = self.overlay.read_dir(dir, 0).map_err(|e| e.errno())?;
        while let Some(entry) = reading.next_entry().map_err(|e| e.errno())? {
            if &*entry.name != b"." && &*entry.name != b".." {
                entries.push((
                    OsString::from_vec(entry.name.to_vec()),
                    self.know(entry.object.map_err(|e| e.errno())?),
                ));
            }
        }
        Ok(entries)
    }

    fn set(&self, at: &Path, set: &SetAttr) -> Result<Attr, Errno> {
        self.overlay.setattr(&self.find(at)?.node, set, &Self::caller()).map_err(|e| e.errno())
    }

    fn metadata(&self, op: &Op<PathBuf>) -> Outcome {
        match op {
            Op::Chmod { at, mode } => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                self.set(at, &set).map(|_| Answer::Done)
            }
            Op::Chown { at, uid, gid, .. } => {
                let found = self.find(at)?;
                let mut set = SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() };
                // The kernel asks for the cleared mode along with the owner.
                let mode = found.attr.mode;
                if found.node.kind != Kind::Dir {
                    let group = if mode & 0o010 != 0 { 0o2000 } else { 0 };
                    let cleared = mode & 0o7777 & !(0o4000 | group);
                    set.mode = (cleared != mode & 0o7777).then_some(cleared);
                }
                self.set(at, &set).map(|_| Answer::Done)
            }
            Op::Utimens { at, access, modification, .. } => {
                let time = |when: When| match when {
                    When::At(sec, nsec) => Some(SetTime::At(Time { sec, nsec: nsec as u32 })),
                    When::Now => Some(SetTime::Now),
                    When::Omit => None,
                };
                let set = SetAttr { atime: time(*access), mtime: time(*modification), ..SetAttr::default() };
                if set != SetAttr::default() {
                    self.set(at, &set)?;
                }
                let attr = self.find(at)?.attr;
                let known = |when: When, time: Time| {
                    matches!(when, When::At(..)).then_some((time.sec, i64::from(time.nsec)))
                };
                Ok(Answer::Times(known(*access, attr.atime), known(*modification, attr.mtime)))
            }
            Op::SetXattr { at, name, value, how } => {
                let flags = match how {
                    XattrHow::Any => 0,
                    XattrHow::Create => libc::XATTR_CREATE,
                    XattrHow::Replace => libc::XATTR_REPLACE,
                };
                let node = self.find(at)?.node;
                may_have_xattr(&node, name, Errno::PERM)?;
                let result = self.overlay.setxattr(&node, name.as_bytes(), value, flags, &Self::caller());
                result.map(|()| Answer::Done).map_err(|e| e.errno())
            }
            Op::RemoveXattr { at, name } => {
                let node = self.find(at)?.node;
                may_have_xattr(&node, name, Errno::PERM)?;
                self.overlay.removexattr(&node, name.as_bytes()).map(|()| Answer::Done).map_err(|e| e.errno())
            }
            Op::GetXattr { at, name } => {
                let node = self.find(at)?.node;
                may_have_xattr(&node, name, Errno::NODATA)?;
                let value = self.overlay.getxattr(&node, name.as_bytes()).map_err(|e| e.errno())?;
                Ok(Answer::Text(digest(&value)))
            }
            Op::Readlink { at } => {
                let target = self.overlay.readlink(&self.find(at)?.node).map_err(|e| e.errno())?;
                Ok(Answer::Text(String::from_utf8_lossy(&target).into_owned()))
            }
            Op::Stat { at, .. } => {
                let attr = self.find(at)?.attr;
                let directory = attr.kind() == Kind::Dir;
                Ok(Answer::Stat {
                    mode: attr.mode,
                    uid: attr.uid,
                    gid: attr.gid,
                    size: if directory { 0 } else { attr.size },
                    nlink: if directory { 0 } else { u64::from(attr.nlink) },
                    rdev: rustix::fs::makedev(attr.rdev.0, attr.rdev.1),
                })
            }
            other => unreachable!("{other:?} is no operation on metadata"),
        }
    }

    /// The tree as the engine shows it, by listing and by lookup.
    #[must_use]
    pub fn snapshot(&self, look: Look) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut first = BTreeMap::new();
        match self.find(Path::new("")) {
            Ok(root) => self.visit(PathBuf::new(), &root, look, &mut first, &mut snapshot),
            Err(e) => snapshot.faults.push(format!("the root: {e}")),
        }
        snapshot
    }

    fn visit(
        &self,
        path: PathBuf,
        reply: &Reply,
        look: Look,
        first: &mut BTreeMap<u64, PathBuf>,
        snapshot: &mut Snapshot,
    ) {
        match self.record(&path, reply, look, first) {
            Ok(record) => {
                snapshot.records.insert(path.clone(), record);
            }
            Err(e) => snapshot.faults.push(format!("{}: {e}", path.display())),
        }
        if reply.node.kind != Kind::Dir {
            return;
        }
        let mut entries = match self.list(&reply.node) {
            Ok(entries) => entries,
            Err(e) => return snapshot.faults.push(format!("{}: list: {e}", path.display())),
        };
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, listed) in entries {
            let child = path.join(&name);
            match self.child(&reply.node, name.as_bytes()) {
                Ok(found) if found.attr.ino == listed.attr.ino && found.attr.mode == listed.attr.mode => {
                    if snapshot.records.contains_key(&child) {
                        snapshot.faults.push(format!("{}: listed twice", child.display()));
                    }
                    self.visit(child, &found, look, first, snapshot);
                }
                Ok(found) => snapshot.faults.push(format!(
                    "{}: listed as {:?}, looked up as {:?}",
                    child.display(),
                    listed.attr,
                    found.attr
                )),
                Err(e) => snapshot.faults.push(format!("{}: listed, but: {e}", child.display())),
            }
        }
    }

    fn record(
        &self,
        path: &Path,
        reply: &Reply,
        look: Look,
        first: &mut BTreeMap<u64, PathBuf>,
    ) -> Result<Record, Errno> {
        let (node, attr) = (&reply.node, &reply.attr);
        let content = match node.kind {
            Kind::File => {
                let bytes = self.content(node)?;
                if bytes.len() as u64 == attr.size {
                    digest(&bytes)
                } else {
                    format!("size {} by attributes, {} bytes read", attr.size, bytes.len())
                }
            }
            Kind::Symlink => digest(&self.overlay.readlink(node).map_err(|e| e.errno())?),
            _ => String::new(),
        };
        let same_as = if node.kind == Kind::Dir {
            path.to_path_buf()
        } else {
            first.entry(attr.ino).or_insert_with(|| path.to_path_buf()).clone()
        };
        let mut xattrs = BTreeMap::new();
        for name in self.overlay.listxattr(node).map_err(|e| e.errno())? {
            let text = String::from_utf8_lossy(&name).into_owned();
            // Only the privileged see these; so it is the kernel's, not the engine's, to leave them out.
            if text.starts_with("trusted.") && !rustix::process::geteuid().is_root() {
                continue;
            }
            let own = text.starts_with("trusted.overlay.") || text.starts_with("user.overlay.");
            if own && !look.marks {
                continue;
            }
            let value = match self.overlay.getxattr(node, &name) {
                Ok(value) => digest(&value),
                Err(e) => format!("listed, but: {e}"),
            };
            xattrs.insert(text, value);
        }
        Ok(Record {
            kind: letter(node.kind),
            mode: attr.mode & 0o7777,
            uid: attr.uid,
            gid: attr.gid,
            rdev: matches!(node.kind, Kind::Char | Kind::Block).then_some(attr.rdev),
            content,
            xattrs,
            same_as,
            nlink: (look.nlink && node.kind != Kind::Dir).then_some(u64::from(attr.nlink)),
            mtime: look.mtime.then_some((attr.mtime.sec, i64::from(attr.mtime.nsec))),
            atime: (look.atime && node.kind != Kind::Symlink)
                .then_some((attr.atime.sec, i64::from(attr.atime.nsec))),
            ino: look.ino.then_some(attr.ino),
        })
    }

    /// Asks for a name directly: its type, if something shows there.
    pub fn ask(&self, path: &Path) -> Result<char, Errno> {
        self.find(path).map(|reply| letter(reply.node.kind))
    }
}

/// User xattrs belong to files and directories; the kernel sees to it before it asks.
fn may_have_xattr(node: &Node, name: &str, errno: Errno) -> Result<(), Errno> {
    let allowed = !name.starts_with("user.") || matches!(node.kind, Kind::File | Kind::Dir);
    if allowed { Ok(()) } else { Err(errno) }
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::File => 'f',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Char => 'c',
        Kind::Block => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
}
