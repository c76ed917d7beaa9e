//! Images of what was built: one, or one for each of several platforms with a list of them.

use anyhow::Context;
use layerfs_image::config::{self, Config};
use layerfs_image::digest::Digest;
use layerfs_image::media_type;
use layerfs_image::reference::Reference;
use layerfs_image::registry::{Client, Platform};
use layerfs_image::store::{Image, NamedImage, Session, Store};
use layerfs_image::transfer::{INLINE, PushCompression, Silent, inline_steps, push, push_list};
use serde_json::{Value, json};

use super::super::executor::Built;
use super::super::options::{CachePlace, Request};
use crate::commands::registry::explained;

/// An image that was built.
#[derive(Debug)]
pub(super) struct Published {
    /// What it is known by here: its config's digest. That of the list, where this machine has nothing in it.
    pub(super) id: Digest,
    /// Digest of its manifest or list.
    pub(super) manifest: Digest,
    /// Bytes of that.
    pub(super) size: u64,
    /// The images of a list, with their entries.
    list: Vec<(Value, Image)>,
}

fn named(manifest: Digest, media_type: &str) -> NamedImage {
    NamedImage {
        manifest,
        media_type: media_type.to_owned(),
        names: Vec::new(),
        repo_digests: Vec::new(),
        tagged: None,
    }
}

/// Stores the documents and gives the image its names.
pub(super) fn publish(
    request: &Request,
    store: &Store,
    session: &Session,
    built: &[Built],
) -> anyhow::Result<Published> {
    let host = Platform::host();
    let mut list = Vec::new();
    let mut of_host = None;
    let mut one = None;
    for (built, platform) in built.iter().zip(&request.platforms) {
        let (id, manifest, size) = add_documents(request, store, session, built)?;
        let mut entry = json!({
            "mediaType": media_type::OCI_MANIFEST,
            "digest": manifest,
            "size": size,
            "platform": { "architecture": platform.architecture, "os": platform.os },
        });
        if !platform.variant.is_empty() {
            entry["platform"]["variant"] = json!(platform.variant);
        }
        if platform.os == host.os && platform.architecture == host.architecture {
            of_host.get_or_insert(id);
        }
        list.push((entry, store.image(named(manifest, media_type::OCI_MANIFEST))?));
        one = Some(Published { id, manifest, size, list: Vec::new() });
    }
    let published = match one {
        Some(one) if list.len() == 1 => one,
        _ => {
            let entries: Vec<&Value> = list.iter().map(|(entry, _)| entry).collect();
            let text =
                json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries });
            let text = serde_json::to_vec(&text).context("make the list of manifests")?;
            let manifest = store.add_blob(session, &text)?;
            Published { id: of_host.unwrap_or(manifest), manifest, size: text.len() as u64, list }
        }
    };
    // What has nothing for this machine is no image of this store: it is pushed, and that is all.
    if !published.is_list() || of_host.is_some() {
        // An archive's image has its names there.
        let names: &[Reference] = if request.keeps_image() { &request.tags } else { &[] };
        let described = (published.manifest, published.size, published.media_type());
        store.publish(session, described, names, None)?;
    }
    Ok(published)
}

impl Published {
    /// It is for several platforms.
    pub(super) fn is_list(&self) -> bool {
        !self.list.is_empty()
    }

    pub(super) fn media_type(&self) -> &'static str {
        if self.is_list() { media_type::OCI_INDEX } else { media_type::OCI_MANIFEST }
    }

    /// Pushes it. The answer is digest and size of what the registry has for its manifest.
    pub(super) fn push(
        &self,
        store: &Store,
        session: &Session,
        client: &Client,
        tag: &Reference,
        compression: PushCompression,
    ) -> anyhow::Result<(Digest, u64)> {
        let published = match self.is_list() {
            // Its manifest is the registry's after a push: it is looked for by its name.
            true => store.find(&tag.to_string()),
            false => store.find(&self.id.to_string()),
        };
        let pushed = match published {
            Ok(image) => push(store, session, client, &image, tag, compression, &Silent),
            Err(_) if self.is_list() => {
                push_list(store, session, client, &self.list, tag, compression, &Silent)
            }
            Err(error) => Err(error),
        };
        let (digest, size) = pushed.map_err(explained)?;
        Ok((digest, size as u64))
    }
}

/// Stores config and manifest. Answers with the image's id, and digest and size of its manifest.
fn add_documents(
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
    Ok((id, digest, manifest.len() as u64))
}
