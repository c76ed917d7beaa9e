//! What becomes of what was built: an image of the store, a directory, an archive, a push.

mod images;

use std::fs;
use std::io::{BufReader, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use layerfs_image::archive::{self, SaveFormat};
use layerfs_image::config;
use layerfs_image::layer::{Stack, pack_joined, pack_merged};
use layerfs_image::reference::Reference;
use layerfs_image::store::{Session, Store};
use serde_json::json;

use super::executor::{Built, Layer};
use super::input::unpack_into;
use super::options::{Output, ProgressArg, Request};
use super::progress::Progress;
use crate::commands::image::save::to_output;
use crate::commands::registry::RegistryArgs;
use crate::commands::run::remove_tree;
use crate::ui;

/// Delivers what was built, once for each platform, where it was asked for.
pub(super) fn deliver(
    request: &Request,
    store: &Store,
    session: &Session,
    mut built: Vec<Built>,
    progress: &Progress,
) -> anyhow::Result<ExitCode> {
    if request.squash {
        for built in &mut built {
            squash(store, session, built)?;
        }
    }
    for output in &request.outputs {
        export(output, request, store, &built, progress)?;
    }
    let is_image =
        |output: &Output| matches!(output, Output::Store | Output::Archive { .. } | Output::Registry(_));
    if !request.outputs.iter().any(is_image) {
        return Ok(ExitCode::SUCCESS);
    }
    let known = store.named()?;
    let mut image =
        progress.step("exporting the image", || images::publish(request, store, session, &built))?;
    let saved = archives(request, store, &image.id.to_string());
    // It was made for the archive alone.
    if !request.keeps_image() && !known.iter().any(|known| known.manifest == image.manifest) {
        store.forget(&image.manifest)?;
    }
    saved?;
    for output in &request.outputs {
        let Output::Registry(compression) = output else { continue };
        let client = RegistryArgs::default().client()?;
        for tag in &request.tags {
            let name = tag.familiar();
            let pushed = progress.step(&format!("pushing {name}"), || {
                image.push(store, session, &client, tag, *compression).with_context(|| format!("push {name}"))
            })?;
            // What the registry has it by.
            (image.manifest, image.size) = pushed;
        }
    }
    if let Some(path) = &request.iidfile {
        fs::write(path, image.id.to_string()).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &request.metadata_file {
        let names: Vec<String> = request.tags.iter().map(ToString::to_string).collect();
        let mut text = json!({
            "containerimage.digest": image.manifest,
            "containerimage.descriptor":
                { "mediaType": image.media_type(), "digest": image.manifest, "size": image.size },
            "image.name": names.join(","),
        });
        if !image.is_list() {
            text["containerimage.config.digest"] = json!(image.id);
        }
        fs::write(path, serde_json::to_vec_pretty(&text)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    if progress.is_quiet() {
        ui::print(format!("{}\n", image.id))?;
    } else if request.progress != ProgressArg::Rawjson {
        let names: Vec<String> = request.tags.iter().map(Reference::familiar).collect();
        let named = if names.is_empty() { String::new() } else { format!(" {}", names.join(" ")) };
        ui::line(format_args!("image {}{named}", image.id));
    }
    Ok(ExitCode::SUCCESS)
}

/// Delivers the files, where these are wanted and no image.
fn export(
    output: &Output,
    request: &Request,
    store: &Store,
    built: &[Built],
    progress: &Progress,
) -> anyhow::Result<()> {
    let open = |built: &Built| store.stack(&built.diff_ids()).context("open the layers");
    match output {
        Output::Local(path) => {
            for (built, platform) in built.iter().zip(&request.platforms) {
                // Several have a directory each, as with BuildKit.
                let path = match request.platforms.len() {
                    1 => path.clone(),
                    _ => path.join(platform.to_string().replace('/', "_")),
                };
                progress.step(&format!("exporting to {}", path.display()), || {
                    to_directory(&open(built)?, &path)
                })?;
            }
        }
        Output::Tar(path) => {
            let path = Some(path.as_path()).filter(|path| *path != Path::new("-"));
            for built in built {
                let stack = open(built)?;
                to_output(path, |out| Ok(pack_merged(&stack, out, false).map(drop)?))?;
            }
        }
        Output::Store | Output::Archive { .. } | Output::Registry(_) | Output::CacheOnly => {}
    }
    Ok(())
}

/// Writes the archives of an image.
fn archives(request: &Request, store: &Store, id: &str) -> anyhow::Result<()> {
    for output in &request.outputs {
        let Output::Archive { oci, path } = output else { continue };
        let format = if *oci { SaveFormat::Oci } else { SaveFormat::Docker };
        let images = [(store.find(id)?, request.tags.clone())];
        let path = Some(path.as_path()).filter(|path| *path != Path::new("-"));
        to_output(path, |out| Ok(archive::save(store, &images, format, out).map(drop)?))?;
    }
    Ok(())
}

/// The merged tree as files of a directory; what is there under other names stays.
fn to_directory(stack: &Stack, path: &Path) -> anyhow::Result<()> {
    let words = || format!("write to {}", path.display());
    fs::create_dir_all(path).with_context(words)?;
    let staging = tempfile::Builder::new().prefix(".layerfs-build-").tempdir_in(path).with_context(words)?;
    let tree = staging.path().join("tree");
    let result = std::thread::scope(|scope| -> anyhow::Result<()> {
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        let packing = scope.spawn(move || pack_merged(stack, writer, false).map(drop));
        let unpacked = unpack_into(&tree, BufReader::with_capacity(256 * 1024, reader));
        match packing.join() {
            Ok(Ok(())) => unpacked,
            Ok(Err(error)) => Err(unpacked.err().unwrap_or_else(|| error.into())),
            Err(_) => bail!("packing the tree ended early"),
        }
    });
    let result = result.and_then(|()| move_into(&staging.path().join("tree"), path));
    remove_tree(staging.path())?;
    result
}

fn move_into(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let words = || format!("write {}", target.display());
        let is_directory = entry.file_type()?.is_dir();
        match fs::symlink_metadata(&target) {
            Ok(there) if there.is_dir() && is_directory => move_into(&entry.path(), &target)?,
            Ok(there) if there.is_dir() => bail!("{}: a directory is in the way of a file", target.display()),
            Ok(_) if is_directory => bail!("{}: a file is in the way of a directory", target.display()),
            _ => fs::rename(entry.path(), &target).with_context(words)?,
        }
    }
    Ok(())
}

/// One layer for all that is new, over those of the image that it is on.
fn squash(store: &Store, session: &Session, built: &mut Built) -> anyhow::Result<()> {
    let new = built.layers.len().saturating_sub(built.inherited);
    if new <= 1 {
        return Ok(());
    }
    let base = built.diff_ids().get(..built.inherited).unwrap_or_default().to_vec();
    let stack = store.stack(&built.diff_ids())?;
    let layer = std::thread::scope(|scope| -> anyhow::Result<_> {
        let (mut reader, writer) = std::io::pipe().context("make a pipe")?;
        let base = &base;
        let packing = scope.spawn(move || {
            let mut out = std::io::BufWriter::new(writer);
            if base.is_empty() {
                pack_merged(&stack, &mut out, true)?;
            } else {
                pack_joined(&stack, new, &mut out)?;
            }
            out.flush().map_err(layerfs_image::layer::PackError::Write)
        });
        let input = layerfs_image::store::LayerInput {
            reader: &mut reader,
            blob: None,
            diff_id: None,
            keep_blob: true,
        };
        let taken = store.ingest_layer(session, input);
        if taken.is_err() {
            drop(reader);
        }
        match packing.join() {
            Ok(Ok(())) => Ok(taken?),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => bail!("packing the layers ended early"),
        }
    });
    let mut layer = layer?;
    store.finish_layer(session, &mut layer, &base)?;
    let config = &mut built.state.config;
    config.rootfs.diff_ids = base;
    config.rootfs.diff_ids.push(layer.diff_id);
    for history in config.history.iter_mut().skip(built.inherited_history) {
        history.empty_layer = true;
    }
    config.history.push(config::History {
        created: config.history.last().and_then(|history| history.created.clone()),
        created_by: Some("squash".into()),
        comment: Some("layerfs.dockerfile.v0".into()),
        ..config::History::default()
    });
    built.layers.truncate(built.inherited);
    built.layers.push(Layer::published(layer.diff_id, (layer.blob, layer.size)));
    tracing::debug!(layers = new, "squashed");
    Ok(())
}
