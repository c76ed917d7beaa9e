//! `layerfs port`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::network;
use super::store::Containers;

/// List the published ports of a container
#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// A port of the container
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

pub(crate) fn port(args: PortArgs) -> anyhow::Result<ExitCode> {
    let containers = Containers::open()?;
    let container = containers.find(&args.container)?;
    let lines = network::published(&container, args.port.as_deref())?;
    if !lines.is_empty() {
        crate::ui::print(format!("{}\n", lines.join("\n")))?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.port {
        Some(port) if port.contains('/') => bail!("no public port '{port}' published for {}", args.container),
        Some(port) => bail!("no public port '{port}/tcp' published for {}", args.container),
        None => Ok(ExitCode::SUCCESS),
    }
}
