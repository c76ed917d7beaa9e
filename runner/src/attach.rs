//! Being with a running container: its streams, its terminal, signals passed on, its end awaited.
//!
//! One loop over descriptors in one thread. The user's own descriptors keep their flags; a terminal of the
//! user is never handed to the container, which could push keys into it: it gets a pipe, or a terminal of
//! its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;

use crate::process::{Container, ExitStatus, Stdio};
use crate::relay::{Direction, Relay, set_nonblocking};
use crate::sys::signal::{self, SignalFd};
use crate::terminal::{self, RawMode};

/// Signals that are passed on to the program.
const FORWARDED: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];
/// Of these, the ones that mean "stop"; a program that is process 1 may well ignore them.
const STOPPING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
/// So many requests to stop, and the container is killed.
const PATIENCE: u32 = 3;

/// Signals of this process, taken from their default actions and kept until they are asked for.
///
/// Made early, so that an interrupt during setup is noticed where it can be undone and not where it strikes.
/// They stay blocked when it is dropped: the process is about to leave, and a late one would change its
/// exit status.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Takes the signals over. Those ignored when the process began (nohup) stay ignored.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn take() -> io::Result<Self> {
        let mut signals = vec![libc::SIGWINCH];
        signals.extend(FORWARDED.into_iter().filter(|signal| !signal::is_ignored(*signal)));
        signal::block(&signals)?;
        Ok(Self(SignalFd::new(&signals)?))
    }

    /// The number of the next signal that came.
    ///
    /// # Errors
    /// Of the system call.
    pub fn next(&self) -> io::Result<Option<i32>> {
        self.0.next()
    }

    /// The number of a signal that came and means "stop".
    ///
    /// # Errors
    /// Of the system call.
    pub fn interrupted(&self) -> io::Result<Option<i32>> {
        while let Some(signal) = self.0.next()? {
            if STOPPING.contains(&signal) {
                return Ok(Some(signal));
            }
        }
        Ok(None)
    }
}

impl AsFd for Signals {
    /// Readable when a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How the user's streams and the container's meet.
#[derive(Debug)]
pub struct Streams {
    /// The relays of a container without a terminal.
    relays: Vec<Relay>,
    interactive: bool,
}

impl Streams {
    /// For a container without a terminal of its own: what it gets as standard streams, and what is relayed.
    ///
    /// Files and pipes are handed on as they are. Standard input is empty unless `interactive`. Pipes made
    /// here belong to the container's `uid` and `gid`, so that its program can reopen `/dev/stdout`.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn plain(interactive: bool, uid: u32, gid: u32) -> io::Result<(Self, Stdio)> {
        let mut relays = Vec::new();
        let mut stdio = Stdio::default();
        if !interactive {
            stdio.stdin = Some(std::fs::File::open("/dev/null")?.into());
        } else if rustix::termios::isatty(rustix::stdio::stdin()) {
            let (read, write) = pipe_of(uid, gid)?;
            set_nonblocking(&write)?;
            relays.push(Relay::new(Direction::In, duplicate(rustix::stdio::stdin())?, write));
            stdio.stdin = Some(read);
        }
        for (own, slot) in
            [(rustix::stdio::stdout(), &mut stdio.stdout), (rustix::stdio::stderr(), &mut stdio.stderr)]
        {
            if rustix::termios::isatty(own) {
                let (read, write) = pipe_of(uid, gid)?;
                set_nonblocking(&read)?;
                relays.push(Relay::new(Direction::Out, read, duplicate(own)?));
                *slot = Some(write);
            }
        }
        Ok((Self { relays, interactive }, stdio))
    }

    /// For a container that has this process's own streams; nothing is relayed.
    #[must_use]
    pub fn inherited() -> Self {
        Self { relays: Vec::new(), interactive: false }
    }

