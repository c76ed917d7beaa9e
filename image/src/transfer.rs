//! Pulling and pushing: between a registry and the store.
//!
//! A pull is one pass for each layer, several at once: what comes from the network is verified, kept, decompressed
//! and unpacked while it streams. The image has its name when all of it is on disk, and not before.

mod push;
mod send;
mod steps;

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use oci_spec::image::ImageManifest;

use crate::config::{self, Config, MAX_DOCUMENT};
use crate::digest::{Digest, MismatchError};
use crate::error::Error;
use crate::fetch::{LayerProvider, WantedLayer, take_layers};
use crate::media_type;
use crate::reference::Reference;
use crate::registry::platform::choose;
use crate::registry::{BlobReader, Client, Document, Manifest, Platform, RegistryError, Repository, Which};
use crate::store::{Session, Store};

pub use push::{PushCompression, push, push_list};
pub use steps::{CacheForm, INLINE, RemoteSteps, inline_steps, push_steps};

/// Layers that are transferred at once, as docker has it.
pub const PARALLEL: usize = 3;

/// How the transfer of a layer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerEnd {
    /// It was there already.
    Known,
    /// The registry took it over from another repository of its own.
    Mounted,
    /// It went through.
    Transferred,
}

/// Hears how a transfer goes. Called from several threads.
pub trait Progress: Sync {
    /// A layer is wanted: its place among the layers, its digest and its size in bytes.
    fn begin(&self, _at: usize, _digest: &Digest, _size: u64) {}
    /// So many of its bytes went through.
    fn advance(&self, _at: usize, _bytes: u64) {}
    /// It is done.
    fn end(&self, _at: usize, _how: LayerEnd) {}
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its id.
    pub id: Digest,
    /// Digest of what its name stands for at the registry: a manifest, or a list of them.
    pub digest: Digest,
    /// Nothing was new.
    pub up_to_date: bool,
    /// What could not be kept of it.
    pub warnings: Vec<String>,
}

/// Pulls the image called `reference` for `platform`.
///
/// # Errors
/// When the registry does not give it, when content is not what it should be, when the disk is full. Finished layers
/// stay for the next attempt until something is collected.
pub fn pull(
    store: &Store,
    session: &Session,
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<Pulled, Error> {
    let repository = client.repository(reference)?;
    let top = repository.manifest(&Which::of(reference))?;
    let (manifest, parsed) = image_manifest(&repository, &top, platform)?;
    if !media_type::is_config(parsed.config().media_type().as_ref()) {
        let kind = parsed.config().media_type();
        return Err(Error::Unsupported(format!("{}: it is no image but holds {kind}", reference.familiar())));
    }
    let id = config::digest_of(parsed.config())?;
    let config_bytes = match store.read_blob(&id) {
        Ok(bytes) => bytes,
        Err(_) => read_document(&repository, &id, parsed.config().size())?,
    };
    let config = Config::parse(&config_bytes)?;
    if config.rootfs.diff_ids.len() != parsed.layers().len() {
        let (layers, ids) = (parsed.layers().len(), config.rootfs.diff_ids.len());
        return Err(Error::document(
            "the image",
            format!("its manifest has {layers} layers and its config {ids}"),
        ));
    }
    let mut wanted = Vec::new();
    for (at, (layer, diff_id)) in parsed.layers().iter().zip(&config.rootfs.diff_ids).enumerate() {
        let digest = config::digest_of(layer)?;
        progress.begin(at, &digest, layer.size());
        wanted.push(WantedLayer { diff_id: *diff_id, blob: Some((digest, layer.size())) });
    }
    let before = store.named()?;
    let readers = Mutex::default();
    let provider = FromRegistry { repository: &repository, layers: &wanted, progress, failed: &readers };
    let (_, warnings) = take_layers(store, session, &wanted, &provider, PARALLEL)
        .map_err(|error| provider.told_by_the_registry(error))?;
    store.add_blob(session, &config_bytes)?;
    store.add_blob(session, &manifest.bytes)?;
    let names: Vec<Reference> = match (reference.tag(), reference.digest()) {
        (Some(_), None) => vec![reference.clone()],
        _ => Vec::new(),
    };
    let repo_digest = reference.with_digest(top.digest).to_string();
    let described = (manifest.digest, manifest.bytes.len() as u64, manifest.media_type.as_str());
    store.publish(session, described, &names, Some(&repo_digest))?;
    let known = before.iter().any(|image| {
        image.manifest == manifest.digest && names.iter().all(|name| image.names.contains(&name.to_string()))
    });
    Ok(Pulled { id, digest: top.digest, up_to_date: known, warnings })
}

/// The manifest of one image: `top` itself, or the one for `platform` that it lists.
fn image_manifest(
    repository: &Repository,
    top: &Manifest,
    platform: &Platform,
) -> Result<(Manifest, ImageManifest), Error> {
    let malformed = |why: String| Error::document(format!("manifest {}", top.digest), why);
    let mut manifest = top.clone();
    for _ in 0..3 {
        match manifest.document().map_err(malformed)? {
            Document::Image(image) => return Ok((manifest, *image)),
            Document::Index(index) => {
                let chosen = choose(index.manifests(), platform).map_err(|there_are| {
                    let list = there_are.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    Error::Unsupported(format!(
                        "no matching manifest for {platform} in the list of {}; there are: {list}",
                        repository.name()
                    ))
                })?;
                manifest = repository.manifest(&Which::Digest(config::digest_of(chosen)?))?;
            }
        }
    }
    Err(malformed("lists of manifests without end".into()))
}

/// Reads a config, which has at most [`MAX_DOCUMENT`] bytes.
///
/// # Errors
/// Not found, wrong digest or length, not reached.
pub fn read_document(repository: &Repository, digest: &Digest, size: u64) -> Result<Vec<u8>, Error> {
    if size > MAX_DOCUMENT {
        return Err(Error::document(format!("config {digest}"), format!("{size} bytes are too many")));
    }
    let mut bytes = Vec::new();
    let mut reader = repository.blob(digest, Some(size))?;
    reader.read_to_end(&mut bytes).map_err(Error::read(format!("config {digest}")))?;
    Ok(bytes)
}

struct FromRegistry<'a> {
    repository: &'a Repository,
    layers: &'a [WantedLayer],
    progress: &'a dyn Progress,
    failed: &'a Mutex<Failed>,
}

