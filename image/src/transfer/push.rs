//! Pushing: from the store to a registry. Layers that the store has without compression are compressed on the way, as
//! registries and whoever pulls from them expect; the manifest then says so. What became of a layer is remembered: where
//! the registry has it, it is not compressed again.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use super::{LayerEnd, PARALLEL, Progress};
use crate::archive::copy_layer;
use crate::compression::{Compression, Compressors};
use crate::config;
use crate::digest::{DiffId, Digest, DigestWriter};
use crate::error::Error;
use crate::media_type;
use crate::reference::Reference;
use crate::registry::{BlobSource, Client, RegistryError, Repository, Uploaded, Which};
use crate::store::{CompressedBlob, Image, Session, Store};

/// Layers below this are sent as they are, in bytes: a header and a file or two.
const WORTH_COMPRESSING: u64 = 4096;
/// Bytes written at once.
const BUFFER: usize = 256 * 1024;

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
    fn for_manifest(self, is_docker: bool) -> Self {
        match self {
            Self::Zstd(_) if is_docker => Self::default(),
            other => other,
        }
    }

    /// What records of compressed layers are called by.
    fn name(self) -> String {
        match self {
            Self::None => "none".into(),
            Self::Gzip(level) => format!("gzip-{level}"),
            Self::Zstd(level) => format!("zstd-{level}"),
        }
    }

    /// What a manifest says of a layer so compressed.
    fn media_type(self, is_docker: bool) -> &'static str {
        match (self, is_docker) {
            (Self::Gzip(_), true) => media_type::DOCKER_LAYER_GZIP,
            (Self::Gzip(_), false) => media_type::OCI_LAYER_GZIP,
            (Self::Zstd(_), _) => media_type::OCI_LAYER_ZSTD,
            (Self::None, true) => media_type::DOCKER_LAYER,
            (Self::None, false) => media_type::OCI_LAYER,
        }
    }
}

