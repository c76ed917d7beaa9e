//! `layerfs version`.

use std::process::ExitCode;

use clap::Args;

use crate::ui;

/// Print the version
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {}

pub(crate) fn version(_: VersionArgs) -> anyhow::Result<ExitCode> {
    ui::print(concat!("layerfs ", env!("CARGO_PKG_VERSION"), "\n"))?;
    Ok(ExitCode::SUCCESS)
}
