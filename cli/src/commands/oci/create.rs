//! `create`: a container in which only the program is missing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use layerfs_runner::config::Choice;
use layerfs_runner::runtime::CreateRequest;

use super::{Context, protect};

/// Create a container from a bundle; its program waits for start
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// A name for it
    #[arg(value_name = "ID")]
    id: String,
}

/// What `create` and `run` share.
#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// The directory of config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(super) bundle: PathBuf,
    /// A unix socket that is sent the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(super) console_socket: Option<PathBuf>,
    /// Write the number of the first process to FILE
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Change the root without pivot_root, for initial ramdisks; programs with CAP_SYS_CHROOT can get out
    #[arg(long)]
    no_pivot: bool,
    /// Share the session keyring of the caller
    #[arg(long)]
    no_new_keyring: bool,
    /// Hand on N descriptors from number 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Put an init of the runtime before the program: it reaps orphans and passes signals on
    #[arg(long)]
    init: bool,
}

impl BundleArgs {
    pub(super) fn request(&self, id: &str) -> CreateRequest {
        CreateRequest {
            id: id.to_owned(),
            bundle: self.bundle.clone(),
            choice: Choice {
                no_pivot: self.no_pivot,
                no_new_keyring: self.no_new_keyring,
                init: self.init,
                preserve_fds: self.preserve_fds,
            },
            console_socket: self.console_socket.clone(),
            pid_file: self.pid_file.clone(),
            ..CreateRequest::default()
        }
    }
}

pub(super) fn create(args: CreateArgs, context: &Context) -> anyhow::Result<ExitCode> {
    protect()?;
    let request = CreateRequest { without_cgroup: context.without_cgroup, ..args.bundle.request(&args.id) };
    context.runtime.create(request)?;
    Ok(ExitCode::SUCCESS)
}
