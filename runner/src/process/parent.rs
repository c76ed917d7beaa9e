//! The parent's side: a container created, started, waited for, deleted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, WaitId, WaitIdOptions};
use rustix::thread::CapabilitySet;

use super::init;
use crate::cgroup::{Cgroup, CgroupError, Hierarchies};
use crate::channel::{Channel, Failure, FailureKind, Message};
use crate::config::Config;
use crate::sys::{self, process::Forked};

/// The standard streams of the program; `None` is the runtime's own. A terminal takes their place.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    /// Puts them in place. Their originals stay open: the caller closes everything above 2.
    pub(super) fn install(self) -> io::Result<()> {
        if let Some(stdin) = &self.stdin {
            rustix::stdio::dup2_stdin(stdin)?;
        }
        if let Some(stdout) = &self.stdout {
            rustix::stdio::dup2_stdout(stdout)?;
        }
        if let Some(stderr) = &self.stderr {
            rustix::stdio::dup2_stderr(stderr)?;
        }
        Ok(())
    }
}

/// Why a container could not be created or started.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The calling process has several threads.
    #[error("a container cannot be created from a process with several threads")]
    Threads,
    /// Its cgroup could not be made.
    #[error("set the container's cgroup up")]
    Cgroup(#[from] CgroupError),
    /// Its first process could not be made.
    #[error("make the container's first process in new namespaces")]
    Fork(#[source] io::Error),
    /// The channel to it failed.
    #[error("talk to the container's first process")]
    Channel(#[source] io::Error),
    /// Its first process failed, and says why.
    #[error("{0}")]
    Init(Failure),
    /// Its first process ended without a word: killed from outside, or by the kernel for lack of memory.
    #[error("the container's first process ended before the program ran ({0})")]
    Died(ExitStatus),
}

impl CreateError {
    /// What kind of failure, as far as an exit status depends on it.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Init(failure) => failure.kind,
            Self::Threads | Self::Cgroup(_) | Self::Fork(_) | Self::Channel(_) | Self::Died(_) => {
                FailureKind::Setup
            }
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Signaled(i32),
}

impl ExitStatus {
    /// As a shell reports it: the status, or 128 plus the signal's number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A container of this process. Dropping it kills what runs in it, waits for its end, and removes its cgroup.
#[derive(Debug)]
pub struct Container {
    pid: Pid,
    pidfd: OwnedFd,
    channel: Channel,
    terminal: Option<OwnedFd>,
    exit: Option<ExitStatus>,
    // After the process: its directories can be removed only when they are empty.
    cgroup: Option<Cgroup>,
}

impl Container {
    /// Makes the container up to the point where only the program itself is missing.
    ///
    /// The process must have one thread; its signal mask does not matter. Nothing is left when this fails.
    ///
    /// # Errors
    /// What failed, in the parent or in any stage of the first process.
    pub fn create(config: &Config, stdio: Stdio) -> Result<Self, CreateError> {
        if !sys::process::is_single_threaded().map_err(CreateError::Fork)? {
            return Err(CreateError::Threads);
        }
        let hierarchies = Hierarchies::discover()?;
        let cgroup = match &config.cgroup_name {
            Some(name) => Some(Cgroup::create(&hierarchies, name, &config.device_rules)?),
            None => None,
        };
        let mut config = config.clone();
        let controls_devices = cgroup.as_ref().is_some_and(Cgroup::controls_devices);
        if !config.device_rules.is_empty() && !controls_devices {
            // Where no rules restrain devices, making them would be using any disk.
            tracing::info!("devices cannot be controlled here: the container may not make any");
            config.process.capabilities.remove(CapabilitySet::MKNOD);
            config.root_no_devices = true;
        }
        let (ours, theirs) = Channel::pair().map_err(CreateError::Channel)?;
        let forked = sys::process::fork_into(config.namespaces.at_birth()).map_err(CreateError::Fork)?;
        let Forked::Parent { pid, pidfd } = forked else {
            drop(ours);
            init::run(&config, &hierarchies, stdio, theirs);
        };
        drop((theirs, stdio));
        let mut container = Self { pid, pidfd, channel: ours, terminal: None, exit: None, cgroup };
        if let Some(cgroup) = &container.cgroup {
            cgroup.place(pid)?;
        }
        container.say(&Message::Placed)?;
        container.await_ready()?;
        Ok(container)
    }

    fn say(&mut self, message: &Message) -> Result<(), CreateError> {
        match self.channel.send(message, None) {
            // It is gone, and has left its reason in the channel.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => self.await_ready(),
            result => result.map_err(CreateError::Channel),
        }
    }

    fn await_ready(&mut self) -> Result<(), CreateError> {
        let received = self.channel.receive().map_err(CreateError::Channel)?;
        match received.message {
            Some(Message::Ready) => {
                self.terminal = received.descriptor;
                Ok(())
            }
            Some(Message::Failed(failure)) => Err(CreateError::Init(failure)),
            Some(Message::Placed | Message::Start) | None => {
                self.kill().map_err(CreateError::Channel)?;
                Err(CreateError::Died(self.wait().map_err(CreateError::Channel)?))
            }
        }
    }

    /// Runs the program; returns when it has begun.
    ///
    /// # Errors
    /// When it cannot be executed, or the last restrictions cannot be put in force.
    pub fn start(&mut self) -> Result<(), CreateError> {
        self.say(&Message::Start)?;
        let received = self.channel.receive().map_err(CreateError::Channel)?;
        match received.message {
            // The channel closes at exec.
            None => Ok(()),
            Some(Message::Failed(failure)) => Err(CreateError::Init(failure)),
            Some(message) => Err(CreateError::Channel(io::Error::other(format!("unexpected {message:?}")))),
        }
    }

    /// The program's process, in the caller's pid namespace.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable once the program has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The master of its terminal, once.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Directories of its cgroup.
    #[must_use]
    pub fn cgroup_directories(&self) -> &[std::path::PathBuf] {
        self.cgroup.as_ref().map(Cgroup::directories).unwrap_or_default()
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// Of the system call; a program that has ended is none.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match sys::signal::send(&self.pidfd, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Kills the program, and with it all processes of its pid namespace and cgroup.
    ///
    /// # Errors
    /// Of the system call; a program that has ended is none.
    pub fn kill(&self) -> io::Result<()> {
        if self.cgroup.as_ref().is_some_and(Cgroup::kill) {
            return Ok(());
        }
        self.signal(libc::SIGKILL)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Of the system call.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
        })?;
        self.exit = status.and_then(|status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(ExitStatus::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
            (None, Some(signal)) => Some(ExitStatus::Signaled(signal)),
            (None, None) => None,
        });
        Ok(self.exit)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Of the system calls.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            let mut wanted = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut wanted, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Kills what runs in it, waits, and removes its cgroup.
    ///
    /// # Errors
    /// What is left behind.
    pub fn delete(mut self) -> Result<(), CreateError> {
        self.end().map_err(CreateError::Channel)?;
        if let Some(mut cgroup) = self.cgroup.take() {
            cgroup.remove()?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if self.try_wait()?.is_none() {
            self.kill()?;
            self.wait()?;
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, pid = ?self.pid, "the container's first process may be left");
        }
    }
}
