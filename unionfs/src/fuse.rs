//! The FUSE adapter: decodes, calls the [`Overlay`], replies, logs. Nothing else speaks the protocol.
//!
//! `abi` has the protocol's numbers, `request` and `reply` its bytes, `device` and `session` the traffic, `init` the
//! agreement with the kernel, `near` where requests are served, `operations` what each of them does.

mod abi;
mod buffer;
mod convert;
mod device;
mod init;
mod near;
mod operations;
pub(crate) mod passthrough;
mod reply;
mod request;
mod session;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;

use crate::config::IoMode;
use crate::error::{Errno, OpError, OpResult};
use crate::mount::MountReport;
use crate::node::Node;
use crate::overlay::{Caller, FileHandle, NewObject, OpenOptions, Overlay};
use abi::{FopenFlags, Op};
use device::Device;
pub(crate) use init::Protocol;
use operations::note;
use passthrough::Passthrough;
use reply::{Entry, Opened, Reply};
pub(crate) use session::Session;

/// Requests by kind, for the report.
#[derive(Debug)]
pub(crate) struct Counters([AtomicU64; COUNTERS]);

/// Numbers of operations that are known are below this.
const COUNTERS: usize = 64;

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }
}

impl Counters {
    fn count(&self, op: Op) {
        if let Some(counter) = self.0.get(op as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> std::collections::BTreeMap<String, u64> {
        let counted = Op::ALL.iter().filter_map(|op| Some((op.name(), self.0.get(*op as usize)?)));
        let seen = counted.map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed)));
        seen.filter(|(_, count)| *count > 0).collect()
    }
}

/// The shortest time that the kernel keeps attributes: it counts in ticks of its clock. With none at all it would ask for
/// those of a new file at once, to check what it was just told. Nothing in them can be old: a mapping can be written only
/// where there is data, and what gives an empty file data makes the kernel ask again.
const ONE_TICK: Duration = Duration::from_nanos(1);

#[derive(Debug)]
struct Handle {
    /// Keeps the file's descriptor open.
    _file: FileHandle,
    mode: passthrough::OpenMode,
    /// The file was made with this handle: the kernel was never told to keep its attributes for long.
    is_first: bool,
}

/// State shared by the session's threads and those that finish long requests.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) overlay: Overlay,
    pub(crate) protocol: OnceLock<Protocol>,
    /// What was asked for.
    pub(crate) wanted: IoMode,
    /// The kernel lets this process pass files through.
    pub(crate) may_pass_through: bool,
    /// This process can open any upper file again, whatever its mode.
    pub(crate) may_reopen: bool,
    pub(crate) counters: Counters,
    pub(crate) report: OnceLock<MountReport>,
    device: OnceLock<Arc<Device>>,
    handles: DashMap<u64, Handle>,
    next_handle: AtomicU64,
    passthrough: Passthrough,
}

impl Adapter {
    pub(crate) fn new(overlay: Overlay, wanted: IoMode, may_pass_through: bool, may_reopen: bool) -> Self {
        Self {
            overlay,
            protocol: OnceLock::new(),
            wanted,
            may_pass_through,
            may_reopen,
            counters: Counters::default(),
            report: OnceLock::new(),
            device: OnceLock::new(),
            handles: crate::shards::map(),
            next_handle: AtomicU64::new(1),
            passthrough: Passthrough::default(),
        }
    }

    fn ttl(&self) -> Duration {
        self.protocol.get().map_or(Duration::ZERO, |p| p.ttl)
    }

    fn passes_through(&self) -> bool {
        self.protocol.get().is_some_and(|p| p.io == IoMode::Passthrough)
    }

    /// How long the kernel may keep attributes: not at all while it writes a file itself, since what goes through a mapping
    /// changes the backing file's times and not the ones it keeps for the mount's.
    fn attr_ttl(&self, ino: u64) -> Duration {
        if self.passes_through() && self.passthrough.is_written(ino) {
            return Duration::ZERO;
        }
        self.ttl()
    }

    /// Makes the kernel ask for a file's attributes again.
    fn expire_attributes(&self, ino: u64) {
        if let Some(device) = self.device.get()
            && let Err(e) = device.expire_attributes(ino)
        {
            // The kernel may have forgotten the inode already.
            tracing::debug!("attributes of {ino} not expired: {e}");
        }
    }

    fn zero_message_open(&self) -> bool {
        self.protocol.get().is_some_and(|p| p.zero_message_open)
    }

    fn node(&self, ino: u64) -> OpResult<Arc<Node>> {
        self.overlay.node(ino)
    }

