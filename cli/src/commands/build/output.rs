//! What becomes of what was built: an image of the store, a directory, an archive, a push.

use std::fs;
use std::io::{BufReader, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use layerfs_image::archive::{self, SaveFormat};
use layerfs_image::config::{self, Config};
use layerfs_image::digest::Digest;
use layerfs_image::layer::{Stack, pack_merged};
use layerfs_image::media_type;
use layerfs_image::reference::Reference;
use layerfs_image::store::{Session, Store};
use layerfs_image::transfer::{INLINE, inline_steps};
use serde_json::{Value, json};

use super::executor::{Built, Layer};
use super::input::unpack_into;
use super::options::{CachePlace, Output, Request};
use super::progress::{End, Progress};
use crate::commands::image::save::to_output;
use crate::commands::run::remove_tree;
use crate::ui;

/// Delivers it where it was asked for.
pub(super) fn deliver(
    request: &Request,
    store: &Store,
    session: &Session,
    mut built: Built,
    progress: &Progress,
) -> anyhow::Result<ExitCode> {
    if request.squash {
        bail_on_squash(&built)?;
        squash(request, store, session, &mut built)?;
    }
    let stack = || store.stack(&built.diff_ids()).context("open the layers");
    match &request.output {
        Output::CacheOnly => return Ok(ExitCode::SUCCESS),
        Output::Local(path) => {
            let number = progress.begin(&format!("exporting to {}", path.display()));
            let result = to_directory(&stack()?, path);
            progress.end(number, if result.is_ok() { End::Done } else { End::Failed });
            result?;
            return Ok(ExitCode::SUCCESS);
        }
        Output::Tar(path) => {
            let stack = stack()?;
            let path = Some(path.as_path()).filter(|path| *path != Path::new("-"));
            to_output(path, |out| Ok(pack_merged(&stack, out, false).map(drop)?))?;
            return Ok(ExitCode::SUCCESS);
        }
        Output::Store | Output::Archive { .. } | Output::Registry(_) => {}
    }
    let number = progress.begin("exporting the image");
    let known = store.named()?;
    let published = publish(request, store, session, &built);
    progress.end(number, if published.is_ok() { End::Done } else { End::Failed });
    let (id, mut manifest, mut size) = published?;
    match &request.output {
        Output::Archive { oci, path } => {
            let format = if *oci { SaveFormat::Oci } else { SaveFormat::Docker };
            let image = store.find(&id.to_string())?;
            let images = [(image, request.tags.clone())];
            let path = Some(path.as_path()).filter(|path| *path != Path::new("-"));
            let saved = to_output(path, |out| Ok(archive::save(store, &images, format, out).map(drop)?));
            // It was made for the archive alone.
            if !known.iter().any(|image| image.manifest == manifest) {
                store.forget(&manifest)?;
            }
            saved?;
        }
        Output::Registry(compression) => {
            let client = crate::commands::registry::RegistryArgs::default().client()?;
            let image = store.find(&id.to_string())?;
            for tag in &request.tags {
                let number = progress.begin(&format!("pushing {}", tag.familiar()));
                let silent = layerfs_image::transfer::Silent;
                let pushed = layerfs_image::transfer::push(
                    store,
                    session,
                    &client,
                    &image,
                    tag,
                    *compression,
                    &silent,
                );
                progress.end(number, if pushed.is_ok() { End::Done } else { End::Failed });
                let (digest, len) = pushed
                    .map_err(crate::commands::registry::explained)
                    .with_context(|| format!("push {}", tag.familiar()))?;
                // What the registry has it by.
                (manifest, size) = (digest, len as u64);
            }
        }
        _ => {}
    }
    if let Some(path) = &request.iidfile {
        fs::write(path, id.to_string()).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &request.metadata_file {
        let names: Vec<String> = request.tags.iter().map(ToString::to_string).collect();
        let text = json!({
            "containerimage.config.digest": id,
            "containerimage.digest": manifest,
            "containerimage.descriptor": { "mediaType": media_type::OCI_MANIFEST, "digest": manifest, "size": size },
            "image.name": names.join(","),
        });
        fs::write(path, serde_json::to_vec_pretty(&text)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    if progress.is_quiet() {
        ui::print(format!("{id}\n"))?;
    } else {
        let names: Vec<String> = request.tags.iter().map(Reference::familiar).collect();
        let named = if names.is_empty() { String::new() } else { format!(" {}", names.join(" ")) };
        ui::line(format_args!("image {id}{named}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Stores config and manifest and gives the image its names. Answers with its id, and digest and size of its manifest.
fn publish(
    request: &Request,
    store: &Store,
    session: &Session,
    built: &Built,
) -> anyhow::Result<(Digest, Digest, u64)> {
    let mut config: Config = built.state.config.clone();
    for (name, value) in &request.labels {
        if !config.config.is_object() {
            config.config = json!({});
        }
        if !config.config["Labels"].is_object() {
            config.config["Labels"] = json!({});
        }
        config.config["Labels"][name.as_str()] = json!(value);
    }
    if let Some(time) = request.timestamp {
        let time = layerfs_image::time::format(time, 0);
        for history in config.history.iter_mut().skip(built.inherited_history) {
            history.created = Some(time.clone());
        }
        config.created = Some(time);
    } else {
        let last = config.history.iter().rev().find_map(|history| history.created.clone());
        config.created = last.or(config.created).or_else(|| Some(layerfs_image::time::now()));
    }
    // A base image's steps are not this one's.
    config.other.remove(INLINE);
    if request.cache_to.iter().any(|target| target.place == CachePlace::Inline) {
        config.other.insert(INLINE.into(), inline_steps(&config.rootfs.diff_ids, &built.steps));
    }
    let mut value = serde_json::to_value(&config).context("make the config")?;
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| *value != Value::Null);
    }
    let text = serde_json::to_vec(&value).context("make the config")?;
    let id = store.add_blob(session, &text)?;
    let layers: Vec<(Digest, u64, &str)> =
        built.layers.iter().map(|layer| (layer.blob.0, layer.blob.1, layer.media_type.as_str())).collect();
    let manifest = config::new_manifest((id, text.len() as u64), &layers)?;
    let digest = store.add_blob(session, &manifest)?;
    let described = (digest, manifest.len() as u64, media_type::OCI_MANIFEST);
    // An archive's image has its names there.
    let names: &[Reference] =
        if matches!(request.output, Output::Archive { .. }) { &[] } else { &request.tags };
    store.publish(session, described, names, None)?;
    Ok((id, digest, manifest.len() as u64))
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

/// Over an image that was there before, one layer would have to say what all of them removed.
fn bail_on_squash(built: &Built) -> anyhow::Result<()> {
    if built.inherited > 0 && built.layers.len() > built.inherited {
        bail!(crate::exit::Hinted {
            message: "--squash works for stages FROM scratch only".into(),
            hint: "end with a stage FROM scratch that copies --from the others".into(),
        });
    }
    Ok(())
}

/// One layer for all.
fn squash(request: &Request, store: &Store, session: &Session, built: &mut Built) -> anyhow::Result<()> {
    if built.layers.len() <= 1 || built.inherited > 0 {
        return Ok(());
    }
    let stack = store.stack(&built.diff_ids())?;
    let layer = std::thread::scope(|scope| -> anyhow::Result<_> {
        let (mut reader, writer) = std::io::pipe().context("make a pipe")?;
        let packing = scope.spawn(move || {
            let mut out = std::io::BufWriter::new(writer);
            pack_merged(&stack, &mut out, true)?;
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
    store.finish_layer(session, &mut layer, &[])?;
    let config = &mut built.state.config;
    config.rootfs.diff_ids = vec![layer.diff_id];
    for history in &mut config.history {
        history.empty_layer = true;
    }
    config.history.push(config::History {
        created: config.history.last().and_then(|history| history.created.clone()),
        created_by: Some("squash".into()),
        comment: Some("layerfs.dockerfile.v0".into()),
        ..config::History::default()
    });
    built.layers = vec![Layer::published(layer.diff_id, (layer.blob, layer.size))];
    tracing::debug!(tags = request.tags.len(), "squashed");
    Ok(())
}
