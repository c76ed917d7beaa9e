//! Steps of builds in a registry: pushed as one manifest with all their layers, read and taken one by one.

mod document;

use std::collections::HashMap;
use std::io::{self, Write};

use serde_json::{Value, json};

use self::document::{CACHE_CONFIG, SentLayer};
pub use self::document::{INLINE, inline_steps};
use super::send::{LayerBytes, Outgoing, Sender};
use super::{Progress, PushCompression, image_manifest, read_document};
use crate::config::{Config, digest_of};
use crate::digest::{ChainId, DiffId, Digest, DigestWriter};
use crate::error::Error;
use crate::media_type::{self, Descriptor};
use crate::reference::Reference;
use crate::registry::{Client, Document, Manifest, Platform, Repository, Which};
use crate::store::{LayerInput, Session, StepRecord, Store};

/// As what a registry is given a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheForm {
    /// As the manifest of an image, which every registry takes; else as a list, BuildKit's older form.
    pub as_image: bool,
    /// A list has docker's media types.
    pub docker_types: bool,
    /// What is done to layers that are not compressed.
    pub compression: PushCompression,
}

/// Pushes steps and their layers under the name `reference`, which means them and nothing else then.
///
/// # Errors
/// When the registry refuses it; when a layer is missing or damaged here.
pub fn push_steps(
    store: &Store,
    session: &Session,
    client: &Client,
    reference: &Reference,
    records: &[StepRecord],
    form: CacheForm,
    progress: &dyn Progress,
) -> Result<Digest, Error> {
    let repository = client.repository(reference)?;
    let mut layers: Vec<Outgoing> = Vec::new();
    for record in records {
        if layers.iter().all(|layer| layer.digest != record.blob.0) {
            layers.push(Outgoing {
                diff_id: Some(record.layer),
                digest: record.blob.0,
                media_type: record.media_type.clone(),
                size: record.blob.1,
            });
        }
    }
    let bytes = Blobs { store, layers: &layers };
    let compression = form.compression.for_manifest(form.docker_types);
    let mut sender = Sender::new(store, session, &repository, &layers, &bytes, compression, progress);
    sender.is_docker = form.docker_types;
    let compressed = sender.all()?;
    let mut sent = HashMap::new();
    let mut descriptors = Vec::new();
    for (layer, compressed) in layers.iter().zip(compressed) {
        let now = match compressed {
            Some(new) => SentLayer {
                digest: new.blob.digest,
                size: new.blob.size,
                media_type: new.media_type.to_owned(),
            },
            None => SentLayer {
                digest: layer.digest,
                size: layer.size,
                media_type: match form.docker_types {
                    true => media_type::of_docker(&layer.media_type),
                    false => &layer.media_type,
                }
                .to_owned(),
            },
        };
        descriptors.push(json!({
            "mediaType": now.media_type,
            "digest": now.digest,
            "size": now.size,
            "annotations": { "containerd.io/uncompressed": layer.diff_id },
        }));
        sent.insert(layer.digest, now);
    }
    let config = document::write(records, &sent)?;
    let digest = Digest::of(&config);
    let size = config.len() as u64;
    repository.push_blob(&digest, size, config.as_slice(), &[], &mut |_| {})?;
    let config = json!({ "mediaType": CACHE_CONFIG, "digest": digest, "size": size });
    let (media_type, manifest) = manifest_of(form, config, descriptors);
    let text = serde_json::to_vec(&manifest).map_err(Error::json("the cache's manifest"))?;
    Ok(repository.put_manifest(&Which::of(reference), media_type, &text)?)
}

fn manifest_of(form: CacheForm, config: Value, mut layers: Vec<Value>) -> (&'static str, Value) {
    if form.as_image {
        let media_type = media_type::OCI_MANIFEST;
        return (
            media_type,
            json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers }),
        );
    }
    let media_type = if form.docker_types { media_type::DOCKER_INDEX } else { media_type::OCI_INDEX };
    layers.push(config);
    (media_type, json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": layers }))
}

/// Blobs of the store.
struct Blobs<'a> {
    store: &'a Store,
    layers: &'a [Outgoing],
}

