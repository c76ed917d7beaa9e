//! `layerfs exec`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_runner::attach::Signals;
use layerfs_runner::monitor::protocol::{Event, Request};
use rustix::fs::MemfdFlags;

use super::body::ExecDescription;
use super::create_values::environment;
use super::options::CreateOptions;
use layerfs_runner::monitor::record::Status;

use super::session::{DETACH_KEYS, DetachKeys, Ending, Manner, stay};
use super::start::NotStarted;
use super::store::Containers;
use crate::exit::{self, Hinted, Usage};
use crate::ui;

/// Exit code when the command could not be executed, as docker has it.
const NOT_EXECUTED: u8 = 126;

/// Execute a command in a running container
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Do not stay with it
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave a terminal [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, hide_default_value = true)]
    detach_keys: String,
    /// Set an environment variable; without =VALUE, to what it is here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Read environment variables from a file, a line each
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give it all capabilities
    #[arg(long)]
    privileged: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// User and group, by name in the container or by number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, num_args = 1.., trailing_var_arg = true)]
    command: Vec<String>,
}

pub(crate) fn exec(args: ExecArgs) -> anyhow::Result<ExitCode> {
    let detach_keys = DetachKeys::parse(&args.detach_keys)?;
    if args.interactive && args.tty && !args.detach && !rustix::termios::isatty(rustix::stdio::stdin()) {
        return Err(Hinted {
            message: "the input device is not a TTY".into(),
            hint: "leave out -t to feed the command from a file or pipe".into(),
        }
        .into());
    }
    if args.workdir.as_deref().is_some_and(|path| !path.starts_with('/')) {
        return Err(Usage("the working directory must be an absolute path".into()).into());
    }
    let variables = CreateOptions { env: args.env, env_file: args.env_file, ..CreateOptions::default() };
    let description = ExecDescription {
        args: args.command,
        env: environment(Vec::new(), &variables)?,
        workdir: args.workdir,
        user: args.user,
        tty: args.tty,
        privileged: args.privileged,
    };
    let containers = Containers::open()?;
    let container = containers.find(&args.container)?;
    if container.is_paused() {
        bail!("Container {} is paused, unpause the container before exec", container.config.name);
    }
    let mut connection = match container.connect()? {
        Some(connection) if container.is_running() => connection,
        _ if container.record.status == Status::Restarting => {
            bail!("Container {} is restarting, wait until the container is running", container.id())
        }
        _ => bail!("container {} is not running", container.id()),
    };
    let memory =
        rustix::fs::memfd_create(c"layerfs-exec", MemfdFlags::CLOEXEC).context("describe the command")?;
    let mut file = File::from(memory);
    file.write_all(&serde_json::to_vec(&description)?).context("describe the command")?;
    let manner = Manner {
        stdin: args.interactive,
        tty: args.tty,
        // As with docker, an interrupt ends the client.
        passes_signals: false,
        detach_keys,
    };
    let streams = (!args.detach).then(|| manner.streams(true));
    let request = Request::Exec { streams, terminal: args.tty };
    if args.detach {
        connection.ask(request, Some(file.as_fd())).context("ask the monitor")?;
        return match connection.next_event().context("hear from the monitor")? {
            Some(Event::Started { .. }) => Ok(ExitCode::SUCCESS),
            Some(Event::Failed { kind, words }) => failed(&NotStarted { kind, words }),
            Some(Event::Refused { words }) => bail!("{words}"),
            _ => bail!("the container ended"),
        };
    }
    let signals = Signals::take().context("take signals over")?;
    connection.ask(request, Some(file.as_fd())).context("ask the monitor")?;
    match stay(connection, manner, &signals)? {
        Ending::Exited(code) => Ok(ExitCode::from(code)),
        Ending::Detached => Ok(ExitCode::SUCCESS),
        Ending::Unread => Ok(ExitCode::from(exit::UNREAD)),
        Ending::Failed { kind, words } => failed(&NotStarted { kind, words }),
        // The container has ended, and its processes with it.
        Ending::Lost => Ok(ExitCode::from(137)),
    }
}

fn failed(error: &NotStarted) -> anyhow::Result<ExitCode> {
    ui::note(error);
    Ok(ExitCode::from(error.code(NOT_EXECUTED)))
}