/// Pushes `image` under the name `reference`. Answers with the digest that the registry has it by, and the size of that
/// manifest in bytes.
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
    let repository = client.repository(reference)?;
    let mount_from = other_repositories(image, reference);
    let layers = image.manifest.layers();
    for (at, layer) in layers.iter().enumerate() {
        progress.begin(at, &config::digest_of(layer)?, layer.size());
    }
    let is_docker = image.media_type() == media_type::DOCKER_MANIFEST;
    let pusher = Pusher {
        store,
        session,
        repository: &repository,
        image,
        mount_from,
        is_docker,
        compression: compression.for_manifest(is_docker),
        compressors: OnceLock::new(),
        progress,
    };
    let sent = Mutex::new(vec![None; layers.len()]);
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= layers.len() {
                return;
            }
            match pusher.layer(at) {
                Ok(layer) => sent.lock().unwrap_or_else(PoisonError::into_inner)[at] = layer,
                Err(error) => {
                    next.store(layers.len(), Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
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
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let size = image.config_bytes.len() as u64;
    repository.push_blob(&image.id, size, image.config_bytes.as_slice(), &[], &mut |_| {})?;
    let manifest = with_layers(image, &sent.into_inner().unwrap_or_else(PoisonError::into_inner))?;
    let digest = repository.put_manifest(&Which::of(reference), image.media_type(), &manifest)?;
    let repo_digest = reference.with_digest(digest).to_string();
    let size = std::fs::metadata(store.blob_path(&image.named.manifest)).map_or(0, |blob| blob.len());
    let described = (image.named.manifest, size, image.named.media_type.as_str());
    store.publish(session, described, &[], Some(&repo_digest))?;
    Ok((digest, manifest.len()))
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

/// A layer as it was sent where that is not as the store has it.
#[derive(Debug, Clone)]
struct Compressed {
    blob: CompressedBlob,
    media_type: &'static str,
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

struct Pusher<'a> {
    store: &'a Store,
    session: &'a Session,
    repository: &'a Repository,
    image: &'a Image,
    mount_from: Vec<String>,
    is_docker: bool,
    compression: PushCompression,
    /// Made with the first layer that needs them.
    compressors: OnceLock<Compressors>,
    progress: &'a dyn Progress,
}

impl Pusher<'_> {
    fn layer(&self, at: usize) -> Result<Option<Compressed>, Error> {
        let Some(descriptor) = self.image.manifest.layers().get(at) else { return Ok(None) };
        let digest = config::digest_of(descriptor)?;
        let (uploaded, compressed) =
            match self.wanted(&digest, descriptor.media_type().as_ref(), descriptor.size())? {
                true => {
                    let (uploaded, blob) = self.send_compressed(at, &digest)?;
                    let media_type = self.compression.media_type(self.is_docker);
                    (uploaded, Some(Compressed { blob, media_type }))
                }
                false => {
                    let source = LayerSource { pusher: self, at, digest, packed: Mutex::new(None) };
                    (self.send(at, &digest, descriptor.size(), &source)?, None)
                }
            };
        self.progress.end(
            at,
            match uploaded {
                Uploaded::Existed => LayerEnd::Known,
                Uploaded::Mounted => LayerEnd::Mounted,
                Uploaded::Sent => LayerEnd::Transferred,
            },
        );
        Ok(compressed)
    }

    fn send<S: BlobSource + ?Sized>(
        &self,
        at: usize,
        digest: &Digest,
        size: u64,
        source: &S,
    ) -> Result<Uploaded, RegistryError> {
        let mut tell = |bytes| self.progress.advance(at, bytes);
        self.repository.push_blob(digest, size, source, &self.mount_from, &mut tell)
    }

    /// Sends the layer compressed. What it was before is offered first: the registry may have it.
    fn send_compressed(&self, at: usize, digest: &Digest) -> Result<(Uploaded, CompressedBlob), Error> {
        let diff_id = self.image.diff_ids().get(at).copied();
        let how = self.compression.name();
        if let Some(known) = diff_id.and_then(|diff_id| self.store.compressed_before(&diff_id, &how)) {
            let source = CompressedSource {
                pusher: self,
                at,
                digest,
                known,
                made: Mutex::new(None),
                is_other: AtomicBool::new(false),
            };
            match self.send(at, &known.digest, known.size, &source) {
                Ok(uploaded) => return Ok((uploaded, known)),
                // Another version of this program compresses otherwise.
                Err(_) if source.is_other.load(Ordering::Relaxed) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (path, blob) = self.compress(at, digest)?;
        if let Some(diff_id) = diff_id {
            self.remember(&diff_id, &how, blob);
        }
        let uploaded = self.send(at, &blob.digest, blob.size, path.as_path())?;
        // Room for the next. What is left goes with the session.
        std::fs::remove_file(path).ok();
        Ok((uploaded, blob))
    }

    fn remember(&self, diff_id: &DiffId, how: &str, blob: CompressedBlob) {
        if let Err(error) = self.store.record_compressed(diff_id, how, blob) {
            tracing::debug!(%error, "the next push compresses again");
        }
    }

    /// Whether the layer is to be compressed: by its bytes, since media types may be wrong.
    fn wanted(&self, digest: &Digest, media_type: &str, size: u64) -> Result<bool, Error> {
        let known = matches!(media_type, media_type::OCI_LAYER | media_type::DOCKER_LAYER);
        if self.compression == PushCompression::None || size < WORTH_COMPRESSING || !known {
            return Ok(false);
        }
        if self.store.blob_size(digest).is_none() {
            // It is packed anew, and that is never compressed.
            return Ok(true);
        }
        let mut start = [0; 6];
        let mut blob = self.store.open_blob(digest)?;
        blob.read_exact(&mut start).map_err(Error::read(format!("blob {digest}")))?;
        Ok(Compression::sniff(&start) == Compression::None)
    }

    /// The layer compressed, in a file of the session.
    fn compress(&self, at: usize, digest: &Digest) -> Result<(PathBuf, CompressedBlob), Error> {
        let path = self.session.path().join(format!("push-{at}-{}", digest.hex()));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let out = BufWriter::with_capacity(BUFFER, DigestWriter::new(file));
        let copy = |out: &mut dyn Write| copy_layer(self.store, self.image, at, out).map(|_| ());
        let failed = |error: io::Error| Error::io("write", &path)(error);
        let out = match self.compression {
            PushCompression::Zstd(level) => {
                let mut encoder = zstd::stream::write::Encoder::new(out, level).map_err(failed)?;
                copy(&mut encoder)?;
                encoder.finish().map_err(failed)?
            }
            PushCompression::Gzip(level) => {
                let mut encoder = self.compressors.get_or_init(Compressors::new).gzip(out, level);
                copy(&mut encoder)?;
                encoder.finish().map_err(failed)?
            }
            PushCompression::None => return Err(Error::Unsupported("no compression was asked for".into())),
        };
        let (_, digest, size) = out.into_inner().map_err(|error| failed(error.into_error()))?.finish();
        Ok((path, CompressedBlob { digest, size }))
    }
}

/// A layer that was compressed before, and is again when it turns out that the registry needs it.
struct CompressedSource<'a> {
    pusher: &'a Pusher<'a>,
    at: usize,
    /// Of the layer's blob.
    digest: &'a Digest,
    known: CompressedBlob,
    made: Mutex<Option<PathBuf>>,
    /// It has become something else.
    is_other: AtomicBool,
}

impl CompressedSource<'_> {
    fn make(&self) -> io::Result<PathBuf> {
        let (path, blob) = self.pusher.compress(self.at, self.digest).map_err(io::Error::other)?;
        if blob != self.known {
            self.is_other.store(true, Ordering::Relaxed);
            return Err(io::Error::other("the layer is compressed to other bytes than before"));
        }
        Ok(path)
    }
}

impl BlobSource for CompressedSource<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let mut made = self.made.lock().map_err(|_| io::Error::other("compressing the layer failed"))?;
        let path = match &*made {
            Some(path) => path.clone(),
            None => made.insert(self.make()?).clone(),
        };
        open_at(&path, offset)
    }
}

impl Drop for CompressedSource<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.made.get_mut().ok().and_then(Option::take) {
            // Room for the next. What is left goes with the session.
            std::fs::remove_file(path).ok();
        }
    }
}

/// A layer's blob; where there is none, the layer is packed when it turns out that the registry needs it.
struct LayerSource<'a> {
    pusher: &'a Pusher<'a>,
    at: usize,
    digest: Digest,
    packed: Mutex<Option<PathBuf>>,
}

impl LayerSource<'_> {
    fn pack(&self) -> Result<PathBuf, Error> {
        let path = self.pusher.session.path().join(format!("packed-{}", self.digest.hex()));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        copy_layer(self.pusher.store, self.pusher.image, self.at, file)?;
        Ok(path)
    }
}

impl BlobSource for LayerSource<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let path = if self.pusher.store.blob_size(&self.digest).is_some() {
            self.pusher.store.blob_path(&self.digest)
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
