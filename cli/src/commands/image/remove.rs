//! `layerfs rmi`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use layerfs_image::reference::Reference;
use layerfs_image::store::{Image, Store};

use crate::exit::{self, Hinted};
use crate::images::{self, containers};
use crate::ui;

/// Remove images
///
/// A name is taken from its image; an image that has no other name is removed, with the layers that no other image
/// needs.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Remove an image by its id with all its names, and one that a stopped container uses; no image is no error
    #[arg(short, long)]
    force: bool,
    /// Remove all images
    #[arg(short, long)]
    all: bool,
    /// Do not remove images that lose their last name
    #[arg(long)]
    no_prune: bool,
    /// Names or ids
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    images: Vec<String>,
}

pub(crate) fn rmi(args: RmiArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let mut names = args.images.clone();
    if args.all {
        names.extend(store.images()?.0.iter().map(|image| image.id.to_string()));
    }
    let mut failed = false;
    for name in &names {
        match remove(&store, name, args.force || args.all, args.no_prune) {
            Ok(()) => {}
            Err(error) => {
                let missing =
                    matches!(error.downcast_ref(), Some(layerfs_image::Error::NoSuchImage(_))) && args.force;
                if !missing {
                    ui::error(&error);
                    failed = true;
                }
            }
        }
    }
    let collected = store.collect().context("remove what no image needs")?;
    for layer in &collected.layers {
        ui::print(format!("Deleted: {layer}\n"))?;
    }
    Ok(ExitCode::from(if failed { exit::FAILURE } else { 0 }))
}

/// Removes a name, or an image. Its content goes when the store is collected.
fn remove(store: &Store, name: &str, force: bool, no_prune: bool) -> anyhow::Result<()> {
    let image = images::find(store, name)?;
    let by_id = is_id_of(name, &image);
    let mut untag: Vec<String> = Vec::new();
    if by_id {
        let repositories: std::collections::BTreeSet<String> =
            image.named.names.iter().filter_map(|n| Reference::parse(n).ok()).map(|r| r.name()).collect();
        if repositories.len() > 1 && !force {
            bail!(Hinted {
                message: format!(
                    "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
                    image.id.short()
                ),
                hint: "remove it by name, or all its names with --force".into(),
            });
        }
        refuse_used(&image, name, force)?;
        untag.clone_from(&image.named.names);
    } else {
        let reference = Reference::parse(name)?;
        if let Some(digest) = reference.digest() {
            let repo_digest = reference.with_digest(*digest).to_string();
            let same = |n: &&String| Reference::parse(n).is_ok_and(|n| n.name() == reference.name());
            untag.extend(image.named.names.iter().filter(same).cloned());
            store.forget_repo_digest(&image.named.manifest, &repo_digest)?;
            ui::print(format!("Untagged: {}\n", reference.familiar()))?;
        } else {
            untag.push(reference.to_string());
        }
        if untag.len() >= image.named.names.len() {
            refuse_used(&image, name, force)?;
        }
    }
    for full in &untag {
        if store.untag(full)? {
            let familiar = Reference::parse(full).map_or_else(|_| full.clone(), |r| r.familiar());
            ui::print(format!("Untagged: {familiar}\n"))?;
            crate::events::image("untag", &image.id.to_string(), &familiar);
        }
    }
    if untag.len() >= image.named.names.len() && !no_prune {
        for digest in image.familiar_digests().iter().filter(|_| !by_id || !untag.is_empty()) {
            ui::print(format!("Untagged: {digest}\n"))?;
        }
        store.forget(&image.named.manifest)?;
        ui::print(format!("Deleted: {}\n", image.id))?;
        crate::events::image("delete", &image.id.to_string(), &image.id.to_string());
    }
    Ok(())
}

fn is_id_of(name: &str, image: &Image) -> bool {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_name = Reference::parse(name).is_ok_and(|r| image.named.names.contains(&r.to_string()));
    image.id.hex().starts_with(hex) && !is_name
}

/// docker's words.
fn refuse_used(image: &Image, name: &str, force: bool) -> anyhow::Result<()> {
    let Some((container, running)) = containers::user_of(&image.id)? else { return Ok(()) };
    let short = container.get(..12).unwrap_or(&container);
    if running {
        bail!(
            "conflict: unable to delete {name} (cannot be forced) - image is being used by running container {short}"
        );
    }
    if !force {
        bail!(Hinted {
            message: format!(
                "conflict: unable to delete {name} (must be forced) - image is being used by stopped container {short}"
            ),
            hint: format!("remove the container first (layerfs rm {short}), or use --force"),
        });
    }
    Ok(())
}
