//! The client's side of the monitor's socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::protocol::{self, Event, PACKET_MAX, Packet, Request, VERSION, letter};
use super::serve::SOCKET;
use crate::config::TerminalSize;

/// A connection to a container's monitor.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// What the monitor sent.
#[derive(Debug)]
pub enum Message<'a> {
    /// Bytes of standard output.
    Output(&'a [u8]),
    /// Bytes of standard error.
    Error(&'a [u8]),
    /// Something happened.
    Event(Event),
    /// It is gone.
    End,
}

/// An address that is short enough whatever the path: through the directory's descriptor.
pub(super) fn address(directory: BorrowedFd<'_>) -> io::Result<SocketAddrUnix> {
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(SOCKET);
    Ok(SocketAddrUnix::new(&path)?)
}

impl Connection {
    /// Reaches the monitor of the container in `directory`; `None` when it has none.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn open(directory: &Path) -> io::Result<Option<Self>> {
        use rustix::io::Errno;
        let handle = match File::open(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let address = address(handle.as_fd())?;
        match rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address)) {
            Ok(()) => Ok(Some(Self::of(socket))),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// On a socket that is connected.
    #[must_use]
    pub fn of(socket: OwnedFd) -> Self {
        Self { socket, buffer: vec![0; PACKET_MAX] }
    }

    /// Asks for something; with `descriptor` where the request has one.
    ///
    /// # Errors
    /// Of the system call: `EPIPE` when the monitor is gone.
    pub fn ask(&self, request: Request, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.ask_with(request, descriptor.as_slice())
    }

    /// As [`ask`](Self::ask), with several descriptors.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_with(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = protocol::text_of(&Packet { version: VERSION, request })?;
        match protocol::send(&self.socket, [&text, &[]], descriptors, SendFlags::empty()) {
            // It was gone before it had read what was sent: the same to whoever asks.
            Err(rustix::io::Errno::CONNRESET) => Err(rustix::io::Errno::PIPE.into()),
            result => Ok(result?),
        }
    }

    /// Sends input; waits where the monitor is behind.
    ///
    /// # Errors
    /// Of the system call.
    pub fn send_input(&self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(protocol::DATA_MAX) {
            self.send(letter::INPUT, part)?;
        }
        Ok(())
    }

    /// There will be no more input.
    ///
    /// # Errors
    /// Of the system call.
    pub fn end_input(&self) -> io::Result<()> {
        self.send(letter::INPUT_END, &[])
    }

    /// Leaves; the program's input stays open.
    ///
    /// # Errors
    /// Of the system call.
    pub fn detach(&self) -> io::Result<()> {
        self.send(letter::DETACH, &[])
    }

    /// Gives the program's terminal a size.
    ///
    /// # Errors
    /// Of the system call.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let ([a, b], [c, d]) = (size.rows.to_be_bytes(), size.columns.to_be_bytes());
        self.send(letter::SIZE, &[a, b, c, d])
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// Of the system call.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.send(letter::SIGNAL, &[u8::try_from(signal).unwrap_or(0)])
    }

    fn send(&self, letter: u8, bytes: &[u8]) -> io::Result<()> {
        Ok(protocol::send(&self.socket, [&[letter], bytes], &[], SendFlags::empty())?)
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// Of the system call, or when the monitor says what nobody understands.
    pub fn receive(&mut self) -> io::Result<Message<'_>> {
        let length = match protocol::receive(&self.socket, &mut self.buffer, RecvFlags::empty()) {
            Ok(incoming) => incoming.length,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        match self.buffer.get(..length).unwrap_or_default().split_first() {
            None => Ok(Message::End),
            Some((&letter::OUTPUT, bytes)) => Ok(Message::Output(bytes)),
            Some((&letter::ERROR, bytes)) => Ok(Message::Error(bytes)),
            Some(_) => {
                Ok(Message::Event(serde_json::from_slice(self.buffer.get(..length).unwrap_or_default())?))
            }
        }
    }

    /// The next event; output is passed over.
    ///
    /// # Errors
    /// As [`Self::receive`]. `None` is the monitor's end.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            match self.receive()? {
                Message::Event(event) => return Ok(Some(event)),
                Message::End => return Ok(None),
                Message::Output(_) | Message::Error(_) => {}
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
