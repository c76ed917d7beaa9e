//! `layerfs version`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::images::template::Template;
use crate::ui;

/// Print the version
///
/// With --format, docker's document: `Client` and `Server`, which are this one program.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs version --format json
  layerfs version --format '{{.Server.Version}}'")]
pub(crate) struct VersionArgs {
    /// `json` or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

pub(crate) fn version(args: VersionArgs) -> anyhow::Result<ExitCode> {
    let text = match args.format.as_deref() {
        None | Some("") => concat!("layerfs ", env!("CARGO_PKG_VERSION"), "\n").to_owned(),
        Some(format) => {
            let architecture = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            let system = rustix::system::uname();
            let part = json!({
                "Platform": { "Name": "layerfs" },
                "Version": env!("CARGO_PKG_VERSION"),
                "Os": "linux",
                "Arch": architecture,
                "KernelVersion": system.release().to_string_lossy(),
            });
            let document = json!({ "Client": part, "Server": part });
            match format {
                "json" => format!("{document}\n"),
                template => format!("{}\n", Template::strict(template)?.render(&document)?),
            }
        }
    };
    ui::print(text)?;
    Ok(ExitCode::SUCCESS)
}