/// What the readers of a pull know of its failure, and decoders and unpackers between them and the store do not.
#[derive(Debug, Default)]
struct Failed {
    /// Why one of them could not go on.
    error: Option<RegistryError>,
    /// Those that came to their end: what they gave may have another digest.
    ended: Vec<BlobReader>,
}

impl FromRegistry<'_> {
    /// The failure in the registry's words, where it is the registry's.
    fn told_by_the_registry(&self, error: Error) -> Error {
        let Error::Read { source, .. } = &error else { return error };
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = failed.error.take() {
            return cause.into();
        }
        let mismatch = source.get_ref().and_then(|inner| inner.downcast_ref::<MismatchError>());
        if let Some(MismatchError::Digest { expected, found }) = mismatch
            && let Some(reader) = failed.ended.iter().find(|reader| reader.digest() == expected)
        {
            return reader.wrong_digest(*found).into();
        }
        error
    }
}

impl<'a> LayerProvider for FromRegistry<'a> {
    type Reader = Counted<'a>;

    fn open(&self, at: usize) -> Result<Counted<'a>, Error> {
        let layer = self.layers.get(at).and_then(|layer| layer.blob);
        let (digest, size) = layer.ok_or_else(|| Error::document("the image", "too few layers"))?;
        // The store hashes what it takes in: once is enough.
        let reader = self.repository.blob_to_be_verified(&digest, Some(size))?;
        Ok(Counted { reader: Some(reader), at, count: 0, progress: self.progress, failed: self.failed })
    }

    fn known(&self, at: usize) {
        self.progress.end(at, LayerEnd::Known);
    }

    fn done(&self, at: usize) {
        self.progress.end(at, LayerEnd::Transferred);
    }
}

/// Tells of each piece that came.
pub struct Counted<'a> {
    reader: Option<BlobReader>,
    at: usize,
    count: u64,
    progress: &'a dyn Progress,
    failed: &'a Mutex<Failed>,
}

impl std::fmt::Debug for Counted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counted").field("at", &self.at).field("count", &self.count).finish_non_exhaustive()
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(reader) = &mut self.reader else { return Ok(0) };
        let len = match reader.read(buffer) {
            Ok(len) => len,
            Err(error) => {
                let kind = error.kind();
                let Some(cause) = error.into_inner() else { return Err(kind.into()) };
                let words = cause.to_string();
                if let Ok(cause) = cause.downcast::<RegistryError>() {
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.error.get_or_insert(*cause);
                }
                return Err(io::Error::new(kind, words));
            }
        };
        if len == 0 && !buffer.is_empty() {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.ended.extend(self.reader.take());
        }
        self.count += len as u64;
        self.progress.advance(self.at, self.count);
        Ok(len)
    }
}
