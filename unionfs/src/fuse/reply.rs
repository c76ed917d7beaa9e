//! Answers: values to bytes for the kernel. Each request that wants an answer gets exactly one.

use std::sync::Arc;
use std::time::Duration;

use super::abi::{DIRENT, ENTRY_OUT, FopenFlags, OUT_HEADER};
use super::convert::rdev_to_kernel;
use super::device::{Backing, Device};
use super::near;
use crate::attr::Attr;
use crate::error::Errno;

/// Longest answer that is put together in one piece: an entry with an open file behind it.
const INLINE: usize = OUT_HEADER + ENTRY_OUT + 16;

/// An answer under construction.
#[derive(Debug)]
struct Message {
    bytes: [u8; INLINE],
    len: usize,
}

impl Message {
    fn new() -> Self {
        Self { bytes: [0; INLINE], len: OUT_HEADER }
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        // Every caller's fields fit by the sizes in `abi`; a longer message would be a fault of this file.
        debug_assert!(end <= INLINE);
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(bytes);
            self.len = end;
        }
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }
}

fn header(len: usize, error: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// `struct fuse_attr`.
fn attr_bytes(attr: &Attr) -> [u8; 88] {
    let mut bytes = [0; 88];
    for (at, value) in [
        attr.ino,
        attr.size,
        attr.blocks,
        attr.atime.sec.cast_unsigned(),
        attr.mtime.sec.cast_unsigned(),
        attr.ctime.sec.cast_unsigned(),
    ]
    .into_iter()
    .enumerate()
    {
        bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_ne_bytes());
    }
    for (at, value) in [
        attr.atime.nsec,
        attr.mtime.nsec,
        attr.ctime.nsec,
        attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        rdev_to_kernel(attr.rdev),
        attr.blksize,
        0,
    ]
    .into_iter()
    .enumerate()
    {
        bytes[48 + at * 4..52 + at * 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// What the kernel is to know of a name, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// Its object; `None`: there is none of that name.
    pub(super) attr: Option<&'a Attr>,
    /// How long the name holds.
    pub(super) name_ttl: Duration,
    /// How long the attributes hold.
    pub(super) attr_ttl: Duration,
}

impl Entry<'_> {
    /// `struct fuse_entry_out`.
    fn bytes(&self) -> [u8; ENTRY_OUT] {
        let mut bytes = [0; ENTRY_OUT];
        let node = self.attr.map_or(0, |a| a.ino);
        for (at, value) in [node, 0, self.name_ttl.as_secs(), self.attr_ttl.as_secs()].into_iter().enumerate()
        {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        }
        bytes[32..36].copy_from_slice(&self.name_ttl.subsec_nanos().to_ne_bytes());
        bytes[36..40].copy_from_slice(&self.attr_ttl.subsec_nanos().to_ne_bytes());
        if let Some(attr) = self.attr {
            bytes[40..].copy_from_slice(&attr_bytes(attr));
        }
        bytes
    }
}

/// An open file as the kernel is to treat it.
#[derive(Debug)]
pub(super) struct Opened {
    /// Comes back with each request for the open file.
    pub(super) handle: u64,
    pub(super) flags: FopenFlags,
    /// For [`FopenFlags::PASSTHROUGH`]; held until the answer is sent.
    pub(super) backing: Option<Arc<Backing>>,
}

impl Opened {
    fn put(&self, message: &mut Message) {
        message.u64(self.handle);
        message.u32(self.flags.bits());
        message.u32(self.backing.as_ref().map_or(0, |b| b.id));
    }
}

/// The right and the duty to answer one request. Dropped without an answer, it answers EIO.
#[derive(Debug)]
pub(super) struct Reply {
    device: Arc<Device>,
    unique: u64,
    answered: bool,
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.send_error(Errno::IO);
        }
    }
}

impl Reply {
    pub(super) fn new(device: &Arc<Device>, unique: u64) -> Self {
        Self { device: device.clone(), unique, answered: false }
    }

    /// The device the request came from.
    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn send(mut self, mut message: Message) {
        self.answered = true;
        let header = header(message.len, 0, self.unique);
        message.bytes[..OUT_HEADER].copy_from_slice(&header);
        let sent = near::answering(|| self.device.send(&message.bytes[..message.len]));
        self.note(sent);
    }

    fn note(&self, sent: Result<(), Errno>) {
        match sent {
            Ok(()) => {}
            // The caller was killed meanwhile, or the mount is gone: nobody waits any more.
            Err(e @ (Errno::NOENT | Errno::NODEV)) => tracing::debug!(unique = self.unique, "answer: {e}"),
            Err(e) => tracing::error!(unique = self.unique, "answer: {e}"),
        }
    }

    fn send_error(&self, errno: Errno) {
        let message = header(OUT_HEADER, -errno.raw_os_error(), self.unique);
        let sent = near::answering(|| self.device.send(&message));
        self.note(sent);
    }

    /// It failed.
    pub(super) fn error(mut self, errno: Errno) {
        self.answered = true;
        self.send_error(errno);
    }

    /// It was done; there is nothing to tell.
    pub(super) fn ok(self) {
        self.send(Message::new());
    }

    /// It was done, and nobody waits for this answer.
    pub(super) fn ok_unawaited(mut self) {
        self.answered = true;
        let sent = self.device.send(&header(OUT_HEADER, 0, self.unique));
        self.note(sent);
    }

    /// For requests that are not answered at all.
    pub(super) fn none(mut self) {
        self.answered = true;
    }

    /// Bytes: of a file, of a symlink's target, of an xattr, of a listing.
    pub(super) fn data(mut self, data: &[u8]) {
        self.answered = true;
        let header = header(OUT_HEADER + data.len(), 0, self.unique);
        let sent = near::answering(|| self.device.send_parts(&header, data));
        self.note(sent);
    }

