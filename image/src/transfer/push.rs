//! Pushing: from the store to a registry. Layers that the store has without compression are compressed on the way, as
//! registries and whoever pulls from them expect; the manifest then says so.

use std::io::Write;

use serde_json::{Value, json};

use super::Progress;
use super::send::{Compressed, LayerBytes, Outgoing, Sender};
use crate::archive::copy_layer;
use crate::config;
use crate::digest::Digest;
use crate::error::Error;
use crate::media_type;
use crate::reference::Reference;
use crate::registry::{Client, Repository, Which};
use crate::store::{Image, Session, Store};

/// What is done to layers that are not compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushCompression {
    /// They are sent as they are: the registry has the image with the manifest that the store has.
    None,
    /// gzip, with its level from 1 to 9.
    Gzip(u32),
    /// zstd, with its level from 1 to 19.
    Zstd(i32),
}

impl Default for PushCompression {
    /// A level below that of archives: on a near registry, a push takes as long as its compression.
    fn default() -> Self {
        Self::Gzip(2)
    }
}

impl PushCompression {
    /// What is used with manifests of docker's own kind, which know gzip alone, if `is_docker`.
    pub(super) fn for_manifest(self, is_docker: bool) -> Self {
        match self {
            Self::Zstd(_) if is_docker => Self::default(),
            other => other,
        }
    }

    /// What records of compressed layers are called by.
    pub(super) fn name(self) -> String {
        match self {
            Self::None => "none".into(),
            Self::Gzip(level) => format!("gzip-{level}"),
            Self::Zstd(level) => format!("zstd-{level}"),
        }
    }

    /// What a manifest says of a layer so compressed.
    pub(super) fn media_type(self, is_docker: bool) -> &'static str {
        match (self, is_docker) {
            (Self::Gzip(_), true) => media_type::DOCKER_LAYER_GZIP,
            (Self::Gzip(_), false) => media_type::OCI_LAYER_GZIP,
            (Self::Zstd(_), _) => media_type::OCI_LAYER_ZSTD,
            (Self::None, true) => media_type::DOCKER_LAYER,
            (Self::None, false) => media_type::OCI_LAYER,
        }
    }
}

/// Pushes `image` under the name `reference`; where its name means a list of manifests, all that are here of those. Answers with
/// the digest that the registry has it by, and the size of that manifest in bytes.
///
/// # Errors
/// When the registry refuses it; when a blob is missing or damaged here.
pub fn push(
    store: &Store,
    session: &Session,
    client: &Client,
    image: &Image,
    reference: &Reference,
    compression: PushCompression,
    progress: &dyn Progress,
) -> Result<(Digest, usize), Error> {
    let to = Destination {
        store,
        session,
        repository: client.repository(reference)?,
        reference,
        compression,
        progress,
    };
    let (digest, size) = match store.listed(&image.named)? {
        Some(list) if list.len() > 1 => to.list(&list)?,
        _ => to.image(image, Some(&Which::of(reference)))?,
    };
    let repo_digest = reference.with_digest(digest).to_string();
    let bytes = std::fs::metadata(store.blob_path(&image.named.manifest)).map_or(0, |blob| blob.len());
    let described = (image.named.manifest, bytes, image.named.media_type.as_str());
    store.publish(session, described, &[], Some(&repo_digest))?;
    Ok((digest, size))
}

/// Pushes images for several platforms, each with its entry in a list of manifests, as such a list. The answer is that of
/// [`push`]; the store takes no note of it.
///
/// # Errors
/// As [`push`].
pub fn push_list(
    store: &Store,
    session: &Session,
    client: &Client,
    images: &[(Value, Image)],
    reference: &Reference,
    compression: PushCompression,
    progress: &dyn Progress,
) -> Result<(Digest, usize), Error> {
    let repository = client.repository(reference)?;
    Destination { store, session, repository, reference, compression, progress }.list(images)
}

struct Destination<'a> {
    store: &'a Store,
    session: &'a Session,
    repository: Repository,
    reference: &'a Reference,
    compression: PushCompression,
    progress: &'a dyn Progress,
}

