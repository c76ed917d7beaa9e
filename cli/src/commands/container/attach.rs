//! `layerfs attach`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_runner::attach::Signals;
use layerfs_runner::config::TerminalSize;
use layerfs_runner::monitor::protocol::Request;
use layerfs_runner::terminal;

use super::session::{DETACH_KEYS, DetachKeys, Manner, stay};
use super::start::code_of;
use super::store::Containers;

/// Be with a running container: its input, output and errors
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Keys that leave a terminal [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, hide_default_value = true)]
    detach_keys: String,
    /// Pass no standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on
    #[arg(long, value_name = "true|false", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
          require_equals = true, action = clap::ArgAction::Set, hide_default_value = true)]
    sig_proxy: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub(crate) fn attach(args: AttachArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    let container = containers.find(&args.container)?;
    let manner = Manner {
        stdin: container.config.stdin && !args.no_stdin,
        tty: container.config.tty,
        passes_signals: args.sig_proxy && !container.config.tty,
        detach_keys: DetachKeys::parse(&args.detach_keys)?,
    };
    if container.is_paused() {
        bail!("You cannot attach to a paused container, unpause it first");
    }
    let connection = match container.connect()? {
        Some(connection) if container.is_running() => connection,
        _ => bail!("You cannot attach to a stopped container, start it first"),
    };
    crate::events::container("attach", &container.config, &[]);
    let signals = Signals::take().context("take signals over")?;
    // What is written for a pipe is never left out: who reads it reads all.
    let whole = !container.config.tty;
    connection.ask(Request::Attach { streams: manner.streams(whole) }, None).context("attach")?;
    // A program draws its screen again when the size changes.
    if manner.tty
        && let Some(size) = terminal::size_of(rustix::stdio::stdout())
    {
        connection.resize(TerminalSize { rows: size.rows.saturating_add(1), ..size }).context("attach")?;
    }
    let ending = stay(connection, manner, &signals)?;
    Ok(ExitCode::from(code_of(ending, &container, 1)?))
}
