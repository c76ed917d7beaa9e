//! Loading: docker-archive in its old and its new form, oci-archive, and directories of these.

use std::collections::HashMap;

use oci_spec::image::ImageManifest;
use serde::Deserialize;
use serde_json::Value;

use super::source::{Section, Source};
use crate::config::{self, Config};
use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::fetch::{LayerProvider, WantedLayer, take_layers};
use crate::media_type;
use crate::reference::Reference;
use crate::store::{Session, Store, choose_from_index};

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// The names that mean it now, as people write them.
    pub names: Vec<String>,
    /// What could not be kept.
    pub warnings: Vec<String>,
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerItem {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Where a layer is in the archive, with the digest and size of its blob where they are known.
type LayerPlace = (String, Option<(Digest, u64)>);

/// What is to be taken in for one image: where its documents are. They are read one image at a time.
struct Plan {
    config: Place,
    /// The manifest and its media type, where the archive has one; else the layers.
    manifest: Result<(Digest, String), Vec<String>>,
    names: Vec<Reference>,
}

/// Where a config is.
enum Place {
    Name(String),
    Blob(Digest),
}

/// Takes all images of `source` in. Layers that the store has are not read again; several are read at once.
///
/// # Errors
/// When the archive is none, or damaged; images before the damaged one are loaded then.
pub fn load(store: &Store, session: &Session, source: &Source) -> Result<Vec<Loaded>, Error> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    load_by(store, session, source, threads)
}

/// [`load`] by so many threads. With one, a layer is in its place before the next begins.
pub(crate) fn load_by(
    store: &Store,
    session: &Session,
    source: &Source,
    threads: usize,
) -> Result<Vec<Loaded>, Error> {
    let plans = if source.find("manifest.json")?.is_some() {
        docker_plans(source)?
    } else if source.find("index.json")?.is_some() {
        oci_plans(source)?
    } else {
        return Err(Error::Unsupported(
            "the archive holds no images: it has neither manifest.json (docker-archive) nor index.json \
             (oci-archive); a root filesystem is taken in by `layerfs import`"
                .into(),
        ));
    };
    plans.into_iter().map(|plan| take_in(store, session, source, plan, threads)).collect()
}

fn docker_plans(source: &Source) -> Result<Vec<Plan>, Error> {
    let text = source.document("manifest.json")?;
    let items: Vec<DockerItem> = serde_json::from_slice(&text).map_err(Error::json("manifest.json"))?;
    // From docker 25 on the archive is an OCI layout too, whose manifests are kept as they are.
    let mut manifests = HashMap::new();
    if source.find("index.json")?.is_some() {
        for found in manifests_in(source, &source.document("index.json")?, 0)? {
            manifests.entry(found.config).or_insert((found.digest, found.media_type));
        }
    }
    let mut ids: HashMap<String, Digest> = HashMap::new();
    let mut plans = Vec::new();
    for item in items {
        let id = match ids.get(&item.config) {
            Some(id) => *id,
            None => {
                let id = Digest::of(&source.document(&item.config)?);
                *ids.entry(item.config.clone()).or_insert(id)
            }
        };
        let tags = item.repo_tags.unwrap_or_default();
        let names = tags.iter().map(|name| parse_name(name)).collect::<Result<_, _>>()?;
        let manifest = manifests.get(&id).cloned().ok_or_else(|| item.layers.unwrap_or_default());
        plans.push(Plan { config: Place::Name(item.config), manifest, names });
    }
    Ok(plans)
}

fn oci_plans(source: &Source) -> Result<Vec<Plan>, Error> {
    let mut plans: Vec<Plan> = Vec::new();
    let mut known: HashMap<Digest, usize> = HashMap::new();
    for found in manifests_in(source, &source.document("index.json")?, 0)? {
        if let Some(at) = known.get(&found.digest) {
            plans[*at].names.extend(found.name);
            continue;
        }
        known.insert(found.digest, plans.len());
        plans.push(Plan {
            config: Place::Blob(found.config),
            manifest: Ok((found.digest, found.media_type)),
            names: found.name.into_iter().collect(),
        });
    }
    if plans.is_empty() {
        return Err(Error::document("the archive", "there is no image for this machine in it"));
    }
    Ok(plans)
}

struct FoundManifest {
    digest: Digest,
    config: Digest,
    media_type: String,
    name: Option<Reference>,
}

