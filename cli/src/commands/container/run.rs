//! `layerfs run` through a monitor: made, started, and stayed with unless `-d`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use super::options::CreateOptions;
use super::session::{DetachKeys, Manner};
use super::start::{NotStarted, attached, code_of, detached};
use super::store::Containers;
use super::{create, remove};
use crate::exit::{Hinted, RUN, Usage};
use crate::ui;

/// What `run` has besides the options of `create`.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) options: CreateOptions,
    pub(crate) rootfs: Option<PathBuf>,
    pub(crate) words: Vec<OsString>,
    pub(crate) detach: bool,
    pub(crate) detach_keys: String,
    pub(crate) sig_proxy: bool,
}

pub(crate) fn run(run: Run) -> anyhow::Result<ExitCode> {
    let Run { options, rootfs, words, detach, detach_keys, sig_proxy } = run;
    if options.interactive && options.tty && !detach && !rustix::termios::isatty(rustix::stdio::stdin()) {
        return Err(Hinted {
            message: "standard input is not a terminal".into(),
            hint: "leave out -t to feed the command from a file or pipe".into(),
        }
        .into());
    }
    let detach_keys = DetachKeys::parse(&detach_keys)?;
    if detach && options.rm && options.restart != "no" {
        return Err(Usage("conflicting options: cannot specify both --restart and --rm".into()).into());
    }
    let containers = Containers::open_joining(options.namespaces())?;
    let (container, lock) = create::make(&containers, &options, rootfs, words, !detach)?;
    if detach {
        return match detached(&container, lock) {
            Ok(()) => {
                ui::print(format!("{}\n", container.id()))?;
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => match error.downcast_ref::<NotStarted>().map(|error| error.code(RUN)) {
                Some(code) => {
                    ui::print(format!("{}\n", container.id()))?;
                    ui::error(&error);
                    Ok(ExitCode::from(code))
                }
                None => Err(error),
            },
        };
    }
    let manner =
        Manner { stdin: options.interactive, tty: options.tty, passes_signals: sig_proxy, detach_keys };
    let code = attached(&container, lock, manner).and_then(|ending| code_of(ending, &container, RUN));
    if code.is_err() && options.rm && remove::one(&containers, &container, true).is_err() {
        // Its monitor has removed it already, or will.
        tracing::debug!(id = container.id(), "the container is not removed here");
    }
    Ok(ExitCode::from(code?))
}