    fn forget(&self, ino: u64, count: u64) {
        if self.overlay.table().forget(ino, count) {
            self.passthrough.forget(ino);
        }
    }

    /// Runs `work` here, or on a thread of its own when the node's copy-up may take long.
    fn run(
        self: &Arc<Self>,
        ino: u64,
        needs_data: bool,
        reply: Reply,
        work: impl FnOnce(&Self, Reply) + Send + 'static,
    ) {
        let blocks = self.node(ino).is_ok_and(|node| self.overlay.copy_up_may_block(&node, needs_data));
        if !blocks {
            return work(self, reply);
        }
        let adapter = self.clone();
        if let Err(e) = near::spawn("copy-up", move || work(&adapter, reply)) {
            // The reply went with the closure and has answered EIO.
            tracing::error!("start a thread for a copy-up: {e}");
        }
    }

    /// Answers a request for an entry, and counts the reference that goes with it.
    fn reply_entry(&self, reply: Reply, op: &'static str, result: OpResult<crate::overlay::Reply>) {
        match result {
            Ok(object) => {
                self.overlay.table().add_lookup(&object.node);
                reply.entry(self.entry(&object));
            }
            Err(e) => reply.error(note(op, &e)),
        }
    }

    fn entry<'a>(&self, object: &'a crate::overlay::Reply) -> Entry<'a> {
        let attr_ttl = self.attr_ttl(object.attr.ino);
        Entry { attr: Some(&object.attr), name_ttl: self.ttl(), attr_ttl }
    }

    fn reply_attr(&self, reply: Reply, op: &'static str, result: OpResult<crate::attr::Attr>) {
        match result {
            Ok(attr) => reply.attr(&attr, self.attr_ttl(attr.ino)),
            Err(e) => reply.error(note(op, &e)),
        }
    }

    /// Decides how an open file is served, and keeps its descriptor until it is released.
    fn open_handle(&self, file: FileHandle, write: bool, is_first: bool, device: &Arc<Device>) -> Opened {
        let (mode, backing) = if self.passes_through() {
            self.passthrough.open(&file, write, is_first, |fd| device.open_backing(fd))
        } else {
            (passthrough::OpenMode::Plain, None)
        };
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.insert(handle, Handle { _file: file, mode, is_first });
        let mut flags = mode.flags();
        flags.set(FopenFlags::PASSTHROUGH, backing.is_some());
        Opened { handle, flags, backing }
    }

    fn open(&self, ino: u64, options: OpenOptions, caller: &Caller, reply: Reply) {
        let opened = self.node(ino).and_then(|node| self.overlay.open(&node, options, caller));
        let file = match opened {
            Ok(file) => file,
            Err(e) => return reply.error(note("open", &e)),
        };
        let opened = self.open_handle(file, options.write, false, reply.device());
        if options.write && opened.backing.is_some() {
            self.expire_attributes(ino);
        }
        reply.opened(&opened);
    }

    fn create(
        &self,
        parent: u64,
        name: &[u8],
        (mode, umask): (u32, u32),
        options: OpenOptions,
        caller: &Caller,
        reply: Reply,
    ) {
        let made = self.node(parent).and_then(|dir| {
            let object = self
                .overlay
                .with_room(|| self.overlay.create(&dir, name, NewObject::File(mode), umask, caller))?;
            let options = OpenOptions { write: options.write, ..Default::default() };
            let file = self.overlay.open(&object.node, options, caller)?;
            Ok((object, file))
        });
        let (object, file) = match made {
            Ok(made) => made,
            Err(e) => return reply.error(note("create", &e)),
        };
        self.overlay.table().add_lookup(&object.node);
        let opened = self.open_handle(file, options.write, true, reply.device());
        let mut entry = self.entry(&object);
        entry.attr_ttl = entry.attr_ttl.max(ONE_TICK);
        reply.created(entry, &opened);
    }

    fn release(&self, ino: u64, handle: u64) {
        let Some((_, handle)) = self.handles.remove(&handle) else { return };
        self.passthrough.release(ino, handle.mode);
        if handle.mode.writes_by_kernel() && !handle.is_first {
            self.expire_attributes(ino);
        }
    }

    fn report_json(&self) -> OpResult<Vec<u8>> {
        let mut report = self.report.get().cloned().ok_or(Errno::NODATA)?;
        report.requests = self.counters.snapshot();
        report.nodes = self.overlay.table().len();
        report.descriptors = self.overlay.layers().context.fds.open_count();
        serde_json::to_vec(&report).map_err(|_| OpError::Errno(Errno::IO))
    }
}
