//! The little of rtnetlink(7) that moving an interface takes: messages as bytes, and one socket per namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

// linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/if_addr.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE_CREATE: u16 = 0x500;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_PERMANENT: u8 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// Messages of a dump come in parts of at most this.
const PART_MAX: usize = 32 << 10;

/// An address of an interface, as it is given again elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// A socket of the network namespace in which it was made.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 is that of routes and links.
        Ok(Self(rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?))
    }

    /// Moves interface `index` to the network namespace of `namespace`, where it is called `name`.
    pub(super) fn move_link(&self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let mut body = link(index, 0);
        attribute(&mut body, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        self.acknowledged(&message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, &body))
    }

    /// Brings interface `index` up.
    pub(super) fn bring_up(&self, index: u32) -> io::Result<()> {
        let up = libc::IFF_UP.unsigned_abs();
        self.acknowledged(&message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, &link(index, up)))
    }

    /// Gives interface `index` an address.
    pub(super) fn add_address(&self, index: u32, address: &Address) -> io::Result<()> {
        let mut body = vec![address.family, address.prefix, 0, RT_SCOPE_UNIVERSE];
        body.extend(index.to_ne_bytes());
        for (kind, value) in &address.attributes {
            attribute(&mut body, *kind, value);
        }
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE_CREATE;
        self.acknowledged(&message(RTM_NEWADDR, flags, &body))
    }

    /// The addresses of interface `index` that are of the whole network and for good.
    pub(super) fn addresses(&self, index: u32) -> io::Result<Vec<Address>> {
        self.send(&message(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &[0; ADDRESS_HEADER]))?;
        let mut found = Vec::new();
        loop {
            let part = self.receive()?;
            for (kind, body) in messages(&part) {
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => failure(body)?,
                    RTM_NEWADDR => found.extend(address(index, body)),
                    _ => {}
                }
            }
        }
    }

    fn acknowledged(&self, message: &[u8]) -> io::Result<()> {
        self.send(message)?;
        let part = self.receive()?;
        match messages(&part).next() {
            Some((NLMSG_ERROR, body)) => failure(body),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.0, message, SendFlags::empty()))?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0_u8; PART_MAX];
        let (length, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())
        })?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// The address that a message tells of, if it is one of `index` to be kept.
fn address(index: u32, body: &[u8]) -> Option<Address> {
    let (&[family, prefix, flags, scope], rest) = body.split_first_chunk()?;
    let (number, mut rest) = rest.split_first_chunk::<4>()?;
    if u32::from_ne_bytes(*number) != index || scope != RT_SCOPE_UNIVERSE || flags & IFA_F_PERMANENT == 0 {
        return None;
    }
    let mut attributes = Vec::new();
    while let Some((&[a, b, c, d], _)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]);
        let value = rest.get(4..length)?;
        if matches!(kind, IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST) {
            attributes.push((kind, value.to_vec()));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Address { family, prefix, attributes })
}

/// The error number that a message carries; 0 is an acknowledgement.
fn failure(body: &[u8]) -> io::Result<()> {
    let number = body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    match number {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `struct ifinfomsg`: any family, and which flags are set.
fn link(index: u32, flags: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence and port: one question at a time, and the kernel knows who asks.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Kind and body of each message in what was received.
fn messages(mut part: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*part.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(part.get(4..6)?.try_into().ok()?);
        let body = part.get(HEADER..length)?;
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_an_address_that_is_not_of_the_whole_network() {
        let netlink = Netlink::open().unwrap();
        // Scope of the machine: it is not moved, and there is no error either.
        assert_eq!(netlink.addresses(1).unwrap(), []);
        let none = netlink.bring_up(u32::MAX >> 1).unwrap_err();
        assert!(none.raw_os_error().is_some(), "{none}");
    }

    #[test]
    fn addresses_are_read_whole_and_damaged_messages_are_none() {
        let mut body = vec![2, 24, IFA_F_PERMANENT, RT_SCOPE_UNIVERSE];
        body.extend(7_u32.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &[10, 0, 0, 1]);
        attribute(&mut body, 3, b"name\0");
        attribute(&mut body, IFA_BROADCAST, &[10, 0, 0, 255]);
        let expected = Address {
            family: 2,
            prefix: 24,
            attributes: vec![(IFA_LOCAL, vec![10, 0, 0, 1]), (IFA_BROADCAST, vec![10, 0, 0, 255])],
        };
        assert_eq!(address(7, &body), Some(expected));
        assert_eq!(address(8, &body), None, "another interface");
        for length in 0..8 {
            assert_eq!(address(7, body.get(..length).unwrap()), None);
        }
        // A length below that of its own header must not be read for ever.
        body.truncate(8);
        body.extend([0, 0, 1, 0]);
        assert_eq!(address(7, &body), None);
    }
}
