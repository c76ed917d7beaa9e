//! The bytes of a layer index and their meaning; no I/O. See `docs/layer-index.md`.
//!
//! Nothing outside of this module names `bincode`. Decoders take any bytes and answer with a value or `None`,
//! never with a panic; slices in what they return point into the bytes given.

use bincode::config::{Configuration, Fixint, LittleEndian};
use bincode::{BorrowDecode, Decode, Encode};

use super::metadata::{IndexedStat, Timestamp};

/// First bytes of the file. The last four show a transfer in text mode.
pub(super) const MAGIC: [u8; 8] = *b"LFSI\r\n\x1a\n";
/// Raised with every change of the format; there is no reading of other versions.
pub(super) const VERSION: u32 = 1;
/// As written by a machine of this byte order; the format itself is always little endian.
pub(super) const BYTE_ORDER: u32 = 0x0102_0304;
/// Bytes before the first section.
pub(super) const HEADER_LEN: usize = 4096;
/// Each block of this many bytes behind the header has a checksum of its own.
pub(super) const BLOCK_LEN: usize = 4096;
/// Bytes of one number of the offset table.
pub(super) const OFFSET_LEN: usize = 8;
/// Bytes of one block's checksum.
pub(super) const CHECKSUM_LEN: usize = 4;
/// Bytes of the length before a set of xattrs.
pub(super) const SET_PREFIX_LEN: usize = 4;

const PREAMBLE_LEN: usize = MAGIC.len() + 4;
const FIXED: Configuration<LittleEndian, Fixint> = bincode::config::standard().with_fixed_int_encoding();
const COMPACT: Configuration = bincode::config::standard();

/// What follows magic and version. Offsets and lengths in bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Default)]
pub(super) struct Header {
    pub(super) byte_order: u32,
    pub(super) entry_count: u32,
    pub(super) file_len: u64,
    pub(super) xattrs_at: u64,
    pub(super) xattrs_len: u64,
    pub(super) records_at: u64,
    pub(super) records_len: u64,
    pub(super) offsets_at: u64,
    pub(super) checksums_at: u64,
    pub(super) block_len: u32,
    /// How the builder saw ids and xattrs.
    pub(super) id_maps: u32,
    pub(super) trusted_xattrs: bool,
    /// Of the root directory.
    pub(super) root_birth: Option<Timestamp>,
    /// When the index was built.
    pub(super) built_at: Timestamp,
}

/// Why a header is no good.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Magic,
    Version(u32),
    Damaged,
}

impl Header {
    /// Number of checksummed blocks.
    pub(super) fn block_count(&self) -> u64 {
        (self.checksums_at - HEADER_LEN as u64).div_ceil(BLOCK_LEN as u64)
    }

    /// The first [`HEADER_LEN`] bytes of the file.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bincode::encode_into_std_write(self, &mut bytes, FIXED).ok()?;
        bytes.resize(HEADER_LEN - CHECKSUM_LEN, 0);
        bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
        Some(bytes)
    }

    /// Reads the beginning of a file of `file_len` bytes. All sections of an accepted header lie within the file,
    /// in order and without gaps.
    pub(super) fn decode(bytes: &[u8], file_len: u64) -> Result<Self, BadHeader> {
        if bytes.get(..MAGIC.len()).is_none_or(|m| m != MAGIC) {
            return Err(BadHeader::Magic);
        }
        match read_u32(bytes, MAGIC.len() as u64) {
            None => return Err(BadHeader::Damaged),
            Some(VERSION) => {}
            Some(other) => return Err(BadHeader::Version(other)),
        }
        let header = Self::decode_checked(bytes).ok_or(BadHeader::Damaged)?;
        if header.is_consistent(file_len) { Ok(header) } else { Err(BadHeader::Damaged) }
    }

    fn decode_checked(bytes: &[u8]) -> Option<Self> {
        let (covered, sum) = bytes.get(..HEADER_LEN)?.split_at(HEADER_LEN - CHECKSUM_LEN);
        if sum != checksum(covered).to_le_bytes() {
            return None;
        }
        bincode::decode_from_slice(&covered[PREAMBLE_LEN..], FIXED).ok().map(|(header, _)| header)
    }

    fn is_consistent(&self, file_len: u64) -> bool {
        let end = |at: u64, len: u64| at.checked_add(len);
        let offsets_len = (u64::from(self.entry_count) + 1) * OFFSET_LEN as u64;
        self.byte_order == BYTE_ORDER
            && self.block_len as usize == BLOCK_LEN
            && self.entry_count > 0
            && self.file_len == file_len
            && self.xattrs_at == HEADER_LEN as u64
            && end(self.xattrs_at, self.xattrs_len) == Some(self.records_at)
            && end(self.records_at, self.records_len) == Some(self.offsets_at)
            && end(self.offsets_at, offsets_len) == Some(self.checksums_at)
            && self.checksums_at <= file_len
            && end(self.checksums_at, self.block_count() * CHECKSUM_LEN as u64) == Some(file_len)
    }
}

