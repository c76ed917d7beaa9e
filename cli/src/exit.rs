//! Exit codes, and errors that know theirs. Documented in `docs/options.md` and in the help of each command.

use thiserror::Error;

/// The command line, or an option text, has no meaning or contradicts itself.
pub(crate) const USAGE: u8 = 1;
/// A mount or unmount failed, as mount(8) and umount(8) have it. Also the code of any other failure of a
/// command that changes the mount table.
pub(crate) const MOUNT: u8 = 32;
/// Of several targets some succeeded, as mount(8) has it.
pub(crate) const SOME: u8 = 64;
/// A failure of commands that neither mount nor run.
pub(crate) const FAILURE: u8 = 1;
/// Own failures of `layerfs run`, as docker has it.
pub(crate) const RUN: u8 = 125;

/// Nobody reads what a container's program writes any more: as a shell shows what SIGPIPE has ended.
pub(crate) const UNREAD: u8 = 141;

/// A command line that parsed but cannot be carried out as it stands.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Words for what was attempted, and what the user can do about its failure.
#[derive(Debug, Error)]
#[error("{message}")]
pub(crate) struct Hinted {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// The exit code for an error: [`USAGE`] for what the user wrote, else the code of the command.
pub(crate) fn code_of(error: &anyhow::Error, command: u8) -> u8 {
    let written =
        error.chain().any(|e| e.is::<Usage>() || e.is::<layerfs_unionfs::config::parse::OptionError>());
    if written && command != RUN { USAGE } else { command }
}