    /// For a container with a terminal of its own; the keys go there if `interactive`.
    #[must_use]
    pub fn terminal(interactive: bool) -> Self {
        Self { relays: Vec::new(), interactive }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The program's end.
    pub status: ExitStatus,
    /// It was killed after it was asked to stop three times.
    pub forced: bool,
    /// It was killed because this one of the watched descriptors became readable.
    pub watched: Option<usize>,
}

/// Stays with a started container until its program ends, and has copied everything it wrote.
///
/// When one of `watched` becomes readable, the container is killed.
///
/// # Errors
/// Of the system calls of the loop; the container is left to the caller.
pub fn attach(
    container: &mut Container,
    streams: Streams,
    signals: &Signals,
    watched: &[BorrowedFd<'_>],
) -> io::Result<Outcome> {
    let Streams { mut relays, interactive } = streams;
    let console = match container.take_terminal() {
        Some(master) => Some(Console::new(master, interactive, &mut relays)?),
        None => None,
    };
    let mut session =
        Session { container, signals, watched, relays, console, stops: 0, forced: false, ended_watch: None };
    let status = session.run()?;
    Ok(Outcome { status, forced: session.forced, watched: session.ended_watch })
}

/// The container's terminal, on the machine's side.
struct Console {
    master: OwnedFd,
    /// Kept open, so that the terminal does not hang up in a moment when the container has it closed.
    slave: Option<OwnedFd>,
    _raw: Option<RawMode>,
}

impl Console {
    fn new(master: OwnedFd, interactive: bool, relays: &mut Vec<Relay>) -> io::Result<Self> {
        set_nonblocking(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let stdin = rustix::stdio::stdin();
        let mut raw = None;
        if interactive {
            if rustix::termios::isatty(stdin) {
                raw = Some(RawMode::enter(stdin)?);
            }
            relays.push(Relay::new(Direction::In, duplicate(stdin)?, duplicate(&master)?));
        }
        relays.push(Relay::new(Direction::Out, duplicate(&master)?, duplicate(rustix::stdio::stdout())?));
        let console = Self { master, slave: Some(slave), _raw: raw };
        console.follow_size();
        Ok(console)
    }

    /// Gives the container's terminal the size of the user's.
    fn follow_size(&self) {
        let size =
            terminal::size_of(rustix::stdio::stdout()).or_else(|| terminal::size_of(rustix::stdio::stdin()));
        if let Some(size) = size
            && let Err(error) = terminal::resize(&self.master, size)
        {
            tracing::debug!(%error, "resize the container's terminal");
        }
    }
}

struct Session<'a> {
    container: &'a mut Container,
    signals: &'a Signals,
    watched: &'a [BorrowedFd<'a>],
    relays: Vec<Relay>,
    console: Option<Console>,
    stops: u32,
    forced: bool,
    ended_watch: Option<usize>,
}

impl Session<'_> {
    fn run(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.container.try_wait()? {
                self.finish();
                return Ok(status);
            }
            let ready = self.wait()?;
            if ready.signals {
                self.pass_signals_on()?;
            }
            if let Some(index) = ready.watched
                && self.ended_watch.is_none()
            {
                self.ended_watch = Some(index);
                self.container.kill()?;
            }
            for index in ready.relays {
                if let Some(relay) = self.relays.get_mut(index) {
                    relay.step();
                }
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut wanted = vec![
            PollFd::from_borrowed_fd(self.signals.0.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.container.pidfd(), PollFlags::IN),
        ];
        let first_watched = wanted.len();
        if self.ended_watch.is_none() {
            wanted.extend(self.watched.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        }
        let first_relay = wanted.len();
        let mut relay_indices = Vec::with_capacity(self.relays.len());
        for (index, relay) in self.relays.iter().enumerate() {
            if let Some(fd) = relay.wanted() {
                wanted.push(fd);
                relay_indices.push(index);
            }
        }
        match rustix::event::poll(&mut wanted, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready: Vec<bool> = wanted.iter().map(|fd| !fd.revents().is_empty()).collect();
        let (own, relays) = is_ready.split_at(first_relay);
        Ok(Ready {
            signals: own.first().copied().unwrap_or(false),
            watched: own.get(first_watched..).and_then(|watched| watched.iter().position(|ready| *ready)),
            relays: relays.iter().zip(relay_indices).filter(|(ready, _)| **ready).map(|(_, i)| i).collect(),
        })
    }

    fn pass_signals_on(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.0.next()? {
            if signal == libc::SIGWINCH {
                if let Some(console) = &self.console {
                    console.follow_size();
                }
                continue;
            }
            if STOPPING.contains(&signal) {
                self.stops += 1;
            }
            if self.stops >= PATIENCE {
                self.forced = true;
                self.container.kill()?;
            } else {
                self.container.signal(signal)?;
            }
        }
        Ok(())
    }

    /// All writers are gone with the container's processes; what they wrote is still under way.
    fn finish(&mut self) {
        if let Some(console) = &mut self.console {
            console.slave = None;
        }
        for relay in &mut self.relays {
            if relay.direction() == Direction::Out {
                relay.drain();
            }
        }
    }
}

struct Ready {
    signals: bool,
    watched: Option<usize>,
    relays: Vec<usize>,
}

fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

fn pipe_of(uid: u32, gid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Both ends are one object.
    rustix::fs::fchown(&read, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok((read, write))
}