/// What an entry's type adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) enum Kind<'a> {
    /// A file, fifo or socket.
    Plain,
    Directory {
        first_child: u32,
        children: u32,
    },
    Device {
        major: u32,
        minor: u32,
    },
    Symlink(&'a [u8]),
}

/// First part of a record: what listing and lookup read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct Head<'a> {
    pub(super) name: &'a [u8],
    pub(super) mode: u32,
    pub(super) ino: u64,
    pub(super) kind: Kind<'a>,
}

/// Second part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(super) struct Body {
    pub(super) parent: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) blksize: u32,
    pub(super) nlink: u32,
    pub(super) atime: Timestamp,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
    /// The next name of the same inode: rising, and from the highest back to the lowest.
    pub(super) next_link: Option<u32>,
    /// Where its set begins in the section of xattrs.
    pub(super) xattrs: Option<u64>,
}

impl Body {
    pub(super) fn new(stat: &IndexedStat, parent: u32, next_link: Option<u32>, xattrs: Option<u64>) -> Self {
        let IndexedStat { uid, gid, size, blocks, blksize, nlink, atime, mtime, ctime, .. } = *stat;
        Self { parent, uid, gid, size, blocks, blksize, nlink, atime, mtime, ctime, next_link, xattrs }
    }
}

/// The attributes that the two parts of a record hold.
pub(super) fn stat_of(head: &Head<'_>, body: &Body) -> IndexedStat {
    let (rdev_major, rdev_minor) = rdev_of(head);
    let Body { uid, gid, size, blocks, blksize, nlink, atime, mtime, ctime, .. } = *body;
    let Head { mode, ino, .. } = *head;
    IndexedStat {
        mode,
        uid,
        gid,
        rdev_major,
        rdev_minor,
        size,
        blocks,
        blksize,
        nlink,
        ino,
        atime,
        mtime,
        ctime,
    }
}

/// Major and minor number of a device, else zeros.
pub(super) fn rdev_of(head: &Head<'_>) -> (u32, u32) {
    match head.kind {
        Kind::Device { major, minor } => (major, minor),
        Kind::Plain | Kind::Directory { .. } | Kind::Symlink(_) => (0, 0),
    }
}

/// Appends a record to `out`.
pub(super) fn encode_record(head: &Head<'_>, body: &Body, out: &mut Vec<u8>) -> Option<()> {
    bincode::encode_into_std_write(head, out, COMPACT).ok()?;
    bincode::encode_into_std_write(body, out, COMPACT).ok()?;
    Some(())
}

/// The name at the beginning of a record.
pub(super) fn decode_name(record: &[u8]) -> Option<&[u8]> {
    bincode::borrow_decode_from_slice(record, COMPACT).ok().map(|(name, _)| name)
}

/// The first part of a record.
pub(super) fn decode_head(record: &[u8]) -> Option<Head<'_>> {
    decode_head_and_rest(record).map(|(head, _)| head)
}

fn decode_head_and_rest(record: &[u8]) -> Option<(Head<'_>, &[u8])> {
    let (head, used) = bincode::borrow_decode_from_slice(record, COMPACT).ok()?;
    Some((head, record.get(used..)?))
}

/// A whole record; nothing may follow it in `record`.
pub(super) fn decode_record(record: &[u8]) -> Option<(Head<'_>, Body)> {
    let (head, rest) = decode_head_and_rest(record)?;
    let (body, used) = bincode::decode_from_slice(rest, COMPACT).ok()?;
    (used == rest.len()).then_some((head, body))
}

/// A set of xattrs: its length, then each name and value.
pub(super) fn encode_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut set = vec![0; SET_PREFIX_LEN];
    for (name, value) in xattrs {
        let pair = (name.as_slice(), value.as_slice());
        bincode::encode_into_std_write(pair, &mut set, COMPACT).ok()?;
    }
    let len = u32::try_from(set.len() - SET_PREFIX_LEN).ok()?;
    set[..SET_PREFIX_LEN].copy_from_slice(&len.to_le_bytes());
    Some(set)
}

/// Takes one name and value off the front of a set without its length.
pub(super) fn decode_xattr<'a>(set: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (pair, used) = bincode::borrow_decode_from_slice(set, COMPACT).ok()?;
    *set = set.get(used..)?;
    Some(pair)
}

/// The checksum of a block and of the header: CRC-32 (ISO-HDLC), which shows every burst of up to 32 bits.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The little-endian number at `at`.
pub(super) fn read_u32(bytes: &[u8], at: u64) -> Option<u32> {
    read_array(bytes, at).map(u32::from_le_bytes)
}

/// The little-endian number at `at`.
pub(super) fn read_u64(bytes: &[u8], at: u64) -> Option<u64> {
    read_array(bytes, at).map(u64::from_le_bytes)
}

fn read_array<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
