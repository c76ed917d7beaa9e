//! One direction of a stream: bytes from one descriptor to another, as far as both are ready.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

/// Bytes under way at most. A pty takes no more than this at a time.
const CAPACITY: usize = 4096;

/// Copies `from` to `to` in steps that an event loop drives.
#[derive(Debug)]
pub(crate) struct Relay {
    from: Option<OwnedFd>,
    to: Option<OwnedFd>,
    buffer: Vec<u8>,
    direction: Direction,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the container.
    In,
    /// From the container.
    Out,
}

impl Relay {
    /// `to` is closed when `from` has ended and everything is written.
    pub(crate) fn new(direction: Direction, from: OwnedFd, to: OwnedFd) -> Self {
        Self { from: Some(from), to: Some(to), buffer: Vec::with_capacity(CAPACITY), direction }
    }

    /// Which way its bytes go.
    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    /// What to wait for; `None` when it is finished.
    pub(crate) fn wanted(&self) -> Option<PollFd<'_>> {
        match (&self.from, &self.to) {
            (_, Some(to)) if !self.buffer.is_empty() => Some(PollFd::new(to, PollFlags::OUT)),
            (Some(from), _) => Some(PollFd::new(from, PollFlags::IN)),
            _ => None,
        }
    }

    /// One read or one write, of what [`Self::wanted`] said is ready.
    pub(crate) fn step(&mut self) {
        if self.buffer.is_empty() {
            self.read();
        } else {
            self.write();
        }
        if self.from.is_none() && self.buffer.is_empty() {
            self.to = None;
        }
    }

    /// Copies what is still there. For a source whose writers are gone.
    pub(crate) fn drain(&mut self) {
        while self.from.is_some() || (self.to.is_some() && !self.buffer.is_empty()) {
            let before = (self.from.is_some(), self.buffer.len());
            self.step();
            if before == (self.from.is_some(), self.buffer.len()) {
                // Nothing more to read yet, or no room to write: wait for room, not for bytes.
                if self.buffer.is_empty() || !self.wait_for_room() {
                    return;
                }
            }
        }
    }

    fn wait_for_room(&self) -> bool {
        let Some(to) = &self.to else { return false };
        let mut wanted = [PollFd::new(to, PollFlags::OUT)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, None)).is_ok_and(|ready| ready > 0)
    }

    fn read(&mut self) {
        let Some(from) = &self.from else { return };
        let mut bytes = [0_u8; CAPACITY];
        match rustix::io::read(from, &mut bytes) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal without its other end says EIO.
            Ok(0) | Err(_) => self.from = None,
            Ok(length) => {
                // Without a reader the bytes are dropped, and the writer goes on.
                if self.to.is_some() {
                    self.buffer.extend_from_slice(bytes.get(..length).unwrap_or_default());
                }
            }
        }
    }

    fn write(&mut self) {
        let Some(to) = &self.to else { return self.buffer.clear() };
        match rustix::io::write(to, &self.buffer) {
            Ok(length) => drop(self.buffer.drain(..length)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => {
                self.buffer.clear();
                self.to = None;
            }
        }
    }
}

/// Makes reads and writes of `fd` return at once. For descriptors of our own only: the flag belongs to the
/// open file, which others share when it was inherited.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let fd: BorrowedFd<'_> = fd.as_fd();
    let flags = rustix::fs::fcntl_getfl(fd)? | rustix::fs::OFlags::NONBLOCK;
    Ok(rustix::fs::fcntl_setfl(fd, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn everything_arrives_and_the_end_too() {
        let (from, input) = pipe();
        let (output, to) = pipe();
        set_nonblocking(&from).unwrap();
        let sent: Vec<u8> = (0..60_000_u32).map(|n| (n % 251) as u8).collect();
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || {
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    let length = rustix::io::write(&input, rest).unwrap();
                    rest = &rest[length..];
                }
            }
        });
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            std::io::Read::read_to_end(&mut std::fs::File::from(output), &mut all).unwrap();
            all
        });
        let mut relay = Relay::new(Direction::Out, from, to);
        while let Some(wanted) = relay.wanted() {
            rustix::event::poll(&mut [wanted], None).unwrap();
            relay.step();
        }
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), sent);
    }

    #[test]
    fn a_closed_reader_does_not_stop_the_writer() {
        let (from, input) = pipe();
        let (output, to) = pipe();
        set_nonblocking(&from).unwrap();
        drop(output);
        let mut relay = Relay::new(Direction::Out, from, to);
        for _ in 0..3 {
            rustix::io::write(&input, b"lost").unwrap();
            relay.step();
            relay.step();
        }
        drop(input);
        relay.drain();
        assert!(relay.wanted().is_none());
    }

    #[test]
    fn draining_does_not_wait_for_more() {
        let (from, input) = pipe();
        let (output, to) = pipe();
        set_nonblocking(&from).unwrap();
        rustix::io::write(&input, b"last words").unwrap();
        let mut relay = Relay::new(Direction::Out, from, to);
        relay.drain();
        let mut buffer = [0_u8; 32];
        assert_eq!(rustix::io::read(&output, &mut buffer).unwrap(), 10);
    }
}
