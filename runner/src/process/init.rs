//! The container's first process, from its birth to the program.
//!
//! Runs on a copy of the parent's memory, and must never return into the parent's code. Each step's error
//! goes to the parent whole. Nothing of the machine stays open or mounted when the program begins.

use std::convert::Infallible;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::process::Signal;

use super::console::Terminal;
use super::identity::{self, Labels, confine, find_program};
use super::join::{self, Openings};
use super::parent::Stdio;
use super::{environment, home, pid1, program};
use crate::cgroup::{Entrances, Hierarchies};
use crate::channel::{Channel, Failure, FailureKind, Message, Received, Stage};
use crate::config::Config;
use crate::namespaces::Namespaces;
use crate::network::devices::Devices;
use crate::rootfs::{self, Prepared, Surroundings};
use crate::step::{Doing, StepError};
use crate::{hooks, sys};

/// Exit status of an init that failed; the parent knows why from its message.
const FAILED: i32 = 125;

/// What init gets from the parent.
pub(super) struct Inheritance<'a> {
    pub(super) config: &'a Config,
    pub(super) hierarchies: &'a Hierarchies,
    /// Directories of the container's cgroup, where it has no cgroup namespace of its own.
    pub(super) shared_cgroups: Option<&'a [PathBuf]>,
    pub(super) prepared: &'a Prepared,
    pub(super) openings: &'a Openings,
    pub(super) devices: &'a Devices,
    pub(super) stdio: Stdio,
    pub(super) channel: Channel,
    /// A socket on which the order to start comes, when the parent does not stay for it.
    pub(super) listener: Option<BorrowedFd<'a>>,
    /// A directory of the unified hierarchy to be born in; used by the process in between only.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    /// Where it moves itself, without a process in between.
    pub(super) entrances: Option<&'a Entrances>,
    pub(super) is_staged: bool,
    /// The parent is root where it is.
    pub(super) has_root_parent: bool,
}

/// Everything from here on happens in the child.
pub(super) fn run(mut inheritance: Inheritance<'_>) -> ! {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut channel = None;
        let Err(failure) = become_program(&mut inheritance, &mut channel);
        // Without a parent there is nobody to tell.
        channel.as_ref().unwrap_or(&inheritance.channel).send(&Message::Failed(failure), None).ok();
    }));
    drop(outcome);
    sys::process::exit_now(FAILED)
}

pub(super) trait At<T> {
    fn at(self, stage: Stage) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, StepError> {
    fn at(self, stage: Stage) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            stage,
            kind: FailureKind::Setup,
            words: error.words(),
            errno: error.errno(),
        })
    }
}

