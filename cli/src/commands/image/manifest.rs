//! `layerfs manifest`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use layerfs_image::config;
use layerfs_image::reference::Reference;
use layerfs_image::registry::{Document, Manifest, Repository, Which};
use layerfs_image::store::Image;
use serde_json::{Value, json};

use super::inspect::indented;
use crate::commands::registry::{RegistryArgs, hinted};
use crate::exit::Hinted;
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
    Inspect(ManifestInspectArgs),
}

/// Show a manifest, or a list of manifests, as its registry has it
///
/// Nothing is pulled. An id means an image of the store; so does a name with --local.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0, or 1 when there is no such manifest.

Examples
  layerfs manifest inspect debian:13               the platforms there are
  layerfs manifest inspect -v debian:13            with the manifest of each
  layerfs manifest inspect --local mine:1          of an image that was never pushed")]
struct ManifestInspectArgs {
    /// Show reference, digest, size and platform too, and of a list the manifests themselves
    #[arg(short, long)]
    verbose: bool,
    /// Show what the store has; ask no registry
    #[arg(long)]
    local: bool,
    /// Accept plain http and certificates that nothing proves
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Name, name with digest, or id
    #[arg(value_name = "IMAGE", help_heading = None)]
    image: String,
}

pub(crate) fn manifest(args: ManifestArgs) -> anyhow::Result<ExitCode> {
    let ManifestCommand::Inspect(args) = args.command;
    let document = match Reference::parse(&args.image) {
        Ok(reference) if !args.local => {
            // A short id reads like a name, too: what only the store can know is not asked for elsewhere.
            match id_in_store(&args.image) {
                Some(image) => of_image(&image, args.verbose)?,
                None => of_registry(&reference.or_latest(), &args)?,
            }
        }
        _ => of_image(&images::find(&images::open_store()?, &args.image)?, args.verbose)?,
    };
    ui::print(format!("{}\n", indented(&document)?))?;
    Ok(ExitCode::SUCCESS)
}

fn id_in_store(text: &str) -> Option<Image> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if hex.len() < 4 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let image = images::open_store().ok()?.find(text).ok()?;
    image.id.hex().starts_with(hex).then_some(image)
}

fn of_image(image: &Image, verbose: bool) -> anyhow::Result<Value> {
    let manifest: Value = serde_json::from_slice(&image.manifest_bytes)?;
    if !verbose {
        return Ok(manifest);
    }
    let platform = json!({ "architecture": image.config.architecture, "os": image.config.os });
    let digest = image.manifest_digest.to_string();
    let size = image.manifest_bytes.len();
    Ok(described(image.named.names.first().cloned(), image.media_type(), &digest, size, platform, manifest))
}

/// docker's form of `-v`.
fn described(
    name: Option<String>,
    media_type: &str,
    digest: &str,
    size: usize,
    platform: Value,
    manifest: Value,
) -> Value {
    let key = if media_type.contains(".oci.") { "OCIManifest" } else { "SchemaV2Manifest" };
    json!({
        "Ref": name,
        "Descriptor": { "mediaType": media_type, "digest": digest, "size": size, "platform": platform },
        "Raw": null,
        key: manifest,
    })
}

fn of_registry(reference: &Reference, args: &ManifestInspectArgs) -> anyhow::Result<Value> {
    let mut registry = args.registry.clone();
    if args.insecure {
        registry.add_insecure(reference.registry());
    }
    let repository = registry.client()?.repository(reference).map_err(hinted)?;
    let top = match repository.manifest(&Which::of(reference)) {
        Ok(top) => top,
        Err(error) => {
            let known = images::open_store().is_ok_and(|store| store.find(&args.image).is_ok());
            if known {
                let hint = format!("the store has it: layerfs manifest inspect --local {}", args.image);
                bail!(Hinted { message: error.to_string(), hint });
            }
            if error.is_not_found() {
                // docker's words.
                bail!("no such manifest: {reference}");
            }
            return Err(hinted(error));
        }
    };
    let document: Value = serde_json::from_slice(&top.bytes).context("read the manifest")?;
    if !args.verbose {
        return Ok(document);
    }
    match top.document().map_err(anyhow::Error::msg)? {
        Document::Image(image) => {
            let id = config::digest_of(image.config())?;
            one(reference, &repository, &top, platform_of(&repository, &id, image.config().size())?)
        }
        Document::Index(index) => {
            let mut all = Vec::new();
            for descriptor in index.manifests() {
                let digest = config::digest_of(descriptor)?;
                let manifest = repository.manifest(&Which::Digest(digest)).map_err(hinted)?;
                let platform = serde_json::to_value(descriptor.platform())?;
                all.push(one(reference, &repository, &manifest, platform)?);
            }
            Ok(Value::Array(all))
        }
    }
}

fn one(
    reference: &Reference,
    repository: &Repository,
    manifest: &Manifest,
    platform: Value,
) -> anyhow::Result<Value> {
    let name = match reference.digest() {
        Some(_) => reference.to_string(),
        None => format!("{}@{}", reference, manifest.digest),
    };
    let document = serde_json::from_slice(&manifest.bytes)
        .with_context(|| format!("read a manifest of {}", repository.name()))?;
    let digest = manifest.digest.to_string();
    Ok(described(Some(name), &manifest.media_type, &digest, manifest.bytes.len(), platform, document))
}

/// The platform by the config, as a lone manifest does not tell it.
fn platform_of(
    repository: &Repository,
    id: &layerfs_image::digest::Digest,
    size: u64,
) -> anyhow::Result<Value> {
    let bytes = layerfs_image::transfer::read_document(repository, id, size)?;
    let config: Value = serde_json::from_slice(&bytes).context("read the config")?;
    let mut platform = json!({ "architecture": config["architecture"], "os": config["os"] });
    if let (Some(platform), Some(variant)) = (platform.as_object_mut(), config["variant"].as_str()) {
        platform.insert("variant".into(), variant.into());
    }
    Ok(platform)
}
