//! A netlink socket: requests that are confirmed, and dumps.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::message::{Batch, DONE, DUMP, ERROR, Message, messages, read_u32};

/// The kernel answers at once; this only keeps a fault here from waiting for ever.
const PATIENCE: Duration = Duration::from_secs(10);
/// Larger than what the kernel puts into one datagram of a dump.
const BUFFER: usize = 64 << 10;

/// A socket. It belongs to the network namespace in which it was opened, wherever its user goes.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// Why a batch failed: which message of it, counted from 0, and the errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) message: u32,
    pub(crate) errno: Errno,
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        failure.errno.into()
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self { message: 0, errno }
    }
}

impl Socket {
    /// For interfaces, addresses and routes.
    pub(crate) fn route() -> Result<Self, Errno> {
        // Number 0, which is what no protocol means.
        Self::open(None)
    }

    /// For nf_tables.
    pub(crate) fn netfilter() -> Result<Self, Errno> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, Errno> {
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        net::sockopt::set_socket_timeout(&fd, net::sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { fd, sequence: 1 })
    }

    /// Sends messages and waits until the last one is confirmed; the last one must ask for that.
    pub(crate) fn execute(&mut self, batch: Batch) -> Result<(), Failure> {
        let (first, count) = self.send(batch)?;
        let last = first.wrapping_add(count.saturating_sub(1));
        let mut failure: Option<Failure> = None;
        let mut buffer = vec![0; BUFFER];
        loop {
            let received = self.receive(&mut buffer)?;
            for message in messages(received) {
                let at = message.sequence.wrapping_sub(first);
                if message.kind != ERROR || at >= count {
                    continue;
                }
                if let Err(errno) = outcome(message) {
                    failure.get_or_insert(Failure { message: at, errno });
                    // A transaction that may not even begin is answered once.
                    if at == 0 && count > 1 && errno == Errno::PERM {
                        return Err(Failure { message: 0, errno });
                    }
                }
                if message.sequence == last {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Sends one request and gives each object of the answer to `take`.
    pub(crate) fn query(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        attributes: impl FnOnce(&mut super::message::Attributes<'_>),
        mut take: impl FnMut(Message<'_>),
    ) -> Result<(), Errno> {
        let mut batch = Batch::default();
        batch.push(kind, flags, fixed, attributes);
        let (sequence, _) = self.send(batch)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let received = self.receive(&mut buffer)?;
            for message in messages(received).filter(|message| message.sequence == sequence) {
                match message.kind {
                    ERROR => return outcome(message),
                    DONE => return Ok(()),
                    _ => {
                        take(message);
                        if flags & DUMP != DUMP {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Sends, and gives the number of the first message and how many there are.
    fn send(&mut self, batch: Batch) -> Result<(u32, u32), Errno> {
        let (first, count) = (self.sequence, batch.len());
        self.sequence = self.sequence.wrapping_add(count);
        let bytes = batch.numbered(first);
        if bytes.len() > 100 << 10 {
            // The usual limit is about 200 KiB with the kernel's own overhead. Needs CAP_NET_ADMIN, as does the rest.
            net::sockopt::set_socket_send_buffer_size_force(&self.fd, bytes.len() * 2)?;
        }
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| net::sendto(&self.fd, &bytes, SendFlags::empty(), &kernel))?;
        Ok((first, count))
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let (len, _) = rustix::io::retry_on_intr(|| net::recv(&self.fd, &mut *buffer, RecvFlags::empty()))?;
        buffer.get(..len).ok_or(Errno::MSGSIZE)
    }
}

/// What an error message says; zero is success.
fn outcome(message: Message<'_>) -> Result<(), Errno> {
    match read_u32(message.body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code.saturating_neg())),
        None => Err(Errno::BADMSG),
    }
}
