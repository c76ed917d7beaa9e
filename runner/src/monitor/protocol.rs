//! What the monitor and its clients say to each other, version 1.
//!
//! A `SOCK_SEQPACKET` socket: one packet is one message. A packet that begins with `{` is a JSON document, a [`Request`]
//! from a client or an [`Event`] from the monitor; any other begins with one of the letters below, followed by bytes.
//! docs/containers.md describes it for others.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use super::restart::RestartPolicy;
use crate::channel::FailureKind;

/// The version of this protocol. A monitor answers another one with [`Event::Refused`].
pub const VERSION: u32 = 1;
/// Bytes of data in one packet.
pub const DATA_MAX: usize = 16 * 1024;
/// Longest packet.
pub(super) const PACKET_MAX: usize = DATA_MAX + 16;

/// First bytes of packets that are no documents.
pub mod letter {
    /// Client: bytes for standard input.
    pub const INPUT: u8 = b'i';
    /// Client: there will be no more input.
    pub const INPUT_END: u8 = b'c';
    /// Client: rows and columns of its terminal, two big-endian numbers of 16 bits.
    pub const SIZE: u8 = b'r';
    /// Client: a signal for the program, one byte.
    pub const SIGNAL: u8 = b'k';
    /// Client: it leaves, and its input stays open.
    pub const DETACH: u8 = b'd';
    /// Monitor: bytes of standard output, or of the terminal.
    pub const OUTPUT: u8 = b'o';
    /// Monitor: bytes of standard error.
    pub const ERROR: u8 = b'e';
}

/// What a client begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Packet {
    /// [`VERSION`].
    pub version: u32,
    /// The rest.
    #[serde(flatten)]
    pub request: Request,
}

/// Requests. All but the streams of `Start`, `Attach` and `Exec` are answered with one event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Begin: sent once, by the process that made the monitor.
    Start {
        /// Be with it from the first byte on.
        streams: Option<Streams>,
    },
    /// Be with the program from now on.
    Attach {
        /// Which streams.
        streams: Streams,
    },
    /// Execute another program; its description comes as a descriptor of a file with the packet.
    Exec {
        /// Which streams; `None` does not stay with it.
        streams: Option<Streams>,
        /// A terminal of its own.
        terminal: bool,
    },
    /// Tell when the container has ended.
    Wait {
        /// Also when it will be started again by its restart policy.
        each: bool,
    },
    /// End the program, and do not start it again.
    Stop {
        /// The signal to ask with, if not the container's own.
        signal: Option<i32>,
        /// Seconds until it is killed, if not the container's own; negative: never.
        timeout: Option<i64>,
        /// Remove the container when it has ended.
        remove: bool,
    },
    /// Send a signal to the program.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// From now on restart by this policy.
    Policy {
        /// The policy.
        restart: RestartPolicy,
    },
}

/// What an attached client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Streams {
    /// It sends input.
    pub stdin: bool,
    /// It wants standard output.
    pub stdout: bool,
    /// It wants standard error.
    pub stderr: bool,
    /// It must get every byte: the program waits for it as for any pipe. Another one that is too slow misses some.
    pub whole: bool,
}

/// What the monitor tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The program runs.
    Started {
        /// Its number on the machine.
        pid: i32,
    },
    /// The program could not be run.
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// Why.
        words: String,
    },
    /// The program has ended.
    Exited {
        /// As a shell reports it.
        code: u8,
    },
    /// The client was too slow and has missed so many bytes.
    Missed {
        /// How many.
        bytes: u64,
    },
    /// Done.
    Done,
    /// The request makes no sense now.
    Refused {
        /// Why.
        words: String,
    },
}

/// Something received.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Bytes of the packet in the buffer that was passed; 0 is the end.
    pub(super) length: usize,
    /// Descriptors that came with it.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Most descriptors in one packet; the kernel's limit is 253 (unix(7)).
pub(super) const DESCRIPTORS_MAX: usize = 250;

/// Sends one packet, of a letter and bytes or a whole document, with at most [`DESCRIPTORS_MAX`] descriptors.
pub(super) fn send(
    socket: impl AsFd,
    parts: [&[u8]; 2],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let [head, rest] = parts;
    let slices = [IoSlice::new(head), IoSlice::new(rest)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &slices, &mut ancillary, flags | SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one packet.
pub(super) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> rustix::io::Result<Incoming> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(buffer)];
        rustix::net::recvmsg(&socket, &mut slices, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    Ok(Incoming { length: received.bytes, descriptors })
}

/// A document as the text of a packet.
pub(super) fn text_of(document: &impl Serialize) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(document)?;
    match text.len() > PACKET_MAX {
        true => Err(io::Error::other("a message to or from the monitor is too long")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_as_they_are_described() {
        let packet = Packet { version: 1, request: Request::Signal { signal: 15 } };
        let text = String::from_utf8(text_of(&packet).unwrap()).unwrap();
        assert_eq!(text, r#"{"version":1,"do":"signal","signal":15}"#);
        assert_eq!(serde_json::from_str::<Packet>(&text).unwrap(), packet);
        let stop = r#"{"version":1,"do":"stop","signal":null,"timeout":-1,"remove":false}"#;
        let stop: Packet = serde_json::from_str(stop).unwrap();
        assert_eq!(stop.request, Request::Stop { signal: None, timeout: Some(-1), remove: false });
        let event = serde_json::to_string(&Event::Exited { code: 3 }).unwrap();
        assert_eq!(event, r#"{"event":"exited","code":3}"#);
    }
}
