//! The threads that serve a mount, and the agreement with the kernel before them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::abi::{IN_HEADER, InitFlags, MAJOR, MINOR, OLDEST_MINOR, Op};
use super::buffer::{self, Buffer};
use super::device::Device;
use super::init::{self, Offer};
use super::near::{Near, Place};
use super::reply::Reply;
use super::request::{Malformed, Request};
use super::{Adapter, operations};
use crate::error::Errno;

/// Largest write and read in one request, in bytes.
pub(super) const MAX_TRANSFER: u32 = 1 << 20;
/// What is read from the device at once: the largest write with its headers, and a page to spare.
const BUFFER: usize = MAX_TRANSFER as usize + 4096;

/// A mount whose kernel has introduced itself.
#[derive(Debug)]
pub(crate) struct Session {
    adapter: Arc<Adapter>,
    device: Arc<Device>,
    near: Arc<Near>,
    threads: usize,
}

impl Session {
    /// Waits for the kernel's INIT and answers it.
    ///
    /// # Errors
    /// When the kernel is too old, wants what cannot be, or the mount is gone already.
    pub(crate) fn new(
        adapter: Arc<Adapter>,
        fd: OwnedFd,
        threads: usize,
        same_cpu: bool,
    ) -> io::Result<Self> {
        let device = Arc::new(Device::new(fd));
        agree(&adapter, &device)?;
        if adapter.device.set(device.clone()).is_err() {
            return Err(io::Error::other("the adapter serves another mount"));
        }
        let near = Arc::new(Near::new(same_cpu, threads, device.clone()));
        Ok(Self { adapter, device, near, threads })
    }

    /// One busy caller can be served on its own CPU.
    pub(crate) fn serves_near(&self) -> bool {
        self.near.moves()
    }

    /// Serves until the mount is gone. `open_device` opens /dev/fuse anew, where it may be: each thread then has a queue
    /// of its own. `ready` is called when the threads have been started.
    ///
    /// # Errors
    /// What reading the device fails with.
    pub(crate) fn run(
        self,
        open_device: impl Fn() -> io::Result<OwnedFd>,
        ready: impl FnOnce(),
    ) -> io::Result<()> {
        let mut devices = vec![self.device.clone()];
        for _ in 1..self.threads {
            let own = open_device().and_then(|fd| self.device.again(fd));
            devices.push(match own {
                Ok(device) => Arc::new(device),
                Err(e) => {
                    tracing::debug!("threads share a queue: {e}");
                    self.device.clone()
                }
            });
        }
        let mut threads = Vec::with_capacity(devices.len());
        let mut result = Ok(());
        for (number, device) in devices.into_iter().enumerate() {
            let worker = Worker { adapter: self.adapter.clone(), device, near: self.near.clone() };
            let started =
                std::thread::Builder::new().name(format!("fuse-{number}")).spawn(move || worker.serve());
            match started {
                Ok(thread) => threads.push(thread),
                // The others do.
                Err(e) if !threads.is_empty() => tracing::warn!("start a thread: {e}"),
                Err(e) => return Err(e),
            }
        }
        ready();
        for thread in threads {
            let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("a serving thread panicked")));
            if result.is_ok() {
                result = ended;
            }
        }
        result
    }
}

/// One serving thread.
struct Worker {
    adapter: Arc<Adapter>,
    device: Arc<Device>,
    near: Arc<Near>,
}

impl Worker {
    fn serve(&self) -> io::Result<()> {
        let result = self.serve_requests();
        self.near.end();
        result
    }

    fn serve_requests(&self) -> io::Result<()> {
        let mut memory = Buffer::new(BUFFER);
        let mut place = Place::default();
        loop {
            self.near.before_request(&mut place);
            buffer::before_waiting(&mut memory, &*self.device);
            let Some(len) = self.device.receive(memory.space()?)? else { return Ok(()) };
            memory.touched(len);
            let bytes = memory.filled(len);
            match Request::parse(bytes) {
                Ok(request) if request.header.op == Some(Op::Destroy) => {
                    Reply::new(&self.device, request.header.unique).ok();
                    return Ok(());
                }
                Ok(request) => {
                    self.near.on_request(&mut place, &request);
                    operations::serve(
                        &self.adapter,
                        &request,
                        Reply::new(&self.device, request.header.unique),
                    );
                }
                Err(Malformed) => {
                    tracing::error!(len, "a request that is none");
                    if let Some(unique) = bytes.get(8..16).filter(|_| len >= IN_HEADER) {
                        let unique = unique.try_into().map(u64::from_ne_bytes).unwrap_or_default();
                        Reply::new(&self.device, unique).error(Errno::IO);
                    }
                }
            }
        }
    }
}

fn agree(adapter: &Adapter, device: &Arc<Device>) -> io::Result<()> {
    let mut memory = Buffer::new(BUFFER);
    loop {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "unmounted before it was served");
        let len = device.receive(memory.space()?)?.ok_or_else(gone)?;
        let odd = |_| io::Error::new(io::ErrorKind::InvalidData, "the kernel's first request makes no sense");
        let request = Request::parse(memory.filled(len)).map_err(odd)?;
        let reply = Reply::new(device, request.header.unique);
        if request.header.op != Some(Op::Init) {
            reply.error(Errno::IO);
            return Err(odd(Malformed));
        }
        let offer = Offer::parse(request.fields()).map_err(odd)?;
        if offer.major > MAJOR {
            // It comes again with the version that both know.
            reply.data(&MAJOR.to_ne_bytes().iter().copied().chain([0; 4]).collect::<Vec<_>>());
            continue;
        }
        if offer.major < MAJOR || offer.minor < OLDEST_MINOR {
            reply.error(Errno::PROTO);
            let words = format!(
                "the kernel speaks version {}.{} of the protocol; {MAJOR}.{OLDEST_MINOR} is needed (Linux 3.15)",
                offer.major, offer.minor
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, words));
        }
        let answer = match init::negotiate(adapter, &offer) {
            Ok(answer) => answer,
            Err(e) => {
                reply.error(Errno::PROTO);
                return Err(e);
            }
        };
        let missing = answer.wanted.difference(offer.flags);
        if !missing.is_empty() {
            tracing::debug!("kernel {}.{} without {missing:?}", offer.major, offer.minor);
        }
        reply.data(&init_out(&offer, &answer));
        return Ok(());
    }
}

/// `struct fuse_init_out`.
fn init_out(offer: &Offer, answer: &init::Answer) -> [u8; 64] {
    let mut flags = answer.wanted & offer.flags;
    flags.set(InitFlags::INIT_EXT, offer.flags.contains(InitFlags::INIT_EXT));
    let mut out = [0; 64];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAJOR.to_ne_bytes());
    put(4, &MINOR.min(offer.minor).to_ne_bytes());
    put(8, &offer.max_readahead.to_ne_bytes());
    put(12, &(flags.bits() as u32).to_ne_bytes());
    put(16, &init::MAX_BACKGROUND.to_ne_bytes());
    put(18, &(init::MAX_BACKGROUND / 4 * 3).to_ne_bytes());
    put(20, &MAX_TRANSFER.to_ne_bytes());
    // Times have nanoseconds.
    put(24, &1u32.to_ne_bytes());
    // Pages in a request, of the smallest size; the kernel lowers it to what it allows.
    put(28, &((MAX_TRANSFER / 4096) as u16).to_ne_bytes());
    put(32, &((flags.bits() >> 32) as u32).to_ne_bytes());
    put(36, &answer.stack_depth.to_ne_bytes());
    out
}