impl LayerBytes for Blobs<'_> {
    fn copy(&self, at: usize, out: &mut dyn Write) -> Result<(), Error> {
        let layer = self.layers.get(at).ok_or_else(|| Error::document("the cache", "too few layers"))?;
        let mut blob = self.store.open_blob(&layer.digest)?;
        let mut writer = DigestWriter::with_algorithm(out, layer.digest.algorithm());
        io::copy(&mut blob, &mut writer).map_err(Error::read(format!("blob {}", layer.digest)))?;
        let (_, found, _) = writer.finish();
        match found == layer.digest {
            true => Ok(()),
            false => Err(Error::wrong_digest(format!("blob {}", layer.digest), layer.digest, found)),
        }
    }
}

/// The steps that a registry has under one name.
#[derive(Debug)]
pub struct RemoteSteps {
    repository: Repository,
    steps: HashMap<Digest, StepRecord>,
}

impl RemoteSteps {
    /// Reads which there are: those of a cache, or those that an image carries (the one for `platform`).
    ///
    /// # Errors
    /// When the registry has nothing under the name, or something that is neither.
    pub fn read(client: &Client, reference: &Reference, platform: &Platform) -> Result<Self, Error> {
        let repository = client.repository(reference)?;
        let top = repository.manifest(&Which::of(reference))?;
        let records = match cache_config(&top)? {
            Some(config) => {
                let digest = digest_of(&config)?;
                document::read(&read_document(&repository, &digest, config.size())?)?
            }
            None => carried(&repository, &top, platform)?,
        };
        let steps = records.into_iter().map(|record| (record.key, record)).collect();
        Ok(Self { repository, steps })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Takes the step with this key into the store, with its layer, if that goes on `below` (the lowest first).
    ///
    /// # Errors
    /// When the registry does not give the layer, when it is not what it should be, when the disk is full.
    pub fn take(
        &self,
        store: &Store,
        session: &Session,
        key: &Digest,
        below: &[DiffId],
    ) -> Result<Option<StepRecord>, Error> {
        let Some(record) = self.steps.get(key) else { return Ok(None) };
        if record.parent != ChainId::chain(below).last().copied() {
            return Ok(None);
        }
        let input = LayerInput {
            // The store hashes what it takes in: once is enough.
            reader: self.repository.blob_to_be_verified(&record.blob.0, Some(record.blob.1))?,
            blob: Some(record.blob),
            diff_id: Some(record.layer),
            keep_blob: true,
        };
        let mut layer = store.ingest_layer(session, input)?;
        store.finish_layer(session, &mut layer, below)?;
        store.publish_steps(session, &mut [], std::slice::from_ref(record))?;
        Ok(Some(record.clone()))
    }
}

/// The descriptor of a cache's config, if it is the manifest of a cache.
fn cache_config(top: &Manifest) -> Result<Option<Descriptor>, Error> {
    let malformed = |why: String| Error::document(format!("manifest {}", top.digest), why);
    let is_config = |descriptor: &&Descriptor| descriptor.media_type().as_ref() == CACHE_CONFIG;
    Ok(match top.document().map_err(malformed)? {
        Document::Image(image) => Some(image.config()).filter(is_config).cloned(),
        Document::Index(index) => index.manifests().iter().find(is_config).cloned(),
    })
}

/// The steps in the config of an image.
fn carried(repository: &Repository, top: &Manifest, platform: &Platform) -> Result<Vec<StepRecord>, Error> {
    let (_, image) = image_manifest(repository, top, platform)?;
    let kind = image.config().media_type();
    if !media_type::is_config(kind.as_ref()) {
        let name = repository.name();
        return Err(Error::Unsupported(format!(
            "{name}: it is no cache of builds and no image but holds {kind}"
        )));
    }
    let bytes = read_document(repository, &digest_of(image.config())?, image.config().size())?;
    let layers = image.layers().iter().map(|layer| {
        Ok(SentLayer {
            digest: digest_of(layer)?,
            size: layer.size(),
            media_type: layer.media_type().as_ref().to_owned(),
        })
    });
    document::read_inline(&Config::parse(&bytes)?, &layers.collect::<Result<Vec<_>, Error>>()?)
}