/// The manifests that an index leads to, one for each of its entries; of lists for several platforms the one for
/// this machine.
fn manifests_in(source: &Source, index: &[u8], depth: usize) -> Result<Vec<FoundManifest>, Error> {
    let index: Value = serde_json::from_slice(index).map_err(Error::json("index.json"))?;
    let mut found = Vec::new();
    for entry in index["manifests"].as_array().into_iter().flatten() {
        let mut digest = Digest::parse(entry["digest"].as_str().unwrap_or_default())?;
        let mut bytes = verified(source.document(&blob_name(&digest))?, &digest)?;
        let mut media_type = entry["mediaType"].as_str().unwrap_or(media_type::OCI_MANIFEST).to_owned();
        if media_type::is_index(&media_type) {
            if depth > 2 {
                return Err(Error::document("index.json", "lists of manifests without end"));
            }
            let Ok(Some(chosen)) = choose_from_index(&bytes) else { continue };
            digest = chosen;
            bytes = verified(source.document(&blob_name(&digest))?, &digest)?;
            media_type = media_type::OCI_MANIFEST.to_owned();
        }
        // Signatures and attestations travel in the same layouts.
        let Ok(manifest) = config::parse_manifest(&bytes) else { continue };
        if !media_type::is_config(manifest.config().media_type().as_ref()) {
            continue;
        }
        if let Some(own) = manifest.media_type() {
            media_type = own.to_string();
        }
        let config = config::digest_of(manifest.config())?;
        found.push(FoundManifest { name: name_of(entry), digest, config, media_type });
    }
    Ok(found)
}

/// containerd's annotation is a whole name; OCI's may be one, or a tag alone, which names nothing.
fn name_of(entry: &Value) -> Option<Reference> {
    let annotation = |name: &str| entry["annotations"][name].as_str();
    if let Some(name) = annotation("io.containerd.image.name") {
        return Reference::parse(name).ok();
    }
    let name = annotation("org.opencontainers.image.ref.name")?;
    if !name.contains([':', '/']) {
        return None;
    }
    Reference::parse(name).ok()
}

fn blob_layers(manifest: &ImageManifest) -> Result<Vec<LayerPlace>, Error> {
    manifest
        .layers()
        .iter()
        .map(|layer| {
            let digest = config::digest_of(layer)?;
            Ok((blob_name(&digest), Some((digest, layer.size()))))
        })
        .collect()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn verified(bytes: Vec<u8>, expected: &Digest) -> Result<Vec<u8>, Error> {
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(&bytes);
    let found = hasher.finish();
    if found == *expected {
        return Ok(bytes);
    }
    Err(Error::wrong_digest("a document of the archive", *expected, found))
}

fn parse_name(name: &str) -> Result<Reference, Error> {
    Reference::parse(name).map_err(|error| Error::Name { name: name.to_owned(), why: error.to_string() })
}

fn take_in(
    store: &Store,
    session: &Session,
    source: &Source,
    plan: Plan,
    threads: usize,
) -> Result<Loaded, Error> {
    let config_bytes = match &plan.config {
        Place::Name(name) => source.document(name)?,
        Place::Blob(digest) => verified(source.document(&blob_name(digest))?, digest)?,
    };
    let config = Config::parse(&config_bytes)?;
    let (layers, manifest) = match plan.manifest {
        Ok((digest, media_type)) => {
            let bytes = verified(source.document(&blob_name(&digest))?, &digest)?;
            (blob_layers(&config::parse_manifest(&bytes)?)?, Some((bytes, media_type)))
        }
        Err(layers) => (layers.into_iter().map(|path| (path, None)).collect(), None),
    };
    let diff_ids = &config.rootfs.diff_ids;
    if layers.len() != diff_ids.len() {
        let (layers, ids) = (layers.len(), diff_ids.len());
        return Err(Error::document(
            "the archive",
            format!("an image has {layers} layers, its config {ids}"),
        ));
    }
    let wanted: Vec<WantedLayer> = (layers.iter().zip(diff_ids))
        .map(|((_, blob), diff_id)| WantedLayer { diff_id: *diff_id, blob: *blob })
        .collect();
    let provider = FromArchive { source, layers: &layers };
    let (blobs, warnings) = take_layers(store, session, &wanted, &provider, threads)?;
    let id = store.add_blob(session, &config_bytes)?;
    let (manifest, media_type) = match manifest {
        Some(manifest) => manifest,
        None => {
            let bytes = config::new_manifest((id, config_bytes.len() as u64), &blobs)?;
            (bytes, media_type::OCI_MANIFEST.to_owned())
        }
    };
    let digest = store.add_blob(session, &manifest)?;
    store.publish(session, (digest, manifest.len() as u64, &media_type), &plan.names, None)?;
    Ok(Loaded { id, names: plan.names.iter().map(Reference::familiar).collect(), warnings })
}

struct FromArchive<'a> {
    source: &'a Source,
    layers: &'a [LayerPlace],
}

impl LayerProvider for FromArchive<'_> {
    type Reader = Section;

    fn open(&self, at: usize) -> Result<Section, Error> {
        let path = self.layers.get(at).map_or("", |(path, _)| path);
        self.source
            .find(path)?
            .ok_or_else(|| Error::document("the archive", format!("layer {path:?} is missing in it")))
    }
}
