//! `layerfs start`, and starting a container for `run`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Args;
use layerfs_runner::attach::Signals;
use layerfs_runner::monitor::connection::Connection;
use layerfs_runner::monitor::protocol::{Event, Request, Streams};
use layerfs_runner::monitor::record::Status;
use layerfs_runner::{FailureKind, monitor};

use super::each;
use super::session::{DETACH_KEYS, DetachKeys, Ending, Manner, stay};
use super::store::{Container, Containers, Locked};
use crate::exit::{self, Usage};
use crate::ui;

/// Start containers that have ended, or have never run
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Stay with it: show what it writes, pass signals on, end as it ends
    #[arg(short, long)]
    attach: bool,
    /// Also pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave a terminal [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, hide_default_value = true)]
    detach_keys: String,
    /// Pass signals on
    #[arg(long, value_name = "true|false", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          require_equals = true, action = clap::ArgAction::Set, hide_default_value = true)]
    sig_proxy: bool,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(crate) fn start(args: StartArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open_to_start(&args.containers)?;
    if args.attach || args.interactive {
        let [name] = &args.containers[..] else {
            return Err(Usage("you cannot start and attach multiple containers at once".into()).into());
        };
        let Locked::Mine(lock, container) = containers.find(name)?.lock()? else {
            anyhow::bail!("container {name} is running; use attach");
        };
        let manner = Manner {
            stdin: args.interactive && container.config.stdin,
            tty: container.config.tty,
            passes_signals: args.sig_proxy && !container.config.tty,
            detach_keys: DetachKeys::parse(&args.detach_keys)?,
        };
        if container.is_running() {
            anyhow::bail!("container {name} is running; use attach");
        }
        let ending = attached(&container, lock, manner)?;
        return Ok(ExitCode::from(code_of(ending, &container, 1)?));
    }
    each(&args.containers, |name| {
        let found = containers.find(name)?;
        // It holds its lock while it runs.
        if found.record.is_watched() && found.is_running() {
            return Ok(name.clone());
        }
        // Somebody else may have started it meanwhile.
        if let Locked::Mine(lock, container) = found.lock()? {
            detached(&container, lock)?;
        }
        Ok(name.clone())
    })
}

/// Makes the monitor. The lock on the container becomes its.
fn begin(container: &Container, lock: &OwnedFd) -> anyhow::Result<Connection> {
    if container.config.is_foreground {
        anyhow::bail!(
            "container {} was kept by `run --rootfs` and cannot be started again",
            container.short()
        );
    }
    super::layer::apply::refuse_unfinished(container)?;
    if matches!(container.record.status, Status::Removing | Status::Dead) {
        anyhow::bail!("container {} is marked for removal and cannot be started", container.config.name);
    }
    let arguments = [OsStr::new("monitor"), container.directory.as_os_str()];
    monitor::spawn(&arguments, lock.as_fd(), || super::body::begin(container))
        .context("start the container's monitor")
}

/// Starts it and returns when its program runs.
pub(super) fn detached(container: &Container, lock: OwnedFd) -> anyhow::Result<()> {
    let mut connection = begin(container, &lock)?;
    drop(lock);
    ask_to_start(container, &connection, None)?;
    match connection.next_event().context("hear from the monitor")? {
        Some(Event::Started { .. }) => Ok(()),
        Some(Event::Failed { kind, words }) => Err(NotStarted { kind, words }.into()),
        Some(Event::Refused { words }) => Err(anyhow!(words)),
        other => Err(lost(container, other.as_ref())),
    }
}

fn lost(container: &Container, event: Option<&Event>) -> anyhow::Error {
    anyhow!(
        "the monitor of container {} ended before the container was started{}; see {}",
        container.config.name,
        event.map_or_else(String::new, |event| format!(" ({event:?})")),
        container.directory.join("monitor.log").display()
    )
}

/// Starts it and stays with it.
pub(super) fn attached(container: &Container, lock: OwnedFd, manner: Manner) -> anyhow::Result<Ending> {
    let connection = begin(container, &lock)?;
    drop(lock);
    let signals = Signals::take().context("take signals over")?;
    if container.config.passes_streams() {
        // What the command has is the program's: nothing is read or written here.
        let streams = Streams { whole: true, ..Streams::default() };
        ask_to_start(container, &connection, Some(streams))?;
        return stay(connection, Manner { stdin: false, ..manner }, &signals);
    }
    ask_to_start(container, &connection, Some(manner.streams(true)))?;
    stay(connection, manner, &signals)
}

fn ask_to_start(
    container: &Container,
    connection: &Connection,
    streams: Option<Streams>,
) -> anyhow::Result<()> {
    let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let passed: &[BorrowedFd<'_>] = if container.config.passes_streams() { &own } else { &[] };
    connection.ask_with(Request::Start { streams }, passed).context("start the container")
}

/// The exit code that an ending means; `setup` is that of a container that could not be set up.
pub(super) fn code_of(ending: Ending, container: &Container, setup: u8) -> anyhow::Result<u8> {
    match ending {
        Ending::Exited(code) => Ok(code),
        Ending::Detached => Ok(0),
        Ending::Unread => Ok(exit::UNREAD),
        Ending::Failed { kind, words } => {
            let error = NotStarted { kind, words };
            let code = error.code(setup);
            ui::error(&error.into());
            Ok(code)
        }
        Ending::Lost => {
            // It may have ended between two packets; its state says how.
            let record = layerfs_runner::monitor::record::Record::load(&container.directory);
            match record {
                Ok(record) if record.status == layerfs_runner::monitor::record::Status::Exited => {
                    Ok(record.exit_code)
                }
                _ => Err(lost(container, None)),
            }
        }
    }
}

/// The program could not be run.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(super) struct NotStarted {
    pub(super) kind: FailureKind,
    pub(super) words: String,
}

impl NotStarted {
    pub(super) fn code(&self, setup: u8) -> u8 {
        match self.kind {
            FailureKind::Setup => setup,
            FailureKind::NotFound => 127,
            FailureKind::NotExecutable => 126,
        }
    }
}
