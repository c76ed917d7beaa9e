//! `layerfs stop`, `kill` and `restart`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_runner::monitor::protocol::{Event, Request};
use layerfs_runner::monitor::record::Status;
use layerfs_runner::runtime::parse_signal;

use super::store::{Container, Containers, Locked};
use super::{each, start};
use crate::events;
use crate::exit::Usage;

/// Stop containers: ask, wait, kill
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Signal to ask with, if not the container's own
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds to wait before killing; -1 for ever [default: 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Send containers a signal
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Stop containers and start them again
#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// Signal to ask with, if not the container's own
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds to wait before killing; -1 for ever [default: 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

fn signal_of(text: &str) -> anyhow::Result<i32> {
    parse_signal(text).map_err(|_| Usage(format!("Invalid signal: {text}")).into())
}

pub(crate) fn stop(args: StopArgs) -> anyhow::Result<ExitCode> {
    let signal = args.signal.as_deref().map(signal_of).transpose()?;
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        if end(&container, signal, args.time, false)? {
            events::container("stop", &container.config, &[]);
        }
        Ok(name.clone())
    })
}

pub(crate) fn restart(args: RestartArgs) -> anyhow::Result<ExitCode> {
    let signal = args.signal.as_deref().map(signal_of).transpose()?;
    let containers = Containers::open_to_start(&args.containers)?;
    each(&args.containers, |name| {
        let mut container = containers.find(name)?;
        loop {
            end(&container, signal, args.time, false)?;
            match container.lock()? {
                Locked::Mine(lock, now) => {
                    start::detached(&now, lock)?;
                    events::container("restart", &now.config, &[]);
                    return Ok(name.clone());
                }
                // Somebody else has started it meanwhile.
                Locked::Runs(now) => container = *now,
            }
        }
    })
}

/// Ends a container and waits for it; one that does not run is at its end already. With `remove` its monitor removes it.
/// True when it had a monitor that has done so.
pub(super) fn end(
    container: &Container,
    signal: Option<i32>,
    timeout: Option<i64>,
    remove: bool,
) -> anyhow::Result<bool> {
    let Some(mut connection) = container.connect()? else { return Ok(false) };
    let request = Request::Stop { signal, timeout, remove };
    match connection.ask(request, None) {
        // It has ended meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ok(false),
        result => result.context("ask the monitor")?,
    }
    match connection.next_event().context("hear from the monitor")? {
        Some(Event::Refused { words }) => bail!("{words}"),
        Some(_) => Ok(true),
        None => Ok(false),
    }
}

pub(crate) fn kill(args: KillArgs) -> anyhow::Result<ExitCode> {
    let signal = signal_of(&args.signal)?;
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        let not_running =
            || format!("cannot kill container: {name}: container {} is not running", container.id());
        if container.record.status == Status::Restarting {
            // There is no process, and none is to come.
            end(&container, None, Some(0), false)?;
            events::container("kill", &container.config, &[("signal", &signal.to_string())]);
            return Ok(name.clone());
        }
        let mut connection = match container.connect()? {
            Some(connection) if container.is_running() => connection,
            _ => bail!(not_running()),
        };
        // Docker returns when a killed container has ended; a watcher tells.
        let watcher = match signal == libc::SIGKILL {
            true => container.connect()?,
            false => None,
        };
        if let Some(watcher) = &watcher {
            watcher.ask(Request::Wait { each: true }, None).ok();
        }
        if connection.ask(Request::Signal { signal }, None).is_err() {
            bail!(not_running());
        }
        match connection.next_event().context("hear from the monitor")? {
            Some(Event::Refused { words }) => bail!("cannot kill container: {name}: {words}"),
            Some(_) => {}
            None => bail!(not_running()),
        }
        events::container("kill", &container.config, &[("signal", &signal.to_string())]);
        if let Some(mut watcher) = watcher {
            watcher.next_event().context("wait for the end")?;
        }
        Ok(name.clone())
    })
}
