//! `layerfs system start` and `system stop`: containers and the machine's beginning and end.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_runner::monitor::record::Status;
use layerfs_runner::monitor::restart::RestartPolicy;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::start::detached;
use super::store::{Container, Containers, Locked};
use crate::commands::run::{ROOT_VARIABLE, store_root};
use crate::ui;

/// Start the containers whose restart policy says so, after the machine has started
///
/// Those with `--restart always`, with `unless-stopped` unless somebody had stopped them, and with `on-failure` where they
/// had failed, which is so when the machine went down while they ran. Containers that have never been started are not, and
/// those that run are left alone.
#[derive(Debug, Args)]
#[command(after_long_help = UNIT_HELP)]
pub(crate) struct SystemStartArgs {}

/// Stop all containers that run, before the machine stops
///
/// In contrast to `layerfs stop` nobody has stopped them: `system start` will start those with a restart policy again.
#[derive(Debug, Args)]
pub(crate) struct SystemStopArgs {}

/// Print the systemd unit that starts containers with the machine
#[derive(Debug, Args)]
#[command(after_long_help = UNIT_HELP)]
pub(crate) struct SystemUnitArgs {}

const UNIT_HELP: &str = "\
With systemd
    layerfs system unit > /etc/systemd/system/layerfs.service
    systemctl enable --now layerfs.service
An ordinary user gets a unit of the user's own systemd (systemctl --user), which starts with the machine after
`loginctl enable-linger`. A store that LAYERFS_ROOT names is named in the unit.
Without, have the machine call `layerfs system start` at its beginning and `layerfs system stop` at its end.";

const UNIT: &str = include_str!("../../../../dist/layerfs.service");

/// Where the unit that is shipped expects the program.
const UNIT_PROGRAM: &str = "/usr/bin/layerfs";

pub(crate) fn unit(_args: &SystemUnitArgs) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("find this program")?;
    let mut unit = UNIT.replace(UNIT_PROGRAM, &program.display().to_string());
    if std::env::var_os(ROOT_VARIABLE).is_some_and(|root| !root.is_empty()) {
        // A percent sign is systemd's own.
        let root = store_root()?.display().to_string().replace('%', "%%");
        unit = unit.replace("[Service]\n", &format!("[Service]\nEnvironment=\"{ROOT_VARIABLE}={root}\"\n"));
    }
    if !rustix::process::geteuid().is_root() {
        // Of a user's own systemd, which knows neither the machine's targets nor its limits.
        let machines = ["Wants=", "After=", "LimitNOFILE="];
        let is_ours = |line: &&str| !machines.iter().any(|setting| line.starts_with(setting));
        unit = unit.lines().filter(is_ours).map(|line| format!("{line}\n")).collect();
        unit = unit
            .replace("multi-user.target", "default.target")
            .replace("/etc/systemd/system/", "~/.config/systemd/user/")
            .replace("systemctl enable", "systemctl --user enable");
    }
    ui::print(unit)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn start(_args: &SystemStartArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    let mut all = containers.all()?;
    all.retain(is_wanted);
    // The oldest first: what others depend on is made first.
    all.reverse();
    let mut failed = false;
    for container in all {
        let started = match container.lock() {
            Ok(Locked::Mine(lock, now)) if is_wanted(&now) => detached(&now, lock).map(|()| true),
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        };
        match started {
            Ok(true) => drop(ui::print(format!("{}\n", container.config.name))?),
            Ok(false) => {}
            Err(error) => {
                failed = true;
                ui::error(&error.context(format!("start container {}", container.config.name)));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Docker's rule (`RestartManager.ShouldRestart`, and that it has been started before).
fn is_wanted(container: &Container) -> bool {
    let record = &container.record;
    // The monitor of one that has just been stopped may be at its end: the lock is waited for.
    let is_over = record.status == Status::Exited && !record.started_at.is_empty();
    is_over
        && !container.config.is_foreground
        && match container.config.restart {
            RestartPolicy::UnlessStopped => !record.stopped_by_user,
            policy => policy.applies(record.exit_code, record.restart_count),
        }
}

pub(crate) fn stop(_args: &SystemStopArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    let mut asked = Vec::new();
    for container in containers.all()? {
        let runs = matches!(container.record.status, Status::Running | Status::Restarting);
        if container.config.is_foreground || !runs || !container.record.is_watched() {
            continue;
        }
        let monitor = container.record.monitor.and_then(|monitor| Pid::from_raw(monitor.pid));
        let Some(monitor) = monitor else { continue };
        match rustix::process::pidfd_open(monitor, PidfdFlags::empty()) {
            // It may have ended, and another process have its number, before it was opened.
            Ok(pidfd) if container.record.is_watched() => {
                match rustix::process::pidfd_send_signal(&pidfd, Signal::TERM) {
                    Ok(()) => asked.push((container.config.name, pidfd)),
                    Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => bail!("ask the monitor of container {}: {error}", container.config.name),
                }
            }
            Ok(_) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("watch a monitor"),
        }
    }
    for (name, pidfd) in asked {
        let mut wanted = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, None)).context("wait for a monitor")?;
        ui::print(format!("{name}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use layerfs_runner::monitor::record::Record;

    use super::super::config::ContainerConfig;
    use super::*;

    #[test]
    fn who_is_started_with_the_machine() {
        let container = |restart, code, by_user, started: &str| {
            let mut record = Record::new("x");
            record.status = Status::Exited;
            (record.exit_code, record.stopped_by_user, record.started_at) = (code, by_user, started.into());
            Container {
                directory: "/nowhere".into(),
                config: ContainerConfig { restart, ..ContainerConfig::default() },
                record,
            }
        };
        let (always, unless) = (RestartPolicy::Always, RestartPolicy::UnlessStopped);
        for (restart, code, by_user, started, wanted) in [
            (RestartPolicy::No, 255, false, "then", false),
            (always, 0, true, "then", true),
            (always, 255, false, "", false),
            (unless, 255, false, "then", true),
            (unless, 0, true, "then", false),
            (RestartPolicy::OnFailure(0), 255, false, "then", true),
            (RestartPolicy::OnFailure(0), 0, false, "then", false),
        ] {
            assert_eq!(
                is_wanted(&container(restart, code, by_user, started)),
                wanted,
                "{restart:?} {code} {by_user}"
            );
        }
    }
}