    /// A name and its object.
    pub(super) fn entry(self, entry: Entry<'_>) {
        let mut message = Message::new();
        message.put(&entry.bytes());
        self.send(message);
    }

    /// A new file that is open.
    pub(super) fn created(self, entry: Entry<'_>, opened: &Opened) {
        let mut message = Message::new();
        message.put(&entry.bytes());
        opened.put(&mut message);
        self.send(message);
    }

    /// A file is open.
    pub(super) fn opened(self, opened: &Opened) {
        let mut message = Message::new();
        opened.put(&mut message);
        self.send(message);
    }

    /// Attributes, and how long they hold.
    pub(super) fn attr(self, attr: &Attr, ttl: Duration) {
        let mut message = Message::new();
        message.u64(ttl.as_secs());
        message.u32(ttl.subsec_nanos());
        message.u32(0);
        message.put(&attr_bytes(attr));
        self.send(message);
    }

    /// How many bytes were written or copied, or are needed for an xattr.
    pub(super) fn size(self, bytes: u32) {
        let mut message = Message::new();
        message.u32(bytes);
        message.u32(0);
        self.send(message);
    }

    /// A position in a file.
    pub(super) fn position(self, at: u64) {
        let mut message = Message::new();
        message.u64(at);
        self.send(message);
    }

    /// `struct fuse_kstatfs`.
    pub(super) fn statfs(self, s: &crate::overlay::StatFs) {
        let mut message = Message::new();
        for value in [s.blocks, s.bfree, s.bavail, s.files, s.ffree] {
            message.u64(value);
        }
        for value in [s.bsize, s.namelen, s.frsize, 0, 0, 0, 0, 0, 0, 0] {
            message.u32(value);
        }
        self.send(message);
    }
}

/// A listing under construction: entries until the kernel's buffer is full.
#[derive(Debug)]
pub(super) struct Listing {
    bytes: Vec<u8>,
    limit: usize,
}

impl Listing {
    /// At most `limit` bytes, as the request says.
    pub(super) fn new(limit: u32) -> Self {
        let limit = limit as usize;
        Self { bytes: Vec::with_capacity(limit), limit }
    }

    /// Adds a name; false when there is no room for it. With `entry`, in the form of READDIRPLUS.
    pub(super) fn add(
        &mut self,
        entry: Option<Entry<'_>>,
        ino: u64,
        offset: u64,
        mode: u32,
        name: &[u8],
    ) -> bool {
        let fixed = DIRENT + if entry.is_some() { ENTRY_OUT } else { 0 };
        // Entries begin at multiples of eight bytes (`FUSE_DIRENT_ALIGN`).
        let whole = (fixed + name.len()).next_multiple_of(8);
        if self.bytes.len() + whole > self.limit {
            return false;
        }
        let end = self.bytes.len() + whole;
        if let Some(entry) = entry {
            self.bytes.extend_from_slice(&entry.bytes());
        }
        self.bytes.extend_from_slice(&ino.to_ne_bytes());
        self.bytes.extend_from_slice(&offset.to_ne_bytes());
        self.bytes.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&((mode & libc::S_IFMT) >> 12).to_ne_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Time;

    fn attr() -> Attr {
        Attr {
            ino: 5,
            dev: 0,
            mode: libc::S_IFREG | 0o644,
            nlink: 1,
            uid: 1000,
            gid: 100,
            rdev: (0, 0),
            size: 77,
            blocks: 8,
            blksize: 4096,
            atime: Time { sec: -1, nsec: 500_000_000 },
            mtime: Time { sec: 1 << 33, nsec: 1 },
            ctime: Time { sec: 0, nsec: 2 },
        }
    }

    #[test]
    fn attributes_have_the_kernels_layout() {
        let bytes = attr_bytes(&attr());
        let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((u64_at(0), u64_at(8), u64_at(16)), (5, 77, 8));
        assert_eq!((u64_at(24), u64_at(32)), (u64::MAX, 1 << 33), "before 1970 is negative");
        assert_eq!((u32_at(48), u32_at(52), u32_at(56)), (500_000_000, 1, 2));
        assert_eq!((u32_at(60), u32_at(64)), (libc::S_IFREG | 0o644, 1));
        assert_eq!((u32_at(68), u32_at(72), u32_at(80)), (1000, 100, 4096));
    }

    #[test]
    fn a_listing_is_aligned_and_ends_where_the_buffer_does() {
        let mut listing = Listing::new(2 * (DIRENT as u32 + 8));
        assert!(listing.add(None, 1, 3, libc::S_IFDIR, b"a"));
        assert_eq!(listing.bytes().len(), DIRENT + 8);
        assert!(listing.add(None, 1, 4, libc::S_IFREG, b"12345678"));
        assert!(!listing.add(None, 1, 5, libc::S_IFREG, b""), "full");
        let second = &listing.bytes()[DIRENT + 8..];
        assert_eq!(second[16..20], 8u32.to_ne_bytes());
        assert_eq!(second[20..24], 8u32.to_ne_bytes(), "DT_REG");
        assert_eq!(&second[24..], b"12345678");
    }

    #[test]
    fn an_absent_name_is_node_zero() {
        let ttl = Duration::from_millis(1500);
        let bytes = Entry { attr: None, name_ttl: ttl, attr_ttl: Duration::ZERO }.bytes();
        assert_eq!(bytes[..8], 0u64.to_ne_bytes());
        assert_eq!(bytes[16..24], 1u64.to_ne_bytes());
        assert_eq!(bytes[32..36], 500_000_000u32.to_ne_bytes());
        assert!(bytes[40..].iter().all(|b| *b == 0));
    }
}
