//! `layerfs mount IMAGE MERGED`: the layers of an image of the store.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use layerfs_unionfs::config::parse::Builder;

use crate::commands::run::store_root;
use crate::exit::Usage;
use crate::images;
use crate::logging::LogOptions;
use crate::{mount_process, ui};

/// Mounts the image called `image`. The mount process holds its layers: as long as it lives they are not removed,
/// whatever becomes of the image.
pub(super) fn mount(
    mut builder: Builder,
    image: &Path,
    target: &Path,
    writable: bool,
    foreground: bool,
    log: &LogOptions,
) -> anyhow::Result<ExitCode> {
    let name = image.to_str().ok_or_else(|| Usage(format!("{image:?} is no name of an image")))?;
    let store = images::open_store()?;
    let (image, holds) = images::with_session(&store, |session| {
        let image = images::find(&store, name)?;
        store.ensure_layers(session, &image)?;
        let layers = image.mounted_layers();
        let holds = layers.iter().map(|diff_id| store.hold_layer(diff_id));
        Ok((image.clone(), holds.collect::<Result<Vec<_>, _>>()?))
    })?;
    if holds.is_empty() {
        bail!("image {name} has no layers: there is nothing to mount");
    }
    for hold in &holds {
        builder.lower(hold.tree.clone());
    }
    let mut changes = None;
    if writable {
        let directory = writable_layer(&image.id.short(), &holds[0].tree)?;
        builder.upper(directory.join("upper"));
        builder.work(directory.join("work"));
        changes = Some(directory);
    }
    let mut parsed = builder.build()?;
    for lower in &mut parsed.config.lowers {
        // The store's own promise.
        lower.immutable = holds.iter().any(|hold| hold.tree == lower.path);
    }
    for warning in &parsed.warnings {
        ui::warn(warning);
    }
    if let Some(directory) = &changes {
        ui::note(format_args!("changes go to {}", directory.join("upper").display()));
    }
    let log = log.clone().with_debug(parsed.debug);
    let result = if foreground {
        mount_process::serve_here(&parsed.config, target, &log)
    } else {
        let held: Vec<_> = holds.iter().map(|hold| hold.as_fd()).collect();
        mount_process::spawn_holding(&parsed.config, target, &log, &held, None).map(|_| ())
    };
    if let (Err(_), Some(directory)) = (&result, &changes) {
        // Nothing was written to it.
        layerfs_image::layer::remove_tree(directory).ok();
    }
    result.with_context(|| format!("mount image {name}"))?;
    Ok(ExitCode::SUCCESS)
}

/// A new writable layer, for one mount.
fn writable_layer(image: &str, top: &Path) -> anyhow::Result<PathBuf> {
    let root = store_root()?.join("mounts");
    let words = || format!("make a writable layer in {}", root.display());
    DirBuilder::new().recursive(true).mode(0o700).create(&root).with_context(words)?;
    let directory =
        tempfile::Builder::new().prefix(&format!("{image}-")).tempdir_in(&root).with_context(words)?.keep();
    for name in ["upper", "work"] {
        DirBuilder::new().mode(0o755).create(directory.join(name)).with_context(words)?;
    }
    // The root directory of the mount is the upper's: it looks as the image has it.
    let root = std::fs::metadata(top).with_context(words)?;
    let upper = directory.join("upper");
    std::os::unix::fs::chown(&upper, Some(root.uid()), Some(root.gid())).with_context(words)?;
    std::fs::set_permissions(&upper, root.permissions()).with_context(words)?;
    Ok(directory)
}