/// `start_channel` is where the order to start came from, once it did: failures are told there.
fn become_program(
    inheritance: &mut Inheritance<'_>,
    start_channel: &mut Option<Channel>,
) -> Result<Infallible, Failure> {
    let config = inheritance.config;
    if let Some(entrances) = inheritance.entrances {
        entrances.enter().at(Stage::Cgroup)?;
    }
    begin(inheritance).at(Stage::Namespaces)?;
    let channel = &inheritance.channel;
    let openings = inheritance.openings;
    if inheritance.is_staged {
        join::bear(config, openings, channel, inheritance.cgroup).at(Stage::Namespaces)?;
        die_with(inheritance.listener.is_some()).at(Stage::Namespaces)?;
    } else {
        openings
            .enter(Namespaces::all().difference(Namespaces::USER | Namespaces::PID))
            .at(Stage::Namespaces)?;
        if config.namespaces.contains(Namespaces::USER) {
            expect(channel, &Message::Mapped).at(Stage::Namespaces)?;
            join::become_root(config).at(Stage::Namespaces)?;
        }
    }
    rustix::process::setsid().doing(|| "begin a session".into()).at(Stage::Namespaces)?;

    // Modes of what is made here are meant as they are.
    rustix::process::umask(Mode::empty());
    let root = rootfs::take_root(config, inheritance.prepared).at(Stage::Root)?;
    let mut is_placed = false;
    let mut place = || {
        if !std::mem::replace(&mut is_placed, true) {
            expect(channel, &Message::Placed)?;
            if config.namespaces.contains(Namespaces::CGROUP) {
                sys::process::unshare(libc::CLONE_NEWCGROUP).doing(|| "make a cgroup namespace".into())?;
            }
        }
        Ok(())
    };
    let surroundings = Surroundings {
        hierarchies: inheritance.hierarchies,
        shared_cgroups: inheritance.shared_cgroups,
        prepared: inheritance.prepared,
        has_own_pids: config.namespaces.contains(Namespaces::PID)
            || config.joined.iter().any(|joined| joined.namespace == Namespaces::PID),
        label: config.mount_label.as_deref(),
    };
    rootfs::mount_all(&root, &config.mounts, &surroundings, &mut place).at(Stage::Mounts)?;
    place().at(Stage::Cgroup)?;
    rootfs::make_devices(&root, &config.devices).at(Stage::Devices)?;
    let terminal = match config.process.terminal {
        Some(size) => {
            let terminal = Terminal::open(&root, size, &config.process).at(Stage::Terminal)?;
            rootfs::bind_console(&root, &terminal.slave).at(Stage::Terminal)?;
            Some(terminal)
        }
        None => None,
    };
    if config.hooks.at_creation() {
        run_creation_hooks(config, channel).at(Stage::Hooks)?;
    }
    rootfs::enter_root(&root, config).at(Stage::Pivot)?;
    // Without a pivot, what was opened as the root is below what it is now.
    let root = open_root().at(Stage::Pivot)?;
    environment::prepare(&root, config, inheritance.devices).at(Stage::Environment)?;
    let labels = Labels::open(&root, &config.process).at(Stage::Privileges)?;
    drop(root);

    let master = match terminal {
        Some(terminal) => Some(terminal.make_controlling().at(Stage::Terminal)?),
        None => None,
    };
    identity::set_memory_policy(config.memory_policy.as_ref()).at(Stage::Privileges)?;
    let env = home::environment(&config.process);
    identity::become_user(&config.process).at(Stage::Privileges)?;
    // Changing the user has cleared it.
    die_with(inheritance.listener.is_some()).at(Stage::Privileges)?;
    let path = find_program(&config.process)?;
    channel
        .send(&Message::Ready, master.as_ref().map(AsFd::as_fd))
        .doing(|| "report to the parent".into())
        .at(Stage::Exec)?;
    // A master left open here would keep the terminal from ever hanging up.
    drop(master);
    let state = match inheritance.listener {
        None => expect_start(channel).at(Stage::Exec)?,
        Some(listener) => {
            expect(channel, &Message::Release).at(Stage::Exec)?;
            let (connected, state) = wait_for_start(listener).at(Stage::Exec)?;
            *start_channel = Some(connected);
            state
        }
    };
    let channel = start_channel.as_ref().unwrap_or(channel);
    if !config.hooks.start_container.is_empty() {
        let state = hooks::seen_from_inside(&state);
        hooks::run_all("startContainer", &config.hooks.start_container, &state).at(Stage::Hooks)?;
    }

    sys::process::set_close_on_exec_from(3 + config.choice.preserve_fds)
        .doing(|| "close descriptors".into())
        .at(Stage::Exec)?;
    if config.choice.init {
        // Returns in the program's process, as a child of process 1.
        pid1::fork_program(&config.process).at(Stage::Exec)?;
    }
    confine(&config.process, config.seccomp.as_ref(), labels, channel).at(Stage::Privileges)?;
    sys::signal::ignore(libc::SIGHUP, false);
    let error = sys::process::exec(&path, &config.process.args, &env);
    let name = path.to_string_lossy();
    Err(Failure {
        stage: Stage::Exec,
        kind: program::kind_of(&error),
        words: format!("program {name:?}: {error}"),
        errno: error.raw_os_error(),
    })
}

