//! `layerfs rmi`.

use std::collections::BTreeSet;
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
/// needs. One that a container is on is never removed: with --force it loses its names, and stays under its id until no
/// container has it.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Take all names from an image that is named by its id, or the last one from one that a container is on; no image is no
    /// error
    #[arg(short, long)]
    force: bool,
    /// Remove all images that no container is on
    #[arg(short, long)]
    all: bool,
    /// Do not remove images that lose their last name
    #[arg(long)]
    no_prune: bool,
    /// Names or ids
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    images: Vec<String>,
}

/// What is not asked about.
#[derive(Debug, Clone, Copy)]
struct Force {
    /// That the image has several names.
    names: bool,
    /// That a container is on it.
    used: bool,
}

pub(crate) fn rmi(args: RmiArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let mut names = args.images.clone();
    if args.all {
        names.extend(store.images()?.0.iter().map(|image| image.id.to_string()));
    }
    let force = Force { names: args.force || args.all, used: args.force };
    let mut failed = false;
    for name in &names {
        match remove(&store, name, force, args.no_prune) {
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
///
/// As docker does, but for one thing: an image that a container is on loses its names at most. It stays under its id until no
/// container has it; docker keeps the layers alone.
fn remove(store: &Store, name: &str, force: Force, no_prune: bool) -> anyhow::Result<()> {
    let image = store.find_whole(name)?;
    let user = containers::user_of(&image.id)?;
    let left = if is_id_of(name, &image) {
        refuse_by_id(&image, user.as_ref(), force)?;
        for reference in image.familiar_names().iter().chain(&image.familiar_digests()) {
            told_untagged(&image, reference)?;
        }
        0
    } else {
        if let Some((container, _)) = user.as_ref().filter(|_| !force.used && is_single(&image)) {
            let container = short(container);
            bail!(Hinted {
                message: format!(
                    "conflict: unable to remove repository reference {name:?} (must force) - container {container} is using its \
                     referenced image {}",
                    image.id.short()
                ),
                hint: format!(
                    "remove the container first (layerfs rm {container}); with --force only the name goes"
                ),
            });
        }
        untag(store, &image, name)?
    };
    if left > 0 {
        return Ok(());
    }
    if let Some((container, _)) = user {
        store.untag_all(&image.manifests)?;
        ui::note(format!(
            "image {} stays without a name: container {} is on it",
            image.id.short(),
            short(&container)
        ));
    } else if no_prune {
        store.untag_all(&image.manifests)?;
    } else {
        store.forget_all(&image.manifests)?;
        ui::print(format!("Deleted: {}\n", image.id))?;
        crate::events::image("delete", &image.id.to_string(), &image.id.to_string());
    }
    Ok(())
}

/// Takes one name away, and with the last tag of a repository also what it knows the image by. Answers with how many names
/// and digests are left.
fn untag(store: &Store, image: &Image, name: &str) -> anyhow::Result<usize> {
    let reference = Reference::parse(name)?;
    let in_repository = |text: &&String| Reference::parse(text).is_ok_and(|r| r.name() == reference.name());
    let (mut names, mut digests) = (image.named.names.clone(), image.named.repo_digests.clone());
    let mut gone: Vec<String> = Vec::new();
    if let Some(digest) = reference.digest() {
        let full = reference.with_digest(*digest).to_string();
        if !digests.contains(&full) {
            // It is the digest of the manifest that these mean.
            gone.extend(names.iter().filter(in_repository).cloned());
        }
        gone.push(full);
    } else {
        gone.push(reference.to_string());
        let is_last = !names.iter().filter(in_repository).any(|other| *other != reference.to_string());
        gone.extend(digests.iter().filter(in_repository).filter(|_| is_last).cloned());
    }
    names.retain(|name| !gone.contains(name));
    digests.retain(|digest| !gone.contains(digest));
    for full in &gone {
        if full.contains('@') {
            store.forget_repo_digest(&image.manifests, full)?;
        } else if !store.untag(full)? {
            // Somebody else was faster.
            continue;
        }
        told_untagged(image, &Reference::parse(full).map_or_else(|_| full.clone(), |r| r.familiar()))?;
    }
    Ok(names.len() + digests.len())
}

fn told_untagged(image: &Image, familiar: &str) -> anyhow::Result<()> {
    ui::print(format!("Untagged: {familiar}\n"))?;
    crate::events::image("untag", &image.id.to_string(), familiar);
    Ok(())
}

fn is_id_of(name: &str, image: &Image) -> bool {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_name = Reference::parse(name).is_ok_and(|r| image.named.names.contains(&r.to_string()));
    image.id.hex().starts_with(hex) && !is_name
}

/// Whether all that leads to the image is one name, with what that name's repository knows it by.
fn is_single(image: &Image) -> bool {
    let name = |text: &String| Reference::parse(text).map_or_else(|_| text.clone(), |r| r.name());
    let (tags, digests) = (&image.named.names, &image.named.repo_digests);
    match tags.as_slice() {
        [] => digests.iter().map(name).collect::<BTreeSet<_>>().len() == 1,
        [tag] => digests.iter().all(|digest| name(digest) == name(tag)),
        _ => false,
    }
}

/// docker's rules and words.
fn refuse_by_id(image: &Image, user: Option<&(String, bool)>, force: Force) -> anyhow::Result<()> {
    let id = image.id.short();
    let refused =
        |can: &str, why: String| format!("conflict: unable to delete {id} ({can} forced) - image is {why}");
    if let Some((container, true)) = user {
        bail!(refused("cannot be", format!("being used by running container {}", short(container))));
    }
    let is_named = !image.named.names.is_empty() || !image.named.repo_digests.is_empty();
    if is_named && !is_single(image) && !force.names {
        bail!(Hinted {
            message: refused("must be", "referenced in multiple repositories".into()),
            hint: "remove it by name, or all its names with --force".into(),
        });
    }
    if let Some((container, _)) = user {
        let container = short(container);
        // Forced, it loses its names, and without any there is nothing to do.
        if !force.used || !is_named {
            let can = if is_named { "must be" } else { "cannot be" };
            bail!(Hinted {
                message: refused(can, format!("being used by stopped container {container}")),
                hint: format!("remove the container first (layerfs rm {container})"),
            });
        }
    }
    Ok(())
}

fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}
