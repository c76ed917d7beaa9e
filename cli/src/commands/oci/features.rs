//! `features`: what this runtime does, in the specification's form.

use std::process::ExitCode;

use clap::Args;

use crate::ui;

/// Print what this runtime supports
#[derive(Debug, Args)]
pub(crate) struct FeaturesArgs {}

pub(super) fn features(FeaturesArgs {}: FeaturesArgs) -> anyhow::Result<ExitCode> {
    let features = layerfs_runner::runtime::features();
    ui::print(format!("{}\n", serde_json::to_string_pretty(&features)?))?;
    Ok(ExitCode::SUCCESS)
}