/// Gives up what came from the parent: its signals, its descriptors, its keys.
fn begin(inheritance: &mut Inheritance<'_>) -> Result<(), StepError> {
    // For people who look at processes; without it all works.
    rustix::thread::set_name(c"layerfs:init").ok();
    die_with(inheritance.listener.is_some())?;
    let choice = &inheritance.config.choice;
    let mut keep = inheritance.prepared.descriptors();
    keep.extend(inheritance.openings.descriptors());
    keep.push(inheritance.channel.as_fd());
    keep.extend(inheritance.listener);
    keep.extend(inheritance.cgroup);
    leave_parent(&inheritance.stdio, choice.preserve_fds, &keep)?;
    // The files by which a parent without privileges maps the ids would not be its own any more. Until it has, nobody else
    // is in the namespace; `become_root` comes after it.
    if inheritance.has_root_parent || !inheritance.config.namespaces.contains(Namespaces::USER) {
        identity::forbid_looking()?;
    }
    if !choice.no_new_keyring {
        // Kernels without keys have none to share; where the quota of keys is used up, the calls that would use
        // the shared ones are refused by the default filter.
        sys::process::new_session_keyring().ok();
    }
    Ok(())
}

/// Signals, standard streams, descriptors of the runtime.
pub(super) fn leave_parent(
    stdio: &Stdio,
    preserve_fds: u32,
    keep: &[BorrowedFd<'_>],
) -> Result<(), StepError> {
    sys::signal::reset_actions();
    sys::signal::unblock_all().doing(|| "unblock signals".into())?;
    stdio.install().doing(|| "set the standard streams".into())?;
    sys::process::close_from_except(3 + preserve_fds, keep).doing(|| "close descriptors".into())?;
    for number in 3..3 + preserve_fds {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        sys::process::keep_over_exec(number).doing(|| format!("hand on descriptor {number}"))?;
    }
    Ok(())
}

/// A killed runtime must not leave behind a container that is its own. One that outlives its creator sees the creator's
/// end on the channel.
fn die_with(outlives: bool) -> Result<(), StepError> {
    if outlives {
        return Ok(());
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .doing(|| "ask to be killed with the parent".into())
}

pub(super) fn open_root() -> Result<OwnedFd, StepError> {
    use rustix::fs::OFlags;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).doing(|| "open the root".into())
}

/// Waits for one message; the parent's end is an order to stop.
pub(super) fn expect(channel: &Channel, wanted: &Message) -> Result<(), StepError> {
    hear(channel, wanted).map(|_| ())
}

fn hear(channel: &Channel, wanted: &Message) -> Result<Received, StepError> {
    let words = || "hear from the parent".to_owned();
    match channel.receive().doing(words)? {
        received @ Received { message: Some(_), .. } if received.message.as_ref() == Some(wanted) => {
            Ok(received)
        }
        Received { message: None, .. } => Err(StepError::refused(words(), "it is gone")),
        Received { message: Some(message), .. } => {
            Err(StepError::refused(words(), format!("{message:?} instead of {wanted:?}")))
        }
    }
}

/// The order to start, and the state for hooks.
pub(super) fn expect_start(channel: &Channel) -> Result<Vec<u8>, StepError> {
    state_of(hear(channel, &Message::Start)?)
}

fn state_of(received: Received) -> Result<Vec<u8>, StepError> {
    let mut state = Vec::new();
    if let Some(descriptor) = received.descriptor {
        std::fs::File::from(descriptor).read_to_end(&mut state).doing(|| "read the state".into())?;
    }
    Ok(state)
}

/// Waits for somebody who says start. Others, who only want to know whether the program runs, hang up.
fn wait_for_start(listener: BorrowedFd<'_>) -> Result<(Channel, Vec<u8>), StepError> {
    let words = || "wait for the order to start".to_owned();
    loop {
        let socket = rustix::io::retry_on_intr(|| {
            rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC)
        });
        let channel = Channel::from_socket(socket.doing(words)?);
        if let Ok(received) = channel.receive()
            && received.message == Some(Message::Start)
        {
            return Ok((channel, state_of(received)?));
        }
    }
}

fn run_creation_hooks(config: &Config, channel: &Channel) -> Result<(), StepError> {
    channel.send(&Message::HooksDue, None).doing(|| "report to the parent".into())?;
    let state = state_of(hear(channel, &Message::HooksDone)?)?;
    hooks::run_all("createContainer", &config.hooks.create_container, &hooks::seen_from_inside(&state))
}
