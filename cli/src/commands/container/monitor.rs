//! `layerfs monitor`: what a container's monitor is started as. For the program's own use.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_runner::monitor::log::Rotation;
use layerfs_runner::monitor::{Settings, serve, take_begun, take_inherited};
use rustix::process::Pid;

use super::body::Own;
use super::config::ContainerConfig;
use super::create_values::bytes;
use super::store::{self, LOG};
use crate::logging::LogOptions;
use crate::mount_process::Pending;

/// Seconds until a container that was asked to stop is killed, if it says nothing else.
const STOP_TIMEOUT: i64 = 10;

/// Be the monitor of a container (started by other commands)
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct MonitorArgs {
    directory: PathBuf,
    /// Number of the descriptor that leads to the command.
    connection: i32,
    /// Number of the descriptor that holds the container's lock.
    lock: i32,
    /// Number of the descriptor on which a mount process reports that was begun before.
    report: Option<i32>,
    /// The number of that process.
    mount: Option<i32>,
}

pub(crate) fn monitor(args: MonitorArgs) -> anyhow::Result<ExitCode> {
    let inherited = take_inherited(args.connection, args.lock)?;
    let begun = match (args.report, args.mount.and_then(Pid::from_raw)) {
        (Some(report), Some(pid)) => Some(Pending::of(pid, take_begun(report)?)),
        _ => None,
    };
    let mut log = LogOptions::from_env();
    log.file = Some(args.directory.join("monitor.log"));
    log.start()?;
    let result = be(args.directory, log, inherited, begun);
    if let Err(error) = &result {
        tracing::error!("{error:#}");
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn be(
    directory: PathBuf,
    log: LogOptions,
    inherited: layerfs_runner::monitor::Inherited,
    begun: Option<Pending>,
) -> anyhow::Result<()> {
    // `ROOT/containers/ID`. Who is root here may be an ordinary user of the machine.
    let root = directory.parent().and_then(Path::parent).context("find the store of the container")?;
    crate::commands::run::set_root(root);
    let container = store::read_for_monitor(&directory)?;
    let settings = settings_of(&container.config, &container)?;
    serve(settings, Own { container, log, begun }, inherited).context("watch the container")
}

fn settings_of(config: &ContainerConfig, container: &store::Container) -> anyhow::Result<Settings> {
    let log = match config.log_driver.as_str() {
        "none" | "passthrough" => None,
        _ => {
            let option = |name: &str| config.log_options.get(name).map(String::as_str);
            let max_size = match option("max-size") {
                None | Some("-1") => None,
                Some(text) => Some(bytes(text)?.unsigned_abs()),
            };
            let max_files = option("max-file").and_then(|text| text.parse().ok()).unwrap_or(1);
            Some((container.directory.join(LOG), Rotation { max_size, max_files }))
        }
    };
    Ok(Settings {
        directory: container.directory.clone(),
        record: container.record.clone(),
        log,
        restart: config.restart,
        terminal: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        stop_signal: stop_signal(config),
        stop_timeout: config.stop_timeout.unwrap_or(STOP_TIMEOUT),
        remove: config.remove,
        health: config.health.as_ref().map(super::config::HealthConfig::schedule),
    })
}

/// The signal that asks it to stop.
pub(super) fn stop_signal(config: &ContainerConfig) -> i32 {
    layerfs_runner::runtime::parse_signal(&config.stop_signal).unwrap_or(libc::SIGTERM)
}
