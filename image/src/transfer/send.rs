//! Layers on their way to a registry, several at once. Those that the store has without compression are compressed; what
//! became of a layer is remembered: where the registry has it, it is not compressed again.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{LayerEnd, PARALLEL, Progress, PushCompression};
use crate::compression::{Compression, Compressors};
use crate::digest::{DiffId, Digest, DigestWriter};
use crate::error::Error;
use crate::media_type;
use crate::registry::{BlobSource, RegistryError, Repository, Uploaded};
use crate::store::{CompressedBlob, Session, Store};

/// Layers below this are sent as they are, in bytes: a header and a file or two.
const WORTH_COMPRESSING: u64 = 4096;
/// Bytes written at once.
const BUFFER: usize = 256 * 1024;

/// A layer that the registry is to have.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) diff_id: Option<DiffId>,
    /// Digest of its blob as the store has it.
    pub(super) digest: Digest,
    pub(super) media_type: String,
    /// Bytes of that blob.
    pub(super) size: u64,
}

/// Gives the bytes of layers as the store has them.
pub(super) trait LayerBytes: Sync {
    /// Writes those of the layer at this place, checked against their digest.
    fn copy(&self, at: usize, out: &mut dyn Write) -> Result<(), Error>;
}

/// A layer as it was sent where that is not as the store has it.
#[derive(Debug, Clone)]
pub(super) struct Compressed {
    pub(super) blob: CompressedBlob,
    pub(super) media_type: &'static str,
}

pub(super) struct Sender<'a> {
    store: &'a Store,
    session: &'a Session,
    repository: &'a Repository,
    layers: &'a [Outgoing],
    bytes: &'a dyn LayerBytes,
    /// Other repositories of the registry that may have the layers.
    pub(super) mount_from: Vec<String>,
    /// Media types are docker's.
    pub(super) is_docker: bool,
    compression: PushCompression,
    /// Made with the first layer that needs them.
    compressors: OnceLock<Compressors>,
    progress: &'a dyn Progress,
}

impl<'a> Sender<'a> {
    /// For layers with OCI's media types, of which no other repository is known to have any.
    pub(super) fn new(
        store: &'a Store,
        session: &'a Session,
        repository: &'a Repository,
        layers: &'a [Outgoing],
        bytes: &'a dyn LayerBytes,
        compression: PushCompression,
        progress: &'a dyn Progress,
    ) -> Self {
        let (mount_from, compressors) = (Vec::new(), OnceLock::new());
        Self {
            store,
            session,
            repository,
            layers,
            bytes,
            mount_from,
            is_docker: false,
            compression,
            compressors,
            progress,
        }
    }

    /// Sends all of them. The answer has those that went otherwise than the store has them.
    ///
    /// # Errors
    /// The first failure; those that are being sent are finished.
    pub(super) fn all(&self) -> Result<Vec<Option<Compressed>>, Error> {
        let count = self.layers.len();
        for (at, layer) in self.layers.iter().enumerate() {
            self.progress.begin(at, &layer.digest, layer.size);
        }
        let sent = Mutex::new(vec![None; count]);
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return;
                }
                match self.layer(at) {
                    Ok(layer) => sent.lock().unwrap_or_else(PoisonError::into_inner)[at] = layer,
                    Err(error) => {
                        next.store(count, Ordering::Relaxed);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..PARALLEL.min(count.max(1)) {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(sent.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

impl Sender<'_> {
    fn layer(&self, at: usize) -> Result<Option<Compressed>, Error> {
        let Some(layer) = self.layers.get(at) else { return Ok(None) };
        let (uploaded, compressed) = match self.wanted(layer)? {
            true => {
                let (uploaded, blob) = self.send_compressed(at, layer)?;
                let media_type = self.compression.media_type(self.is_docker);
                (uploaded, Some(Compressed { blob, media_type }))
            }
            false => {
                let source = LayerSource { sender: self, at, digest: layer.digest, packed: Mutex::new(None) };
                (self.send(at, &layer.digest, layer.size, &source)?, None)
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
    fn send_compressed(&self, at: usize, layer: &Outgoing) -> Result<(Uploaded, CompressedBlob), Error> {
        let (diff_id, digest) = (layer.diff_id, &layer.digest);
        let how = self.compression.name();
        if let Some(known) = diff_id.and_then(|diff_id| self.store.compressed_before(&diff_id, &how)) {
            let source = CompressedSource {
                sender: self,
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
    fn wanted(&self, layer: &Outgoing) -> Result<bool, Error> {
        let digest = &layer.digest;
        let known = matches!(layer.media_type.as_str(), media_type::OCI_LAYER | media_type::DOCKER_LAYER);
        if self.compression == PushCompression::None || layer.size < WORTH_COMPRESSING || !known {
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
        let copy = |out: &mut dyn Write| self.bytes.copy(at, out);
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
    sender: &'a Sender<'a>,
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
        let (path, blob) = self.sender.compress(self.at, self.digest).map_err(io::Error::other)?;
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
    sender: &'a Sender<'a>,
    at: usize,
    digest: Digest,
    packed: Mutex<Option<PathBuf>>,
}

impl LayerSource<'_> {
    fn pack(&self) -> Result<PathBuf, Error> {
        let path = self.sender.session.path().join(format!("packed-{}", self.digest.hex()));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        self.sender.bytes.copy(self.at, &mut { file })?;
        Ok(path)
    }
}

impl BlobSource for LayerSource<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let path = if self.sender.store.blob_size(&self.digest).is_some() {
            self.sender.store.blob_path(&self.digest)
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
