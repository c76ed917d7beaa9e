//! `layerfs logout`.

use std::process::ExitCode;

use clap::Args;
use layerfs_image::registry::{Client, ClientOptions};

use crate::registry::{hinted, server};
use crate::ui;

/// Forget the credentials of a registry
///
/// Deletes what login has kept, in docker's configuration and with the credential helper. The registry is not asked.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes
  0  forgotten, or nothing was kept   1  the file or the helper does not let go")]
pub(crate) struct LogoutArgs {
    /// The registry, HOST[:PORT]; without it Docker Hub
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

pub(crate) fn logout(args: LogoutArgs) -> anyhow::Result<ExitCode> {
    let registry = server(args.server.as_deref())?;
    let client = Client::new(ClientOptions::default()).map_err(hinted)?;
    let words = if client.logout(&registry).map_err(hinted)? {
        format!("Removing login credentials for {registry}\n")
    } else {
        format!("Not logged in to {registry}\n")
    };
    ui::print(words)?;
    Ok(ExitCode::SUCCESS)
}
