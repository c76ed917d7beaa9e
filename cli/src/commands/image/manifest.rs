//! `layerfs manifest`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::inspect::indented;
use crate::images;
use crate::ui;

/// Look at manifests
#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    #[command(subcommand)]
    command: ManifestCommand,
}

#[derive(Debug, Subcommand)]
enum ManifestCommand {
    /// Show the manifest of an image of the store
    Inspect {
        /// Show digest, media type and size too
        #[arg(short, long)]
        verbose: bool,
        /// Name or id
        #[arg(value_name = "IMAGE")]
        image: String,
    },
}

pub(crate) fn manifest(args: ManifestArgs) -> anyhow::Result<ExitCode> {
    let ManifestCommand::Inspect { verbose, image } = args.command;
    let store = images::open_store()?;
    let image = images::find(&store, &image)?;
    let manifest: Value = serde_json::from_slice(&image.manifest_bytes)?;
    let document = if verbose {
        json!({
            "Ref": image.named.names.first(),
            "Descriptor": {
                "mediaType": image.media_type(),
                "digest": image.manifest_digest,
                "size": image.manifest_bytes.len(),
                "platform": { "architecture": image.config.architecture, "os": image.config.os },
            },
            "SchemaV2Manifest": manifest,
        })
    } else {
        manifest
    };
    ui::print(format!("{}\n", indented(&document)?))?;
    Ok(ExitCode::SUCCESS)
}
