//! What the parent and the container's first process say to each other.
//!
//! A pair of `SOCK_SEQPACKET` sockets: one packet is one message, a descriptor may travel with it, and the
//! end of the other process is an end of file. Both ends are the same program, forked, so that the encoding
//! is nobody else's business.
//!
//! Order, as far as the container needs each: parent [`Message::Mapped`] and [`Message::Placed`], init
//! [`Message::HooksDue`], parent [`Message::HooksDone`], init [`Message::Ready`] (or, at any time, [`Message::Failed`]).
//! A container that outlives its creator is then told [`Message::Release`], and listens on a socket; whoever connects,
//! and the parent otherwise, says [`Message::Start`]. End of file means that the program runs.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

/// Longest message; words of an error are cut to fit well below it.
const MESSAGE_MAX: usize = 8192;
/// Longest text of an error in a message.
const WORDS_MAX: usize = 2048;

/// The stages of the container's first process, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Entering namespaces, mapping ids.
    Namespaces,
    /// Waiting to be placed in its cgroup, then the cgroup namespace.
    Cgroup,
    /// Own mount namespace and the root filesystem in it.
    Root,
    /// The mounts of the specification.
    Mounts,
    /// `/dev`.
    Devices,
    /// The pseudo terminal.
    Terminal,
    /// The old root left behind.
    Pivot,
    /// Host name, loopback, sysctl, masked and read-only paths.
    Environment,
    /// A hook of the specification.
    Hooks,
    /// Limits, user, capabilities, seccomp.
    Privileges,
    /// Working directory and program.
    Exec,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "namespaces",
            Self::Cgroup => "cgroup",
            Self::Root => "root filesystem",
            Self::Mounts => "mounts",
            Self::Devices => "devices",
            Self::Terminal => "terminal",
            Self::Pivot => "pivot",
            Self::Environment => "environment",
            Self::Hooks => "hooks",
            Self::Privileges => "privileges",
            Self::Exec => "exec",
        })
    }
}

/// What kind of failure, as far as a caller's exit status depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The container could not be set up.
    Setup,
    /// The program does not exist in the container.
    NotFound,
    /// The program exists and cannot be executed.
    NotExecutable,
}

/// An error of the container's first process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Where.
    pub stage: Stage,
    /// What kind.
    pub kind: FailureKind,
    /// What was being done, to what, and why it failed.
    pub words: String,
    /// Number of the system call's error.
    pub errno: Option<i32>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            FailureKind::Setup => write!(f, "{}: {}", self.stage, self.words),
            FailureKind::NotFound | FailureKind::NotExecutable => f.write_str(&self.words),
        }
    }
}

/// All that is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Intermediate process: its user namespace exists and wants its ids.
    WantsIds,
    /// Parent: the ids of the user namespace are mapped.
    Mapped,
    /// Intermediate process: the first process is born; its descriptor comes with it.
    Born {
        /// Its number as the intermediate process sees it, which is as the parent does.
        pid: i32,
        /// It is in its cgroup of the unified hierarchy already.
        in_cgroup: bool,
    },
    /// Parent: the child is in its cgroup and may go on.
    Placed,
    /// Init: the namespaces and mounts are there, the root is not entered yet.
    HooksDue,
    /// Parent: its hooks have run; the state for init's own comes with it.
    HooksDone,
    /// Init: everything is set up; the terminal's master comes with it where one was asked for.
    Ready,
    /// Parent: it is written down that the container exists; it may outlive the parent.
    Release,
    /// Parent: run the program; the state for hooks comes with it where there are any.
    Start,
    /// Init: a filter with a listener is in force; its descriptor comes with it.
    Listener,
    /// Init: failed, and about to exit.
    Failed(Failure),
}

/// One end of the channel.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What came in.
#[derive(Debug)]
pub(crate) struct Received {
    /// `None` when the other end is closed.
    pub(crate) message: Option<Message>,
    /// A descriptor that came with it, close-on-exec.
    pub(crate) descriptor: Option<OwnedFd>,
}

impl Channel {
    /// Both ends, close-on-exec.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// One end, of a socket that was connected or accepted.
    pub(crate) fn from_socket(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Says `message`; `descriptor` is duplicated into the receiver.
    pub(crate) fn send(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut message = message.clone();
        if let Message::Failed(failure) = &mut message
            && failure.words.len() > WORDS_MAX
        {
            let cut = (0..=WORDS_MAX).rev().find(|at| failure.words.is_char_boundary(*at)).unwrap_or(0);
            failure.words.truncate(cut);
        }
        let bytes = serde_json::to_vec(&message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.map(|fd| [fd]);
        if let Some(descriptors) = &descriptors {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }

    /// Waits for the next message, or for the end.
    pub(crate) fn receive(&self) -> io::Result<Received> {
        let mut bytes = vec![0_u8; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut receive = || {
            rustix::io::retry_on_intr(|| {
                let mut slices = [IoSliceMut::new(&mut bytes)];
                rustix::net::recvmsg(&self.0, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            })
        };
        let received = match receive() {
            // The other process died with our message unread. That is told once, and before what it said last.
            Err(rustix::io::Errno::CONNRESET) => receive(),
            result => result,
        };
        let length = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut descriptor = None;
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                descriptor = descriptors.into_iter().next();
            }
        }
        if length == 0 {
            return Ok(Received { message: None, descriptor });
        }
        let message = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
        Ok(Received { message: Some(message), descriptor })
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(words: &str) -> Message {
        Message::Failed(Failure {
            stage: Stage::Mounts,
            kind: FailureKind::Setup,
            words: words.to_owned(),
            errno: Some(13),
        })
    }

    #[test]
    fn messages_arrive_one_by_one_and_the_end_shows() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Placed, None).unwrap();
        a.send(&failure("mount \"proc\": permission denied"), None).unwrap();
        drop(a);
        assert_eq!(b.receive().unwrap().message, Some(Message::Placed));
        assert_eq!(b.receive().unwrap().message, Some(failure("mount \"proc\": permission denied")));
        assert_eq!(b.receive().unwrap().message, None);
    }

    #[test]
    fn a_descriptor_travels() {
        let (a, b) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        a.send(&Message::Ready, Some(read.as_fd())).unwrap();
        drop(read);
        rustix::io::write(&write, b"x").unwrap();
        let received = b.receive().unwrap();
        assert_eq!(received.message, Some(Message::Ready));
        let mut buffer = [0_u8; 4];
        assert_eq!(rustix::io::read(received.descriptor.unwrap(), &mut buffer).unwrap(), 1);
    }

    #[test]
    fn long_words_are_cut_at_a_character() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&failure(&"ü".repeat(10_000)), None).unwrap();
        let Some(Message::Failed(failure)) = b.receive().unwrap().message else { panic!("no failure") };
        assert_eq!(failure.words, "ü".repeat(WORDS_MAX / 2));
    }

    #[test]
    fn the_last_words_of_one_who_died_with_a_message_unread_are_heard() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Placed, None).unwrap();
        b.send(&failure("no such directory"), None).unwrap();
        drop(b);
        assert_eq!(a.receive().unwrap().message, Some(failure("no such directory")));
        assert_eq!(a.receive().unwrap().message, None);
    }

    #[test]
    fn an_unread_message_at_the_other_ends_death_is_an_end() {
        let (a, b) = Channel::pair().unwrap();
        b.send(&Message::Start, None).unwrap();
        drop(a);
        assert!(b.receive().unwrap().message.is_none());
    }
}
