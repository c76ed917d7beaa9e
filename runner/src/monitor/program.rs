//! The standard streams of one program, seen from the monitor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;

use super::log::Stream;
use crate::config::TerminalSize;
use crate::process::Stdio;
use crate::relay::set_nonblocking;
use crate::state::ProcessIdentity;
use crate::terminal;

/// Bytes of input that wait for the program to read them; beyond it, clients wait.
const INPUT_MAX: usize = 64 * 1024;

/// What a program's streams are to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// A terminal: it comes from the worker.
    pub(super) terminal: bool,
    /// Input is passed on.
    pub(super) stdin: bool,
    /// Output is read.
    pub(super) output: bool,
}

/// One program and its streams.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) process: Option<ProcessIdentity>,
    /// What it is called, where it was executed in the container.
    pub(super) name: String,
    input: Option<OwnedFd>,
    buffer: Vec<u8>,
    input_ends: bool,
    outputs: [Option<OwnedFd>; 2],
    terminal: Option<OwnedFd>,
    /// Kept open, so that the terminal does not hang up in a moment when the program has it closed.
    slave: Option<OwnedFd>,
    wants_stdin: bool,
    size: Option<TerminalSize>,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    Bytes(usize),
    NothingNow,
    End,
}

impl Program {
    /// Makes the pipes of a program that is about to be run; the program's ends of them come back.
    pub(super) fn prepare(wish: Wish) -> io::Result<(Self, Stdio)> {
        let mut program = Self { wants_stdin: wish.stdin, ..Self::default() };
        let mut stdio = Stdio::default();
        let null =
            || rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        if wish.terminal {
            return Ok((program, stdio));
        }
        stdio.stdin = Some(match wish.stdin {
            true => {
                let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                set_nonblocking(&write)?;
                program.input = Some(write);
                read
            }
            false => null()?,
        });
        let [out, err] = &mut program.outputs;
        for (ours, theirs) in [(out, &mut stdio.stdout), (err, &mut stdio.stderr)] {
            *theirs = Some(match wish.output {
                true => {
                    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                    set_nonblocking(&read)?;
                    *ours = Some(read);
                    write
                }
                false => null()?,
            });
        }
        Ok((program, stdio))
    }

    /// A program with streams that are passed to it: nothing is read or written here.
    pub(super) fn with(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> io::Result<(Self, Stdio)> {
        let stdio = Stdio {
            stdin: Some(stdin.try_clone()?),
            stdout: Some(stdout.try_clone()?),
            stderr: Some(stderr.try_clone()?),
        };
        Ok((Self::default(), stdio))
    }

    /// It runs; its terminal, if it has one, has this master.
    pub(super) fn runs(&mut self, process: ProcessIdentity, master: Option<OwnedFd>) -> io::Result<()> {
        self.process = Some(process);
        let Some(master) = master else { return Ok(()) };
        set_nonblocking(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        self.slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).ok();
        if self.wants_stdin {
            self.input = Some(master.try_clone()?);
        }
        self.outputs = [Some(master.try_clone()?), None];
        self.terminal = Some(master);
        if let Some(size) = self.size {
            self.resize(size);
        }
        Ok(())
    }

    /// Gives its terminal this size, now or when it is there.
    pub(super) fn resize(&mut self, size: TerminalSize) {
        self.size = Some(size);
        if let Some(master) = &self.terminal
            && let Err(error) = terminal::resize(master, size)
        {
            tracing::debug!(%error, "resize a terminal");
        }
    }

    /// Takes input for it; false when it has none.
    pub(super) fn take_input(&mut self, bytes: &[u8]) {
        if self.wants_stdin && !self.input_ends && (self.input.is_some() || self.process.is_none()) {
            self.buffer.extend_from_slice(bytes);
            self.write_input();
        }
    }

    /// There will be no more input. A terminal stays open.
    pub(super) fn end_input(&mut self) {
        if self.terminal.is_none() {
            self.input_ends = true;
            self.write_input();
        }
    }

    /// Clients have to wait before they send more.
    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= INPUT_MAX
    }

    /// What to wait for to write input.
    pub(super) fn input_wanted(&self) -> Option<PollFd<'_>> {
        let input = self.input.as_ref()?;
        (!self.buffer.is_empty()).then(|| PollFd::new(input, PollFlags::OUT))
    }

    /// Writes what can be written now.
    pub(super) fn write_input(&mut self) {
        if let Some(input) = &self.input
            && !self.buffer.is_empty()
        {
            match rustix::io::write(input, &self.buffer) {
                Ok(length) => drop(self.buffer.drain(..length)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                // It has closed its input.
                Err(_) => {
                    self.buffer.clear();
                    self.input = None;
                }
            }
        }
        if self.buffer.is_empty() {
            self.buffer.shrink_to(0);
            if self.input_ends {
                self.input = None;
            }
        }
    }

    /// Output that is still open: its number, and what to wait for.
    pub(super) fn outputs_wanted(&self) -> impl Iterator<Item = (usize, PollFd<'_>)> {
        let open = self.outputs.iter().enumerate();
        open.filter_map(|(index, fd)| Some((index, PollFd::new(fd.as_ref()?, PollFlags::IN))))
    }

    /// Reads some of an output.
    pub(super) fn read_output(&mut self, index: usize, buffer: &mut [u8]) -> Output {
        let Some(slot) = self.outputs.get_mut(index) else { return Output::End };
        let Some(fd) = slot.as_ref() else { return Output::End };
        match rustix::io::read(fd, buffer) {
            Ok(0) => {}
            Ok(length) => return Output::Bytes(length),
            Err(Errno::AGAIN | Errno::INTR) => return Output::NothingNow,
            // A terminal whose other end is closed says EIO.
            Err(_) => {}
        }
        *slot = None;
        Output::End
    }

    /// It has ended: its terminal hangs up once what it wrote is read.
    pub(super) fn has_ended(&mut self) {
        self.slave = None;
        self.input = None;
        self.buffer = Vec::new();
    }

    /// Which stream output `index` is.
    pub(super) fn stream(index: usize) -> Stream {
        if index == 0 { Stream::Stdout } else { Stream::Stderr }
    }
}

/// A descriptor of a process that is this one's child and not waited for: its number is its own.
pub(super) fn open(process: ProcessIdentity) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(process.pid)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Sends a signal; a process that has ended is no error.
pub(super) fn signal(process: Option<&OwnedFd>, signal: i32) -> io::Result<()> {
    let Some(process) = process else { return Ok(()) };
    match crate::sys::signal::send(process.as_fd(), signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result,
    }
}
