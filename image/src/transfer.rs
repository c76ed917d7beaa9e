//! Pulling and pushing: between a registry and the store.
//!
//! A pull is one pass for each layer, several at once: what comes from the network is verified, kept, decompressed
//! and unpacked while it streams. The image has its name when all of it is on disk, and not before.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use oci_spec::image::ImageManifest;

use crate::archive::copy_layer;
use crate::config::{self, Config, MAX_DOCUMENT};
use crate::digest::Digest;
use crate::error::Error;
use crate::fetch::{LayerProvider, WantedLayer, take_layers};
use crate::media_type;
use crate::reference::Reference;
use crate::registry::platform::choose;
use crate::registry::{Client, Document, Manifest, Platform, Repository, Uploaded, Which};
use crate::store::{Image, Session, Store};

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
    let provider = FromRegistry { repository: &repository, layers: &wanted, progress };
    let (_, warnings) = take_layers(store, session, &wanted, &provider, PARALLEL)?;
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

fn read_document(repository: &Repository, digest: &Digest, size: u64) -> Result<Vec<u8>, Error> {
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
}

impl<'a> LayerProvider for FromRegistry<'a> {
    type Reader = Counted<'a>;

    fn open(&self, at: usize) -> Result<Counted<'a>, Error> {
        let layer = self.layers.get(at).and_then(|layer| layer.blob);
        let (digest, size) = layer.ok_or_else(|| Error::document("the image", "too few layers"))?;
        let reader: Box<dyn Read + Send> = Box::new(self.repository.blob(&digest, Some(size))?);
        Ok(Counted { reader, at, count: 0, progress: self.progress })
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
    reader: Box<dyn Read + Send>,
    at: usize,
    count: u64,
    progress: &'a dyn Progress,
}

impl std::fmt::Debug for Counted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counted").field("at", &self.at).field("count", &self.count).finish_non_exhaustive()
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(buffer)?;
        self.count += len as u64;
        self.progress.advance(self.at, self.count);
        Ok(len)
    }
}

/// Pushes `image` under the name `reference`. Answers with the digest that the registry has it by.
///
/// # Errors
/// When the registry refuses it; when a blob is missing or damaged here.
pub fn push(
    store: &Store,
    session: &Session,
    client: &Client,
    image: &Image,
    reference: &Reference,
    progress: &dyn Progress,
) -> Result<Digest, Error> {
    let repository = client.repository(reference)?;
    // Other repositories of the registry that may have the layers.
    let mut mount_from: Vec<String> = Vec::new();
    for name in image.named.names.iter().chain(&image.named.repo_digests) {
        let Ok(other) = Reference::parse(name) else { continue };
        let same = other.registry() == reference.registry() && other.repository() != reference.repository();
        if same && !mount_from.iter().any(|known| known == other.repository()) {
            mount_from.push(other.repository().to_owned());
        }
    }
    let layers = image.manifest.layers();
    for (at, layer) in layers.iter().enumerate() {
        progress.begin(at, &config::digest_of(layer)?, layer.size());
    }
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= layers.len() {
                return;
            }
            if let Err(error) = push_layer(store, session, &repository, image, at, &mount_from, progress) {
                next.store(layers.len(), Ordering::Relaxed);
                if let Ok(mut slot) = failure.lock() {
                    slot.get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..PARALLEL.min(layers.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    if let Ok(Some(error)) = failure.into_inner() {
        return Err(error);
    }
    let size = image.config_bytes.len() as u64;
    repository.push_blob(&image.id, size, image.config_bytes.as_slice(), &[], &mut |_| {})?;
    let digest = repository.put_manifest(&Which::of(reference), image.media_type(), &image.manifest_bytes)?;
    let repo_digest = reference.with_digest(digest).to_string();
    let size = std::fs::metadata(store.blob_path(&image.named.manifest)).map_or(0, |blob| blob.len());
    let described = (image.named.manifest, size, image.named.media_type.as_str());
    store.publish(session, described, &[], Some(&repo_digest))?;
    Ok(digest)
}

fn push_layer(
    store: &Store,
    session: &Session,
    repository: &Repository,
    image: &Image,
    at: usize,
    mount_from: &[String],
    progress: &dyn Progress,
) -> Result<(), Error> {
    let Some(descriptor) = image.manifest.layers().get(at) else { return Ok(()) };
    let digest = config::digest_of(descriptor)?;
    let source = LayerSource { store, session, image, at, digest, packed: Mutex::new(None) };
    let uploaded = repository.push_blob(&digest, descriptor.size(), &source, mount_from, &mut |bytes| {
        progress.advance(at, bytes)
    })?;
    progress.end(
        at,
        match uploaded {
            Uploaded::Existed => LayerEnd::Known,
            Uploaded::Mounted => LayerEnd::Mounted,
            Uploaded::Sent => LayerEnd::Transferred,
        },
    );
    Ok(())
}

/// A layer's blob; where there is none, the layer is packed when it turns out that the registry needs it.
struct LayerSource<'a> {
    store: &'a Store,
    session: &'a Session,
    image: &'a Image,
    at: usize,
    digest: Digest,
    packed: Mutex<Option<PathBuf>>,
}

impl LayerSource<'_> {
    fn pack(&self) -> Result<PathBuf, Error> {
        let path = self.session.path().join(format!("packed-{}", self.digest.hex()));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        copy_layer(self.store, self.image, self.at, file)?;
        Ok(path)
    }
}

impl crate::registry::BlobSource for LayerSource<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let path = if self.store.blob_size(&self.digest).is_some() {
            self.store.blob_path(&self.digest)
        } else {
            let mut packed = self.packed.lock().map_err(|_| io::Error::other("packing the layer failed"))?;
            match &*packed {
                Some(path) => path.clone(),
                None => packed.insert(self.pack().map_err(io::Error::other)?).clone(),
            }
        };
        open_at(&path, offset)
    }
}

fn open_at(path: &Path, offset: u64) -> io::Result<Box<dyn Read + 'static>> {
    let mut file = File::open(path)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
    Ok(Box::new(file))
}
