//! Requests: bytes from the kernel to values. No I/O.

use super::abi::{IN_HEADER, Op};
use crate::overlay::Caller;

/// A request that does not hold what its operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request is too short, or a name in it has no end")]
pub(super) struct Malformed;

/// A request's header (`struct fuse_in_header`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// The operation; `None` for one that is not known here.
    pub(super) op: Option<Op>,
    /// Names the request in the answer.
    pub(super) unique: u64,
    /// The node it is about.
    pub(super) node: u64,
    uid: u32,
    gid: u32,
    /// Thread that asks, as this process' pid namespace numbers it; 0 where it does not, and for the kernel itself.
    pub(super) pid: u32,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) header: Header,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// From what one read of the device gave.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let len = fields.u32()? as usize;
        let op = Op::of(fields.u32()?);
        let unique = fields.u64()?;
        let node = fields.u64()?;
        let (uid, gid, pid) = (fields.u32()?, fields.u32()?, fields.u32()?);
        // `len` covers what follows; extensions behind it are not asked for.
        let body = bytes.get(IN_HEADER..len).ok_or(Malformed)?;
        Ok(Self { header: Header { op, unique, node, uid, gid, pid }, body })
    }

    /// The fields, from the first.
    pub(super) fn fields(&self) -> Fields<'a> {
        Fields(self.body)
    }

    /// Bytes behind the header.
    pub(super) fn body_len(&self) -> usize {
        self.body.len()
    }

    /// Who asks.
    pub(super) fn caller(&self) -> Caller {
        Caller { uid: self.header.uid, gid: self.header.gid, pid: self.header.pid }
    }

    /// True if root asks.
    pub(super) fn is_root(&self) -> bool {
        self.header.uid == 0
    }
}

/// The rest of a request's body; taking a field shortens it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_ne_bytes(self.take()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_ne_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_ne_bytes(self.take()?))
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_ne_bytes(self.take()?))
    }

    /// Passes over `n` bytes.
    pub(super) fn skip(&mut self, n: usize) -> Result<(), Malformed> {
        self.0 = self.0.get(n..).ok_or(Malformed)?;
        Ok(())
    }

    /// A name: all up to a zero byte.
    pub(super) fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Malformed)?;
        let (name, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).ok_or(Malformed)?;
        Ok(name)
    }

    /// The next `n` bytes.
    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let bytes = self.0.get(..n).ok_or(Malformed)?;
        self.0 = &self.0[n..];
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(op: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(IN_HEADER + body.len()).unwrap().to_ne_bytes());
        bytes.extend(op.to_ne_bytes());
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(9u64.to_ne_bytes());
        for id in [1000u32, 100, 42, 0] {
            bytes.extend(id.to_ne_bytes());
        }
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_request_is_taken_apart() {
        let bytes = request(1, b"name\0");
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request.header.op, Some(Op::Lookup));
        assert_eq!((request.header.unique, request.header.node, request.header.pid), (7, 9, 42));
        assert!(!request.is_root());
        assert_eq!(request.fields().name().unwrap(), b"name");
    }

    #[test]
    fn what_is_cut_short_is_refused_at_every_length() {
        let whole = request(8, b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0name\0");
        for len in 0..whole.len() {
            assert_eq!(Request::parse(&whole[..len]).err(), Some(Malformed), "{len}");
        }
        let unended = request(1, b"name");
        assert_eq!(Request::parse(&unended).unwrap().fields().name(), Err(Malformed));
        let mut lying = request(1, b"name\0");
        lying[0] = 8;
        assert_eq!(Request::parse(&lying).err(), Some(Malformed), "shorter than its header");
    }

    #[test]
    fn names_are_any_bytes() {
        let bytes = request(12, b"\xff\xfe\0\x01 \0");
        let mut fields = Request::parse(&bytes).unwrap().fields();
        assert_eq!(fields.name().unwrap(), b"\xff\xfe");
        assert_eq!(fields.name().unwrap(), b"\x01 ");
        assert_eq!(fields.name(), Err(Malformed));
    }
}
