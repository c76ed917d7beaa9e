//! Messages of netlink: a header, a fixed part, attributes. Writing them, and reading them without trust.
//!
//! Source: the kernel's `include/uapi/linux/netlink.h`. Everything is in the machine's byte order and aligned to four
//! bytes, except where a family says otherwise.

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// A request.
pub(crate) const REQUEST: u16 = 0x01;
/// The kernel is to confirm.
pub(crate) const ACK: u16 = 0x04;
/// The object must not exist yet.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// The object is made when it does not exist.
pub(crate) const CREATE: u16 = 0x400;
/// A new rule goes to the end.
pub(crate) const APPEND: u16 = 0x800;
/// All objects of the kind.
pub(crate) const DUMP: u16 = 0x300;
/// Type of an error or confirmation.
pub(crate) const ERROR: u16 = 2;
/// Type of the end of a dump.
pub(crate) const DONE: u16 = 3;
/// The attribute holds attributes.
const NESTED: u16 = 0x8000;
/// The part of an attribute's type that is its type.
const TYPE_MASK: u16 = 0x3fff;

/// Messages that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    /// Number of messages.
    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    /// Adds a message: its `fixed` part, then what `attributes` writes.
    pub(crate) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        pad(&mut self.bytes);
        attributes(&mut Attributes { bytes: &mut self.bytes });
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.count += 1;
    }

    /// Adds a message that is not counted: nobody waits for its confirmation.
    pub(crate) fn push_unconfirmed(&mut self, kind: u16, fixed: &[u8]) {
        self.push(kind, 0, fixed, |_| {});
        self.count -= 1;
    }

    /// The bytes, numbered from `first`.
    pub(crate) fn numbered(mut self, first: u32) -> Vec<u8> {
        let mut at = 0;
        while let Some(len) = read_u32(&self.bytes, at) {
            let number = read_u32(&self.bytes, at + 8).unwrap_or(0).wrapping_add(first);
            self.bytes[at + 8..at + 12].copy_from_slice(&number.to_ne_bytes());
            at += len as usize;
        }
        self.bytes
    }
}

/// Where attributes are written to.
#[derive(Debug)]
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(self.bytes);
    }

    /// A text with the zero byte that the kernel expects.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// In network byte order, as nf_tables has all its numbers.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inner(&mut Attributes { bytes: self.bytes });
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// Bytes that are no attribute, inside of a nest.
    pub(crate) fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        pad(self.bytes);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message as received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages of a datagram; what is cut short ends the list.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = read_u32(bytes, 0)? as usize;
        let whole = bytes.get(..len).filter(|_| len >= HEADER)?;
        let message =
            Message { kind: read_u16(whole, 4)?, sequence: read_u32(whole, 8)?, body: whole.get(HEADER..)? };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a message after its fixed part, as type and value.
pub(crate) fn attributes(body: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut bytes = body.get(fixed.next_multiple_of(4)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let len = usize::from(read_u16(bytes, 0)?);
        let value = bytes.get(4..len)?;
        let kind = read_u16(bytes, 2)? & TYPE_MASK;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut batch = Batch::default();
        batch.push(16, ACK, &[1, 2, 3, 4], |a| {
            a.text(3, "lo");
            a.nest(18, |a| a.u32(1, 7));
        });
        batch.push(17, 0, &[], |_| {});
        let bytes = batch.numbered(40);
        let read: Vec<Message<'_>> = messages(&bytes).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].sequence), (16, 40));
        assert_eq!((read[1].kind, read[1].sequence), (17, 41));
        let found: Vec<(u16, &[u8])> = attributes(read[0].body, 4).collect();
        assert_eq!(found[0], (3, &b"lo\0"[..]));
        assert_eq!(attributes(found[1].1, 0).next(), Some((1, &7_u32.to_ne_bytes()[..])));
    }

    proptest! {
        #[test]
        fn reading_ends_whatever_it_reads(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                prop_assert!(attributes(message.body, 16).count() <= bytes.len());
            }
        }
    }
}
