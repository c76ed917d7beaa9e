//! A client of the monitor, seen from the monitor: its socket, and what waits to be sent to it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::protocol::{self, Event, Incoming, Streams};

/// Bytes that wait for a client that need not get all of them.
const WAITING_MAX: usize = 64 * 1024;

/// What a client is here for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It has not said it.
    New,
    /// It is with a program.
    Attached {
        /// The program's key.
        program: u32,
        /// Which streams.
        streams: Streams,
        /// Its leaving without a word ends the program's input.
        owns_input: bool,
    },
    /// It waits for the end.
    Waiting {
        /// Of each run.
        each: bool,
    },
}

/// A client.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) key: u32,
    pub(super) role: Role,
    socket: OwnedFd,
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    missed: u64,
    is_gone: bool,
    is_leaving: bool,
}

impl Peer {
    pub(super) fn new(key: u32, socket: OwnedFd) -> Self {
        let waiting = VecDeque::new();
        Self { key, role: Role::New, socket, waiting, bytes: 0, missed: 0, is_gone: false, is_leaving: false }
    }

    /// It can be dropped.
    pub(super) fn is_done(&self) -> bool {
        self.is_gone || (self.is_leaving && self.waiting.is_empty())
    }

    /// Something waits for it.
    pub(super) fn is_behind(&self) -> bool {
        !self.is_gone && !self.waiting.is_empty()
    }

    /// The program has to wait for it.
    pub(super) fn holds_up(&self, program: u32) -> bool {
        let is_whole = matches!(self.role, Role::Attached { program: own, streams, .. }
            if own == program && streams.whole);
        is_whole && self.is_behind()
    }

    /// Nothing more is said to it.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// It hung up.
    pub(super) fn gone(&mut self) {
        self.is_gone = true;
    }

    /// What to wait for.
    pub(super) fn events(&self, may_send: bool) -> PollFlags {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, may_send && !self.is_leaving);
        events.set(PollFlags::OUT, self.is_behind());
        events
    }

    /// The next packet, or `None` when there is none now or the client is gone.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Option<Incoming> {
        match protocol::receive(&self.socket, buffer, RecvFlags::DONTWAIT) {
            Ok(Incoming { length: 0, .. }) => {
                self.is_gone = true;
                None
            }
            Ok(incoming) => Some(incoming),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) => {
                self.is_gone = true;
                None
            }
        }
    }

    /// Output of a program.
    pub(super) fn output(&mut self, letter: u8, bytes: &[u8]) {
        let must = matches!(self.role, Role::Attached { streams, .. } if streams.whole);
        // The oldest goes first: what a screen shows at the end is what was written last.
        while !must && self.bytes + bytes.len() > WAITING_MAX {
            let Some(at) = self.waiting.iter().position(|packet| packet.first() != Some(&b'{')) else {
                break;
            };
            let length = self.waiting.remove(at).map_or(0, |packet| packet.len());
            self.bytes -= length;
            self.missed += u64::try_from(length.saturating_sub(1)).unwrap_or(u64::MAX);
        }
        self.send(&[letter], bytes);
    }

    /// Tells something.
    pub(super) fn tell(&mut self, event: &Event) {
        match protocol::text_of(event) {
            Ok(text) => self.send(&text, &[]),
            Err(error) => tracing::warn!(%error, "tell a client"),
        }
    }

    fn send(&mut self, head: &[u8], rest: &[u8]) {
        if self.is_gone || self.is_leaving {
            return;
        }
        if self.waiting.is_empty() {
            match protocol::send(&self.socket, [head, rest], &[], SendFlags::DONTWAIT) {
                Ok(()) => return,
                Err(Errno::AGAIN | Errno::NOBUFS) => {}
                Err(_) => return self.gone(),
            }
        }
        self.bytes += head.len() + rest.len();
        self.waiting.push_back([head, rest].concat());
    }

    /// Sends what waits, as far as it goes.
    pub(super) fn flush(&mut self) {
        while let Some(packet) = self.waiting.front() {
            match protocol::send(&self.socket, [packet, &[]], &[], SendFlags::DONTWAIT) {
                Ok(()) => {
                    self.bytes -= packet.len();
                    self.waiting.pop_front();
                }
                Err(Errno::AGAIN | Errno::NOBUFS) => return,
                Err(_) => return self.gone(),
            }
        }
        self.waiting.shrink_to(0);
        if self.missed > 0 && !self.is_leaving {
            let bytes = std::mem::take(&mut self.missed);
            self.tell(&Event::Missed { bytes });
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (Peer, OwnedFd) {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        (Peer::new(0, ours), theirs)
    }

    fn received(socket: &OwnedFd) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; protocol::PACKET_MAX];
        while let Ok(incoming) = protocol::receive(socket, &mut buffer, RecvFlags::DONTWAIT) {
            if incoming.length == 0 {
                break;
            }
            all.push(buffer[..incoming.length].to_vec());
        }
        all
    }

    #[test]
    fn a_slow_client_misses_and_is_told_and_memory_is_bounded() {
        let (mut peer, socket) = pair();
        let block = vec![b'x'; protocol::DATA_MAX];
        for _ in 0..1000 {
            peer.output(protocol::letter::OUTPUT, &block);
        }
        assert!(peer.bytes <= WAITING_MAX + protocol::DATA_MAX && peer.missed > 0);
        let mut bytes = 0;
        let mut told = 0;
        while peer.is_behind() || told == 0 {
            for packet in received(&socket) {
                if packet[0] == b'{' {
                    let Event::Missed { bytes } = serde_json::from_slice(&packet).unwrap() else { panic!() };
                    told = bytes;
                } else {
                    bytes += packet.len() as u64 - 1;
                }
            }
            peer.flush();
        }
        assert_eq!(bytes + told, 1000 * block.len() as u64);
    }

    #[test]
    fn one_that_must_get_all_holds_its_program_up() {
        let (mut peer, socket) = pair();
        let streams = Streams { stdout: true, whole: true, ..Streams::default() };
        peer.role = Role::Attached { program: 7, streams, owns_input: false };
        while !peer.holds_up(7) {
            peer.output(protocol::letter::OUTPUT, b"some");
        }
        assert!(!peer.holds_up(8));
        assert!(!received(&socket).is_empty());
        peer.flush();
        assert!(!peer.holds_up(7) && peer.missed == 0);
        drop(socket);
        peer.output(protocol::letter::OUTPUT, b"some");
        assert!(peer.is_done());
    }
}