impl Destination<'_> {
    /// Without `which`, under its own digest.
    fn image(&self, image: &Image, which: Option<&Which>) -> Result<(Digest, usize), Error> {
        let is_docker = image.media_type() == media_type::DOCKER_MANIFEST;
        let mut layers = Vec::new();
        for (at, layer) in image.manifest.layers().iter().enumerate() {
            layers.push(Outgoing {
                diff_id: image.diff_ids().get(at).copied(),
                digest: config::digest_of(layer)?,
                media_type: layer.media_type().as_ref().to_owned(),
                size: layer.size(),
            });
        }
        let bytes = LayersOf { store: self.store, image };
        let mut sender = Sender::new(
            self.store,
            self.session,
            &self.repository,
            &layers,
            &bytes,
            self.compression.for_manifest(is_docker),
            self.progress,
        );
        sender.mount_from = other_repositories(image, self.reference);
        sender.is_docker = is_docker;
        let sent = sender.all()?;
        let size = image.config_bytes.len() as u64;
        self.repository.push_blob(&image.id, size, image.config_bytes.as_slice(), &[], &mut |_| {})?;
        let manifest = with_layers(image, &sent)?;
        let own = Which::Digest(Digest::of(&manifest));
        let digest = self.repository.put_manifest(which.unwrap_or(&own), image.media_type(), &manifest)?;
        Ok((digest, manifest.len()))
    }

    fn list(&self, images: &[(Value, Image)]) -> Result<(Digest, usize), Error> {
        let mut entries = Vec::new();
        for (entry, image) in images {
            let (digest, size) = self.image(image, None)?;
            let mut entry = entry.clone();
            entry["digest"] = json!(digest);
            entry["size"] = size.into();
            entries.push(entry);
        }
        let list = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries });
        let text = serde_json::to_vec(&list).map_err(Error::json("the list of manifests"))?;
        let digest =
            self.repository.put_manifest(&Which::of(self.reference), media_type::OCI_INDEX, &text)?;
        Ok((digest, text.len()))
    }
}

/// Other repositories of the same registry that may have the layers.
fn other_repositories(image: &Image, reference: &Reference) -> Vec<String> {
    let mut others: Vec<String> = Vec::new();
    for name in image.named.names.iter().chain(&image.named.repo_digests) {
        let Ok(other) = Reference::parse(name) else { continue };
        let same = other.registry() == reference.registry() && other.repository() != reference.repository();
        if same && !others.iter().any(|known| known == other.repository()) {
            others.push(other.repository().to_owned());
        }
    }
    others
}

/// The image's manifest, with other descriptors for those layers that were compressed. All else stays as it is.
fn with_layers(image: &Image, layers: &[Option<Compressed>]) -> Result<Vec<u8>, Error> {
    if layers.iter().all(Option::is_none) {
        return Ok(image.manifest_bytes.clone());
    }
    let mut manifest: Value =
        serde_json::from_slice(&image.manifest_bytes).map_err(Error::json("the image's manifest"))?;
    let descriptors = manifest.get_mut("layers").and_then(Value::as_array_mut);
    for (descriptor, layer) in descriptors.into_iter().flatten().zip(layers) {
        if let (Some(descriptor), Some(layer)) = (descriptor.as_object_mut(), layer) {
            descriptor.insert("mediaType".into(), layer.media_type.into());
            descriptor.insert("digest".into(), json!(layer.blob.digest));
            descriptor.insert("size".into(), layer.blob.size.into());
        }
    }
    serde_json::to_vec(&manifest).map_err(Error::json("the image's manifest"))
}

/// The layers of an image, packed anew where the store has no blob of them.
struct LayersOf<'a> {
    store: &'a Store,
    image: &'a Image,
}

impl LayerBytes for LayersOf<'_> {
    fn copy(&self, at: usize, out: &mut dyn Write) -> Result<(), Error> {
        copy_layer(self.store, self.image, at, out).map(|_| ())
    }
}
