//! The FUSE adapter: decodes, calls the [`Overlay`], replies, logs. The only file that names `fuser`.
//!
//! Requests run on the session's threads. One that would have to copy much data, or wait for somebody who does,
//! goes on a thread of its own, so that no other request waits for it.

mod convert;
pub(crate) mod passthrough;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle as Fh, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::config::IoMode;
use crate::error::{Errno, OpError, OpResult};
use crate::mount::{MountReport, REPORT_XATTR};
use crate::node::Node;
use crate::overlay::{Caller, FileHandle, NewObject, OpenOptions, Overlay, RenameMode, SetAttr};
use convert::{errno, file_attr, negative, rdev_from_kernel, set_time};
use passthrough::Passthrough;

/// How the kernel is spoken to; decided while it introduces itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protocol {
    /// Never `Auto` once decided.
    pub(crate) io: IoMode,
    /// Opens come without a message: descriptors are the node's.
    pub(crate) zero_message_open: bool,
    /// How long the kernel may keep names and attributes.
    pub(crate) ttl: Duration,
}

/// Requests by kind, for the report.
#[derive(Debug, Default)]
pub(crate) struct Counters(DashMap<&'static str, AtomicU64>);

impl Counters {
    fn count(&self, op: &'static str) {
        if let Some(counter) = self.0.get(op) {
            counter.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.0.entry(op).or_default().fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> std::collections::BTreeMap<String, u64> {
        self.0.iter().map(|e| ((*e.key()).to_owned(), e.value().load(Ordering::Relaxed))).collect()
    }
}

#[derive(Debug)]
struct Handle {
    /// Keeps the file's descriptor open.
    _file: FileHandle,
    mode: passthrough::OpenMode,
}

/// State shared by the session's threads and those that finish long requests.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) overlay: Overlay,
    pub(crate) protocol: std::sync::OnceLock<Protocol>,
    /// What was asked for.
    pub(crate) wanted: IoMode,
    /// The kernel lets this process pass files through.
    pub(crate) may_pass_through: bool,
    /// This process can open any upper file again, whatever its mode.
    pub(crate) may_reopen: bool,
    pub(crate) counters: Counters,
    pub(crate) report: std::sync::OnceLock<MountReport>,
    pub(crate) notifier: std::sync::OnceLock<fuser::Notifier>,
    handles: DashMap<u64, Handle>,
    next_handle: AtomicU64,
    passthrough: Passthrough,
}

impl Adapter {
    pub(crate) fn new(overlay: Overlay, wanted: IoMode, may_pass_through: bool, may_reopen: bool) -> Self {
        Self {
            overlay,
            protocol: std::sync::OnceLock::new(),
            wanted,
            may_pass_through,
            may_reopen,
            counters: Counters::default(),
            report: std::sync::OnceLock::new(),
            notifier: std::sync::OnceLock::new(),
            handles: DashMap::new(),
            next_handle: AtomicU64::new(1),
            passthrough: Passthrough::default(),
        }
    }

    fn ttl(&self) -> Duration {
        self.protocol.get().map_or(Duration::ZERO, |p| p.ttl)
    }

    fn io(&self) -> IoMode {
        self.protocol.get().map_or(IoMode::Auto, |p| p.io)
    }

    /// How long the kernel may keep attributes: not at all while it writes a file itself, since what goes through a
    /// mapping changes the backing file's times and not the ones it keeps for the mount's.
    fn attr_ttl(&self, ino: INodeNo) -> Duration {
        if self.io() == IoMode::Passthrough && self.passthrough.is_written(ino.into()) {
            return Duration::ZERO;
        }
        self.ttl()
    }

    /// Makes the kernel ask for a file's attributes again.
    fn expire_attributes(&self, ino: u64) {
        if let Some(notifier) = self.notifier.get() {
            // A negative offset leaves the pages alone. The kernel may have forgotten the inode already.
            if let Err(e) = notifier.inval_inode(INodeNo(ino), -1, 0) {
                tracing::debug!("attributes of {ino} not expired: {e}");
            }
        }
    }

    fn zero_message_open(&self) -> bool {
        self.protocol.get().is_some_and(|p| p.zero_message_open)
    }

    fn node(&self, ino: INodeNo) -> OpResult<Arc<Node>> {
        self.overlay.node(ino.into())
    }

    /// Answers a request for an entry, and counts the reference that goes with it.
    fn reply_entry(&self, reply: ReplyEntry, op: &'static str, result: OpResult<crate::overlay::Reply>) {
        match result {
            Ok(object) => {
                self.overlay.table().add_lookup(&object.node);
                let attr = file_attr(&object.attr);
                reply.entry_with_ttls(&self.attr_ttl(attr.ino), &self.ttl(), &attr, Generation(0));
            }
            Err(e) => reply.error(note(op, &e)),
        }
    }

    fn open_handle(&self, file: FileHandle, mode: passthrough::OpenMode) -> Fh {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.insert(number, Handle { _file: file, mode });
        Fh(number)
    }

    fn open(&self, ino: INodeNo, flags: OpenFlags, caller: &Caller, reply: ReplyOpen) {
        let options = open_options(flags.0);
        let opened = self.node(ino).and_then(|node| self.overlay.open(&node, options, caller));
        let file = match opened {
            Ok(file) => file,
            Err(e) => return reply.error(note("open", &e)),
        };
        if self.protocol.get().is_some_and(|p| p.io == IoMode::Passthrough) {
            let (mode, backing) = self.passthrough.open(&file, options.write, |fd| reply.open_backing(fd));
            let flags = mode.flags();
            let fh = self.open_handle(file, mode);
            if mode == (passthrough::OpenMode::Passthrough { write: true }) {
                self.expire_attributes(ino.into());
            }
            match backing {
                Some(id) => reply.opened_passthrough(fh, flags, &id),
                None => reply.opened(fh, flags),
            }
            return;
        }
        let mode = passthrough::OpenMode::Plain;
        let fh = self.open_handle(file, mode);
        reply.opened(fh, FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        parent: INodeNo,
        name: &[u8],
        (mode, umask): (u32, u32),
        flags: i32,
        caller: &Caller,
        reply: ReplyCreate,
    ) {
        let made = self.node(parent).and_then(|dir| {
            let object = self
                .overlay
                .with_room(|| self.overlay.create(&dir, name, NewObject::File(mode), umask, caller))?;
            let options = OpenOptions { write: open_options(flags).write, truncate: false };
            let file = self.overlay.open(&object.node, options, caller)?;
            Ok((object, file))
        });
        let (object, file) = match made {
            Ok(made) => made,
            Err(e) => return reply.error(note("create", &e)),
        };
        self.overlay.table().add_lookup(&object.node);
        let attr = file_attr(&object.attr);
        if self.protocol.get().is_some_and(|p| p.io == IoMode::Passthrough) {
            let write = open_options(flags).write;
            let (mode, backing) = self.passthrough.open(&file, write, |fd| reply.open_backing(fd));
            let flags = mode.flags();
            let fh = self.open_handle(file, mode);
            match backing {
                Some(id) => {
                    reply.created_passthrough(&self.attr_ttl(attr.ino), &attr, Generation(0), fh, flags, &id)
                }
                None => reply.created(&self.ttl(), &attr, Generation(0), fh, flags),
            }
            return;
        }
        let fh = self.open_handle(file, passthrough::OpenMode::Plain);
        reply.created(&self.ttl(), &attr, Generation(0), fh, FopenFlags::FOPEN_KEEP_CACHE);
    }
}

/// What the session owns.
#[derive(Debug)]
pub(crate) struct Fuse(pub(crate) Arc<Adapter>);

impl Fuse {
    /// Runs `work` here, or on a thread of its own when the node's copy-up may take long.
    fn run(&self, ino: INodeNo, needs_data: bool, work: impl FnOnce(&Adapter) + Send + 'static) {
        let blocks = self.0.node(ino).is_ok_and(|node| self.0.overlay.copy_up_may_block(&node, needs_data));
        if !blocks {
            return work(&self.0);
        }
        let adapter = self.0.clone();
        let spawned = std::thread::Builder::new().name("copy-up".into()).spawn(move || work(&adapter));
        if let Err(e) = spawned {
            // The reply went with the closure and has answered EIO.
            tracing::error!("start a thread for a copy-up: {e}");
        }
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

/// The errno to answer; errors that somebody should read about are logged.
fn note(op: &'static str, error: &OpError) -> fuser::Errno {
    if error.is_expected() {
        tracing::debug!(op, "{error}");
    } else {
        tracing::error!(op, "{error}");
    }
    errno(error.errno())
}

/// Attributes of a directory entry; only the type, and no node, for one that cannot be read.
fn shown_or_unknown(entry: &crate::overlay::DirEntry) -> fuser::FileAttr {
    match &entry.object {
        Ok(object) => file_attr(&object.attr),
        Err(e) => {
            note("readdir", e);
            let mut attr = negative();
            if entry.is_dir {
                attr.kind = fuser::FileType::Directory;
            }
            attr
        }
    }
}

fn open_options(flags: i32) -> OpenOptions {
    OpenOptions { write: flags & libc::O_ACCMODE != libc::O_RDONLY, truncate: flags & libc::O_TRUNC != 0 }
}

/// Names and attributes change only through the mount: the kernel may keep them as long as it likes.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Layers may change behind the mount.
const BRIEFLY: Duration = Duration::from_secs(1);

/// Largest write and read in one request, in bytes.
const MAX_TRANSFER: u32 = 1 << 20;

impl Filesystem for Fuse {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let adapter = &self.0;
        let settings = &adapter.overlay.layers().config;
        let has = config.capabilities();
        let mut flags = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_ASYNC_DIO;
        if settings.acl && !settings.xattr_permissions {
            flags |= InitFlags::FUSE_POSIX_ACL;
        }
        let can_pass = adapter.may_pass_through && has.contains(InitFlags::FUSE_PASSTHROUGH);
        let io = match adapter.wanted {
            IoMode::Passthrough if !can_pass => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "io=passthrough needs Linux 6.9 and CAP_SYS_ADMIN in the initial user namespace; use io=auto",
                ));
            }
            IoMode::Auto => IoMode::Cached,
            chosen => chosen,
        };
        match io {
            IoMode::Passthrough => {
                flags |= InitFlags::FUSE_PASSTHROUGH;
                // One level leaves room for another stacked filesystem on this one.
                let depth = if adapter.overlay.upper_is_stacked() { 2 } else { 1 };
                if let Err(nearest) = config.set_max_stack_depth(depth) {
                    tracing::warn!("stack depth of passthrough limited to {nearest}");
                }
            }
            IoMode::Writeback => {
                flags |= InitFlags::FUSE_WRITEBACK_CACHE;
                adapter.overlay.leave_mtime_to_kernel();
            }
            IoMode::Cached | IoMode::Auto => {}
        }
        let zero_message_open =
            io != IoMode::Passthrough && adapter.may_reopen && has.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        if zero_message_open {
            flags |= InitFlags::FUSE_NO_OPEN_SUPPORT;
        }
        // Truncation never comes with the open (FUSE_ATOMIC_O_TRUNC): the kernel looks only after it whether the file
        // is a running program, which must be ETXTBSY and not cut under its feet.
        flags |= InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        let supported = flags & has;
        if let Err(missing) = config.add_capabilities(supported) {
            tracing::debug!("kernel without {missing:?}");
        }
        for (what, result) in [
            ("max_write", config.set_max_write(MAX_TRANSFER).map(drop)),
            ("max_background", config.set_max_background(64).map(drop).map_err(u32::from)),
        ] {
            if let Err(nearest) = result {
                tracing::debug!("{what} limited to {nearest}");
            }
        }
        let ttl = if settings.volatile_lower { BRIEFLY } else { FOREVER };
        let protocol = Protocol { io, zero_message_open, ttl };
        if adapter.protocol.set(protocol).is_err() {
            return Err(io::Error::other("the kernel introduced itself twice"));
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let a = &self.0;
        a.counters.count("lookup");
        match a.node(parent).and_then(|dir| a.overlay.lookup(&dir, name.as_bytes())) {
            Ok(Some(object)) => a.reply_entry(reply, "lookup", Ok(object)),
            Ok(None) => reply.entry(&a.ttl(), &negative(), Generation(0)),
            Err(e) => reply.error(note("lookup", &e)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.0.counters.count("forget");
        if self.0.overlay.table().forget(ino.into(), nlookup) {
            self.0.passthrough.forget(ino.into());
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<Fh>, reply: ReplyAttr) {
        let a = &self.0;
        a.counters.count("getattr");
        match a.node(ino).and_then(|node| a.overlay.getattr(&node)) {
            Ok(attr) => reply.attr(&a.attr_ttl(ino), &file_attr(&attr)),
            Err(e) => reply.error(note("getattr", &e)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<Fh>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.0.counters.count("setattr");
        let caller = caller(req);
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        self.run(ino, size.is_some_and(|s| s > 0), move |a| {
            let done =
                a.node(ino).and_then(|node| a.overlay.with_room(|| a.overlay.setattr(&node, &set, &caller)));
            match done {
                Ok(attr) => reply.attr(&a.attr_ttl(ino), &file_attr(&attr)),
                Err(e) => reply.error(note("setattr", &e)),
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let a = &self.0;
        a.counters.count("readlink");
        match a.node(ino).and_then(|node| a.overlay.readlink(&node)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(note("readlink", &e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let a = &self.0;
        a.counters.count("mknod");
        let new = if mode & libc::S_IFMT == libc::S_IFREG {
            NewObject::File(mode & 0o7777)
        } else {
            NewObject::Node(mode, rdev_from_kernel(rdev))
        };
        let made = a.node(parent).and_then(|d| {
            a.overlay.with_room(|| a.overlay.create(&d, name.as_bytes(), new, umask, &caller(req)))
        });
        a.reply_entry(reply, "mknod", made);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let a = &self.0;
        a.counters.count("mkdir");
        let new = NewObject::Dir(mode & 0o7777);
        let made = a.node(parent).and_then(|d| {
            a.overlay.with_room(|| a.overlay.create(&d, name.as_bytes(), new, umask, &caller(req)))
        });
        a.reply_entry(reply, "mkdir", made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let a = &self.0;
        a.counters.count("unlink");
        match a.node(parent).and_then(|dir| a.overlay.unlink(&dir, name.as_bytes())) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(note("unlink", &e)),
        }
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let a = &self.0;
        a.counters.count("rmdir");
        match a.node(parent).and_then(|dir| a.overlay.rmdir(&dir, name.as_bytes())) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(note("rmdir", &e)),
        }
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let a = &self.0;
        a.counters.count("symlink");
        let new = NewObject::Symlink(target.as_os_str().as_bytes());
        let made = a.node(parent).and_then(|d| {
            a.overlay.with_room(|| a.overlay.create(&d, name.as_bytes(), new, 0, &caller(req)))
        });
        a.reply_entry(reply, "symlink", made);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.0.counters.count("rename");
        let caller = caller(req);
        let mode = match flags.bits() {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            libc::RENAME_WHITEOUT => RenameMode::Whiteout,
            _ => return reply.error(errno(Errno::INVAL)),
        };
        // Without metadata-only copy-up a lower file is copied whole before it can be renamed.
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let moved = self.0.node(parent).and_then(|from| self.0.overlay.lookup(&from, name.as_bytes()));
        let ino = moved.ok().flatten().map_or(parent, |object| INodeNo(object.node.ino));
        self.run(ino, false, move |a| {
            let done = a.node(parent).and_then(|from| {
                let to = a.node(newparent)?;
                a.overlay.rename(&from, name.as_bytes(), &to, newname.as_bytes(), mode, &caller)
            });
            match done {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(note("rename", &e)),
            }
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.0.counters.count("link");
        let newname = newname.to_owned();
        self.run(ino, false, move |a| {
            let made = a.node(ino).and_then(|node| {
                let dir = a.node(newparent)?;
                a.overlay.link(&node, &dir, newname.as_bytes())
            });
            a.reply_entry(reply, "link", made);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.0.counters.count("open");
        if self.0.zero_message_open() {
            // Remembered by the kernel: no open is sent any more.
            return reply.error(errno(Errno::NOSYS));
        }
        let caller = caller(req);
        let options = open_options(flags.0);
        self.run(ino, options.write && !options.truncate, move |a| a.open(ino, flags, &caller, reply));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.0.counters.count("create");
        if self.0.zero_message_open() {
            // Remembered by the kernel: MKNOD follows, and there will be no handle to release.
            return reply.error(errno(Errno::NOSYS));
        }
        self.0.create(parent, name.as_bytes(), (mode & 0o7777, umask), flags, &caller(req), reply);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: Fh,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let a = &self.0;
        a.counters.count("read");
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match a.node(ino).and_then(|node| a.overlay.read(&node, offset, &mut buffer[..size])) {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(note("read", &e)),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: Fh,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.counters.count("write");
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID).then(|| caller(req));
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let node = match self.0.node(ino) {
            Ok(node) => node,
            Err(e) => return reply.error(note("write", &e)),
        };
        let finish = move |result: OpResult<usize>, reply: ReplyWrite| match result {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(note("write", &e)),
        };
        if !self.0.overlay.copy_up_may_block(&node, true) {
            let overlay = &self.0.overlay;
            let written = overlay.with_room(|| overlay.write(&node, offset, data, kill.as_ref(), cached));
            return finish(written, reply);
        }
        let data = data.to_vec();
        self.run(ino, true, move |a| {
            let written =
                a.overlay.with_room(|| a.overlay.write(&node, offset, &data, kill.as_ref(), cached));
            finish(written, reply);
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: Fh, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.0.counters.count("flush");
        reply.error(errno(Errno::NOSYS));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: Fh,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let a = &self.0;
        a.counters.count("release");
        if let Some((_, handle)) = a.handles.remove(&fh.0) {
            a.passthrough.release(ino.into(), handle.mode);
            if handle.mode == (passthrough::OpenMode::Passthrough { write: true }) {
                a.expire_attributes(ino.into());
            }
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: Fh, datasync: bool, reply: ReplyEmpty) {
        let a = &self.0;
        a.counters.count("fsync");
        match a.node(ino).and_then(|node| a.overlay.fsync(&node, datasync)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(note("fsync", &e)),
        }
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.0.counters.count("opendir");
        // Offsets are the directory's own, not a handle's: no message is needed.
        reply.error(errno(Errno::NOSYS));
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: Fh, offset: u64, mut reply: ReplyDirectory) {
        let a = &self.0;
        a.counters.count("readdir");
        let filled = a.node(ino).and_then(|dir| {
            let mut entries = a.overlay.read_dir(&dir, offset)?;
            while let Some(entry) = entries.next_entry()? {
                let attr = shown_or_unknown(&entry);
                let ino = if attr.ino.0 == 0 { INodeNo(entry.offset) } else { attr.ino };
                if reply.add(ino, entry.offset, attr.kind, OsStr::from_bytes(&entry.name)) {
                    break;
                }
            }
            Ok(())
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(note("readdir", &e)),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: Fh, offset: u64, mut reply: ReplyDirectoryPlus) {
        let a = &self.0;
        a.counters.count("readdirplus");
        let mut any = false;
        let filled = a.node(ino).and_then(|dir| {
            let mut entries = a.overlay.read_dir(&dir, offset)?;
            while let Some(entry) = entries.next_entry()? {
                let attr = shown_or_unknown(&entry);
                // The kernel takes a reference to every name but these two, and to none without a node.
                let node =
                    entry.object.as_ref().ok().filter(|_| &*entry.name != b"." && &*entry.name != b"..");
                let counts = node.is_some();
                if let Some(object) = node {
                    a.overlay.table().add_lookup(&object.node);
                }
                let name = OsStr::from_bytes(&entry.name);
                let ino = if attr.ino.0 == 0 { INodeNo(entry.offset) } else { attr.ino };
                any = true;
                let ttl = a.attr_ttl(attr.ino);
                if reply.add(ino, entry.offset, name, &ttl, &attr, Generation(0)) {
                    if counts {
                        a.overlay.table().forget(attr.ino.into(), 1);
                    }
                    break;
                }
            }
            Ok(())
        });
        match filled {
            Ok(()) => reply.ok(),
            // References go with the entries that are in the reply: it must be sent. The next one meets the error.
            Err(_) if any => reply.ok(),
            Err(e) => reply.error(note("readdirplus", &e)),
        }
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: Fh, datasync: bool, reply: ReplyEmpty) {
        let a = &self.0;
        a.counters.count("fsyncdir");
        match a.node(ino).and_then(|node| a.overlay.fsync(&node, datasync)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(note("fsyncdir", &e)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.0.counters.count("statfs");
        match self.0.overlay.statfs() {
            Ok(s) => {
                reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize)
            }
            Err(e) => reply.error(note("statfs", &e)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.0.counters.count("setxattr");
        let caller = caller(req);
        let (name, value) = (name.to_owned(), value.to_vec());
        self.run(ino, false, move |a| {
            let done = a
                .node(ino)
                .and_then(|node| a.overlay.setxattr(&node, name.as_bytes(), &value, flags, &caller));
            match done {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(note("setxattr", &e)),
            }
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let a = &self.0;
        a.counters.count("getxattr");
        let value = if name.as_bytes() == REPORT_XATTR.as_bytes() && u64::from(ino) == crate::ino::ROOT_INO {
            a.report_json()
        } else {
            a.node(ino).and_then(|node| a.overlay.getxattr(&node, name.as_bytes()))
        };
        match value {
            Ok(value) => reply_xattr(reply, size, &value),
            Err(e) => reply.error(note("getxattr", &e)),
        }
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let a = &self.0;
        a.counters.count("listxattr");
        match a.node(ino).and_then(|node| a.overlay.listxattr(&node)) {
            Ok(names) => {
                let mut list = Vec::new();
                for name in names {
                    // Ordinary users do not see trusted xattrs (`xattr_list_one` of the kernel's filesystems).
                    if req.uid() != 0 && name.starts_with(b"trusted.") {
                        continue;
                    }
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                reply_xattr(reply, size, &list);
            }
            Err(e) => reply.error(note("listxattr", &e)),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.counters.count("removexattr");
        let name = name.to_owned();
        self.run(ino, false, move |a| {
            match a.node(ino).and_then(|node| a.overlay.removexattr(&node, name.as_bytes())) {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(note("removexattr", &e)),
            }
        });
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.0.counters.count("access");
        // The kernel checks permissions itself (default_permissions).
        reply.error(errno(Errno::NOSYS));
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(errno(Errno::NOSYS));
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: Fh,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.0.counters.count("ioctl");
        reply.error(errno(Errno::NOTTY));
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: Fh,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Regular files are always ready; the kernel answers so itself from then on.
        reply.error(errno(Errno::NOSYS));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: Fh,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.0.counters.count("fallocate");
        let caller = caller(req);
        self.run(ino, true, move |a| {
            let done = a.node(ino).and_then(|n| {
                a.overlay.with_room(|| a.overlay.fallocate(&n, mode as u32, offset, length, &caller))
            });
            match done {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(note("fallocate", &e)),
            }
        });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: Fh, offset: i64, whence: i32, reply: ReplyLseek) {
        let a = &self.0;
        a.counters.count("lseek");
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(errno(Errno::INVAL)),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(errno(Errno::NXIO)) };
        match a.node(ino).and_then(|node| a.overlay.seek(&node, offset, data)) {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(note("lseek", &e)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: Fh,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: Fh,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.0.counters.count("copy_file_range");
        let caller = caller(req);
        self.run(ino_out, true, move |a| {
            let copied = a.node(ino_in).and_then(|from| {
                let to = a.node(ino_out)?;
                a.overlay.copy_range((&from, offset_in), (&to, offset_out), len, &caller)
            });
            match copied {
                Ok(n) => reply.written(n as u32),
                Err(e) => reply.error(note("copy_file_range", &e)),
            }
        });
    }
}

impl Adapter {
    fn report_json(&self) -> OpResult<Vec<u8>> {
        let mut report = self.report.get().cloned().ok_or(Errno::NODATA)?;
        report.requests = self.counters.snapshot();
        report.nodes = self.overlay.table().len();
        report.descriptors = self.overlay.layers().context.fds.open_count();
        serde_json::to_vec(&report).map_err(|_| OpError::Errno(Errno::IO))
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(errno(Errno::RANGE));
    } else {
        reply.data(value);
    }
}
