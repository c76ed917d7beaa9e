//! The parent's side: a container created, started, waited for, deleted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, WaitId, WaitIdOptions};
use rustix::thread::CapabilitySet;

use super::exec::leave_pid_namespace;
use super::init::{self, Inheritance};
use super::join::{self, Openings};
use crate::cgroup::{Cgroup, CgroupError, Hierarchies, Plan};
use crate::channel::{Channel, Failure, FailureKind, Message};
use crate::config::Config;
use crate::hooks;
use crate::namespaces::Namespaces;
use crate::network::devices::Devices;
use crate::rootfs::Prepared;
use crate::step::{Doing, StepError};
use crate::sys;
use crate::sys::process::{Birth, Forked};

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
    /// Other descriptors of the same files.
    ///
    /// # Errors
    /// Of the system call.
    pub fn try_clone(&self) -> io::Result<Self> {
        let copy = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self { stdin: copy(&self.stdin)?, stdout: copy(&self.stdout)?, stderr: copy(&self.stderr)? })
    }

    /// Puts them in place. Their originals stay open: the caller closes everything above 2.
    pub(super) fn install(&self) -> io::Result<()> {
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

/// Why a container could not be created or started, or a program be executed in it.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The calling process has several threads.
    #[error("a container cannot be created from a process with several threads")]
    Threads,
    /// The document asks for what cannot be had here.
    #[error("{0}")]
    Config(#[from] crate::config::ConfigError),
    /// Its cgroup could not be made.
    #[error("set the container's cgroup up: {0}")]
    Cgroup(#[from] CgroupError),
    /// A step in the parent failed.
    #[error("{}", .0.words())]
    Step(#[from] StepError),
    /// Its first process could not be made.
    #[error("make the container's first process in new namespaces")]
    Fork(#[source] io::Error),
    /// The ids of its user namespace could not be mapped.
    #[error("map the ids of the container's user namespace: {0}")]
    Ids(#[source] io::Error),
    /// The channel to it failed.
    #[error("talk to the container's first process")]
    Channel(#[source] io::Error),
    /// It could not be written down, or not be told to whoever asked for it; the error says which.
    #[error("{0}")]
    Record(#[source] io::Error),
    /// Its first process failed, and says why.
    #[error("{0}")]
    Init(Failure),
    /// Its first process ended without a word: killed from outside, or by the kernel for lack of memory.
    #[error("the container's first process ended before the program ran ({0}; out of memory?)")]
    Died(ExitStatus),
}

impl CreateError {
    /// What kind of failure, as far as an exit status depends on it.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Init(failure) => failure.kind,
            Self::Threads
            | Self::Config(_)
            | Self::Cgroup(_)
            | Self::Step(_)
            | Self::Fork(_)
            | Self::Ids(_)
            | Self::Channel(_)
            | Self::Record(_)
            | Self::Died(_) => FailureKind::Setup,
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

/// A container of this process, or a program executed in one. Dropping it kills what runs in it, waits for its end, and
/// removes its cgroup, unless it was released.
#[derive(Debug)]
pub struct Container {
    pid: Pid,
    pidfd: OwnedFd,
    channel: Channel,
    terminal: Option<OwnedFd>,
    exit: Option<ExitStatus>,
    released: bool,
    // After the process: its directories can be removed only when they are empty.
    cgroup: Option<Cgroup>,
}

/// How a container is made that outlives the process that makes it.
pub struct Outliving<'a> {
    /// A listening `SOCK_SEQPACKET` socket, on which [`start_over`] is answered.
    pub listener: BorrowedFd<'a>,
    /// Writes the container down; after it, the container may outlive this process.
    pub record: &'a mut dyn FnMut(&mut Container) -> io::Result<()>,
}

impl std::fmt::Debug for Outliving<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outliving").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Gives the specification's state of a container for hooks, from the number of its first process.
pub type HookState<'a> = &'a dyn Fn(Pid) -> Vec<u8>;

impl Container {
    /// Makes the container up to the point where only the program itself is missing. It dies with this process.
    ///
    /// The process must have one thread; its signal mask does not matter. Nothing is left when this fails.
    ///
    /// # Errors
    /// What failed, in the parent or in any stage of the first process.
    pub fn create(config: &Config, stdio: Stdio) -> Result<Self, CreateError> {
        let hierarchies = Hierarchies::discover()?;
        let plan = config.cgroup.as_ref().map(|path| Plan::new(&hierarchies, path));
        Self::create_with(config, stdio, &hierarchies, plan.as_ref(), &|_| b"{}".to_vec(), None)
    }

    /// As [`Self::create`], with a cgroup that was planned before, a state for hooks, and a life of its own if wanted.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_with(
        config: &Config,
        stdio: Stdio,
        hierarchies: &Hierarchies,
        plan: Option<&Plan>,
        state: HookState<'_>,
        outliving: Option<Outliving<'_>>,
    ) -> Result<Self, CreateError> {
        if !sys::process::is_single_threaded().map_err(CreateError::Fork)? {
            return Err(CreateError::Threads);
        }
        let openings = Openings::new(config)?;
        let prepared = Prepared::new(config)?;
        let devices = Devices::find(&config.net_devices)?;
        let cgroup = match plan {
            Some(plan) => Some(Cgroup::create(plan, &config.device_rules, &config.resources)?),
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
        let is_staged = join::is_staged(&config, &openings);
        let (ours, theirs) = Channel::pair().map_err(CreateError::Channel)?;
        let birthplace = cgroup.as_ref().and_then(Cgroup::unified_descriptor);
        // The process in between does without: init alone is the container's.
        let entrances = cgroup.as_ref().filter(|_| !is_staged).and_then(Cgroup::entrances);
        let listener = outliving.as_ref().map(|outliving| outliving.listener);
        let shares_cgroups =
            !config.namespaces.contains(Namespaces::CGROUP) && !openings.leads_elsewhere(Namespaces::CGROUP);
        let own_cgroups = cgroup.as_ref().map(Cgroup::directories).unwrap_or_default();
        let inheritance = Inheritance {
            config: &config,
            hierarchies,
            shared_cgroups: shares_cgroups.then_some(own_cgroups),
            prepared: &prepared,
            openings: &openings,
            devices: &devices,
            stdio,
            channel: theirs,
            listener,
            cgroup: birthplace.as_ref().map(AsFd::as_fd),
            entrances: entrances.as_ref(),
            is_staged,
            has_root_parent: rustix::process::geteuid().is_root(),
        };
        let (forked, mut is_born) = bear(&openings, inheritance)?;
        let Forked::Parent { pid, pidfd } = forked else {
            // The child never comes here.
            return Err(CreateError::Fork(io::ErrorKind::Unsupported.into()));
        };
        drop((prepared, openings));
        let mut container =
            Self { pid, pidfd, channel: ours, terminal: None, exit: None, released: false, cgroup };
        if is_staged {
            is_born = container.await_birth(&config)?;
        } else if config.namespaces.contains(Namespaces::USER) {
            join::write_maps(pid, &config).map_err(CreateError::Ids)?;
            container.say(&Message::Mapped)?;
        }
        if let Some(cgroup) = &container.cgroup {
            cgroup.place(container.pid, is_born, entrances.is_some())?;
        }
        container.take_devices(&devices)?;
        container.say(&Message::Placed)?;
        container.await_ready(&config, state)?;
        if let Some(Outliving { record, .. }) = outliving {
            record(&mut container).map_err(CreateError::Record)?;
            container.say(&Message::Release)?;
            container.released = true;
            if let Some(cgroup) = &mut container.cgroup {
                cgroup.disown();
            }
        }
        Ok(container)
    }

    /// Makes a container's value of a process that was made otherwise.
    pub(super) fn of_process(pid: Pid, pidfd: OwnedFd, channel: Channel) -> Self {
        Self { pid, pidfd, channel, terminal: None, exit: None, released: false, cgroup: None }
    }

    fn say(&self, message: &Message) -> Result<(), CreateError> {
        self.say_with(message, None)
    }

    fn say_with(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> Result<(), CreateError> {
        match self.channel.send(message, descriptor) {
            // It has ended; what it said last is still to be heard.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => Ok(()),
            result => result.map_err(CreateError::Channel),
        }
    }

    /// Moves interfaces of the machine to the network namespace that the first process was born in.
    fn take_devices(&self, devices: &Devices) -> Result<(), CreateError> {
        if devices.is_empty() {
            return Ok(());
        }
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.pid.as_raw_nonzero()))
            .doing(|| "open the container's network namespace".into())?;
        Ok(devices.move_to(namespace.as_fd())?)
    }

    /// It is where it belongs.
    pub(super) fn placed(&self) -> Result<(), CreateError> {
        self.say(&Message::Placed)
    }

    /// The process in between bears the first process, and ends. True when that is in its unified cgroup already.
    pub(super) fn await_birth(&mut self, config: &Config) -> Result<bool, CreateError> {
        loop {
            let received = self.channel.receive().map_err(CreateError::Channel)?;
            match received.message {
                Some(Message::WantsIds) => {
                    join::write_maps(self.pid, config).map_err(CreateError::Ids)?;
                    self.say(&Message::Mapped)?;
                }
                Some(Message::Born { pid, in_cgroup }) => {
                    let (Some(pid), Some(pidfd)) = (Pid::from_raw(pid), received.descriptor) else {
                        return Err(CreateError::Channel(io::ErrorKind::InvalidData.into()));
                    };
                    self.wait().map_err(CreateError::Channel)?;
                    (self.pid, self.pidfd, self.exit) = (pid, pidfd, None);
                    return Ok(in_cgroup);
                }
                other => return Err(self.unexpected(other)?),
            }
        }
    }

    pub(super) fn await_ready(&mut self, config: &Config, state: HookState<'_>) -> Result<(), CreateError> {
        loop {
            let received = self.channel.receive().map_err(CreateError::Channel)?;
            match received.message {
                Some(Message::Ready) => {
                    self.terminal = received.descriptor;
                    return Ok(());
                }
                Some(Message::HooksDue) => {
                    let state = state(self.pid);
                    hooks::run_all("prestart", &config.hooks.prestart, &state)?;
                    hooks::run_all("createRuntime", &config.hooks.create_runtime, &state)?;
                    let file = hooks::memory_file(&state).map_err(CreateError::Channel)?;
                    self.say_with(&Message::HooksDone, Some(file.as_fd()))?;
                }
                other => return Err(self.unexpected(other)?),
            }
        }
    }

    /// What an answer means that is none of those waited for.
    fn unexpected(&mut self, message: Option<Message>) -> Result<CreateError, CreateError> {
        match message {
            Some(Message::Failed(failure)) => Ok(CreateError::Init(failure)),
            _ => {
                self.kill().map_err(CreateError::Channel)?;
                Ok(CreateError::Died(self.wait().map_err(CreateError::Channel)?))
            }
        }
    }

    /// Runs the program; returns when it has begun.
    ///
    /// # Errors
    /// When it cannot be executed, or the last restrictions cannot be put in force.
    pub fn start(&mut self) -> Result<(), CreateError> {
        self.start_with(b"{}").map(|_| ())
    }

    /// As [`Self::start`], with the state for hooks; the listener of its filter comes back, where it has one.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(&mut self, state: &[u8]) -> Result<Option<OwnedFd>, CreateError> {
        start_on(&self.channel, state)
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

    /// True when the master of a terminal is there to be taken.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// The master of its terminal, once.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// It is not killed when this is dropped.
    pub fn release(&mut self) {
        self.released = true;
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
        if let Some(cgroup) = &self.cgroup
            && !cgroup.directories().is_empty()
        {
            return cgroup.kill().map_err(io::Error::other);
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
            // Not in its cgroup yet, perhaps.
            self.signal(libc::SIGKILL)?;
            self.wait()?;
        }
        Ok(())
    }
}

/// Has the container at the other end of `socket` run its program; returns when it has begun. The listener of its
/// filter comes back, where it has one.
///
/// # Errors
/// When the program cannot be executed, or the last restrictions cannot be put in force.
pub fn start_over(socket: OwnedFd, state: &[u8]) -> Result<Option<OwnedFd>, CreateError> {
    start_on(&Channel::from_socket(socket), state)
}

fn start_on(channel: &Channel, state: &[u8]) -> Result<Option<OwnedFd>, CreateError> {
    let file = hooks::memory_file(state).map_err(CreateError::Channel)?;
    match channel.send(&Message::Start, Some(file.as_fd())) {
        Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
        result => result.map_err(CreateError::Channel)?,
    }
    let mut listener = None;
    loop {
        let received = channel.receive().map_err(CreateError::Channel)?;
        match received.message {
            // The channel closes at exec.
            None => return Ok(listener),
            Some(Message::Listener) => listener = received.descriptor,
            Some(Message::Failed(failure)) => return Err(CreateError::Init(failure)),
            Some(message) => {
                return Err(CreateError::Channel(io::Error::other(format!("unexpected {message:?}"))));
            }
        }
    }
}

/// Makes the first process, or the one in between. True with it when it is in its unified cgroup already.
fn bear(openings: &Openings, inheritance: Inheritance<'_>) -> Result<(Forked, bool), CreateError> {
    let config = inheritance.config;
    let cgroup = inheritance.cgroup;
    // The process in between does without: init alone is the container's.
    let birth = match inheritance.is_staged {
        true => Birth::default(),
        false => Birth { namespaces: config.namespaces.at_birth(), cgroup, as_sibling: false },
    };
    let joins_pid = openings.has(Namespaces::PID) && !inheritance.is_staged;
    // Only children enter it; this process's later children are to be where it is itself.
    let own = match joins_pid {
        true => Some(std::fs::File::open("/proc/self/ns/pid").map_err(CreateError::Fork)?),
        false => None,
    };
    if joins_pid {
        openings.enter(Namespaces::PID)?;
    }
    let forked = match sys::process::fork(birth) {
        // Not the owner of the cgroup, or a kernel that cannot: it is placed like in the others.
        Err(_) if birth.cgroup.is_some() => {
            sys::process::fork(Birth { cgroup: None, ..birth }).map(|forked| (forked, false))
        }
        result => result.map(|forked| (forked, cgroup.is_some())),
    };
    let (forked, is_born) = match forked {
        Ok((Forked::Child, _)) => init::run(inheritance),
        result => result.map_err(CreateError::Fork)?,
    };
    if let Some(own) = own {
        leave_pid_namespace(&own).map_err(CreateError::Fork)?;
    }
    Ok((forked, is_born))
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.released
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, pid = ?self.pid, "the container's first process may be left");
        }
    }
}
