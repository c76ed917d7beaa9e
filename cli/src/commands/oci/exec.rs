//! `exec`: another program in a container that runs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::Args;
use layerfs_runner::attach::{Signals, Streams, attach};
use layerfs_runner::capabilities;
use layerfs_runner::config::ID_MAX;
use layerfs_runner::runtime::{ExecRequest, ExecUser};

use super::{Context, protect};
use crate::exit::Usage;

/// Execute a program in a running container
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// A unix socket that is sent the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set a variable (repeatable)
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// User and group by number
    #[arg(short, long, value_name = "UID[:GID]", value_parser = parse_user)]
    user: Option<ExecUser>,
    /// A supplementary group by number (repeatable)
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// The description of the process in JSON, instead of a command line
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Return when the program has begun
    #[arg(short, long)]
    detach: bool,
    /// Write the number of the process to FILE
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Exec gives no privileges
    #[arg(long)]
    no_new_privs: bool,
    /// A capability besides the container's own (repeatable)
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// Hand on N descriptors from number 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// A cgroup below the container's own
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Also in a paused container, where the program waits
    #[arg(long)]
    ignore_paused: bool,
    /// Taken for compatibility
    #[arg(long, hide = true)]
    no_subreaper: bool,
    #[arg(value_name = "ID")]
    id: String,
    /// The program and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn parse_user(text: &str) -> Result<ExecUser, String> {
    let number = |text: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|id| *id <= ID_MAX)
            .ok_or_else(|| format!("{text:?} is not the number of a user or group (0 to {ID_MAX})"))
    };
    Ok(match text.split_once(':') {
        Some((uid, gid)) => ExecUser { uid: number(uid)?, gid: Some(number(gid)?) },
        None => ExecUser { uid: number(text)?, gid: None },
    })
}

pub(super) fn exec(args: ExecArgs, context: &Context) -> anyhow::Result<ExitCode> {
    protect()?;
    if args.process.is_none() && args.command.is_empty() {
        return Err(Usage("give a command, or its description with --process".into()).into());
    }
    if args.process.is_some() && !args.command.is_empty() {
        return Err(Usage("give a command or its description with --process, not both".into()).into());
    }
    let capability = |name: &String| {
        capabilities::by_name(name)
            .ok_or_else(|| anyhow!(Usage(format!("--cap {name:?}: there is no such capability"))))
    };
    let request = ExecRequest {
        id: args.id,
        process: args.process,
        args: args.command,
        cwd: args.cwd,
        env: args.env,
        user: args.user,
        groups: args.additional_gids,
        capabilities: args.cap.iter().map(capability).collect::<Result<_, _>>()?,
        terminal: args.tty,
        no_new_privileges: args.no_new_privs,
        apparmor: args.apparmor,
        label: args.process_label,
        ignore_paused: args.ignore_paused,
        preserve_fds: args.preserve_fds,
        keeps_terminal: !args.detach && args.console_socket.is_none(),
        console_socket: args.console_socket,
        pid_file: args.pid_file,
        cgroup: args.cgroup,
        ..ExecRequest::default()
    };
    let signals = match args.detach {
        true => None,
        false => Some(Signals::take().context("take signals over")?),
    };
    let mut executed = context.runtime.exec(request)?;
    let Some(signals) = signals else {
        executed.release();
        return Ok(ExitCode::SUCCESS);
    };
    let streams = match executed.has_terminal() {
        true => Streams::terminal(true),
        false => Streams::inherited(),
    };
    let outcome = attach(&mut executed, streams, &signals, &[]).context("stay with the program")?;
    Ok(ExitCode::from(outcome.status.code()))
}
