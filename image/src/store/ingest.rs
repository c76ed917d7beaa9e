//! Taking layers in: one pass from any reader to blob, tree and index.
//!
//! While the bytes stream they are counted and hashed as they come, written as a blob, decompressed, counted and
//! hashed again as a tar, and unpacked. Memory does not grow with the layer. Nothing is visible before all of it was
//! right and is on disk.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::layers::LayerRecord;
use super::{Session, Store};
use crate::compression::{Compression, decompress};
use crate::digest::{Algorithm, ChainId, DiffId, Digest, Hasher, MismatchError};
use crate::error::Error;
use crate::layer::{Stack, Unpacked, unpack};

/// Bytes read at once.
const BUFFER: usize = 256 * 1024;

/// A layer that is to be taken in.
#[derive(Debug)]
pub struct LayerInput<R> {
    /// Its bytes, compressed or not.
    pub reader: R,
    /// Digest and size that they must have, where that is known.
    pub blob: Option<(Digest, u64)>,
    /// Digest that the uncompressed tar must have, where that is known.
    pub diff_id: Option<DiffId>,
    /// Whether the bytes are kept as a blob.
    pub keep_blob: bool,
}

/// A layer whose bytes are all there and right.
#[derive(Debug)]
pub struct IngestedLayer {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Digest of the bytes as they came.
    pub blob: Digest,
    /// Their number.
    pub size: u64,
    /// How they were compressed.
    pub compression: Compression,
    /// What could not be kept of it.
    pub warnings: Vec<String>,
    staged: Option<(PathBuf, Unpacked, bool)>,
}

impl Store {
    /// Takes a layer in. Its tree is published by [`finish_layer`](Self::finish_layer); its blob, if it is kept, is in
    /// the store when this returns.
    ///
    /// # Errors
    /// When the bytes cannot be read or are not what they should be, when the layer is refused, when the disk is full.
    pub fn ingest_layer<R: Read>(
        &self,
        session: &Session,
        input: LayerInput<R>,
    ) -> Result<IngestedLayer, Error> {
        let name = input.diff_id.map(|diff_id| diff_id.0).or(input.blob.map(|blob| blob.0));
        let shown = name.map_or_else(|| "of the archive".to_owned(), |digest| digest.to_string());
        let directory = tempfile::Builder::new()
            .prefix("layer-")
            .tempdir_in(session.path())
            .map_err(Error::io("make a directory in", session.path()))?
            .keep();
        let tree = directory.join("tree");
        fs::create_dir(&tree).map_err(Error::io("make", &tree))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&tree, flags, Mode::empty()).map_err(Error::io("open", &tree))?;
        let blob_path = directory.join("blob");
        let copy = match input.keep_blob {
            true => Some(File::create(&blob_path).map_err(Error::io("create", &blob_path))?),
            false => None,
        };
        let mut tee = Tee::new(input.reader, input.blob, copy);
        let marks = self.marks(session)?;
        let read = |source| Error::Read { what: format!("layer {shown}"), source };
        let unpack_error = |tee_error: Option<io::Error>, source| match tee_error {
            // What the archive's reader makes of a broken stream is less telling.
            Some(error) => Error::Read { what: format!("layer {shown}"), source: error },
            None => Error::Unpack { layer: shown.clone(), source },
        };
        let mut diff_id = None;
        let compression;
        let unpacked;
        {
            let (found, plain) = decompress(BufReader::with_capacity(BUFFER, &mut tee)).map_err(read)?;
            compression = found;
            if compression == Compression::None && input.diff_id.is_none_or(is_sha256) {
                unpacked = unpack(plain, root, marks, self.limits);
            } else {
                let limit = self.limits.stream();
                let algorithm = input.diff_id.map_or(Algorithm::Sha256, |diff_id| diff_id.0.algorithm());
                let mut plain = BufReader::with_capacity(BUFFER, Hashed::new(plain, algorithm, limit));
                unpacked = unpack(&mut plain, root, marks, self.limits);
                diff_id = Some(DiffId(plain.into_inner().hasher.finish()));
            }
        }
        let unpacked = match unpacked {
            Ok(unpacked) => unpacked,
            Err(source) => return Err(unpack_error(tee.error.take(), source)),
        };
        // What follows a compressed stream belongs to the blob.
        io::copy(&mut tee, &mut io::sink()).map_err(read)?;
        let (blob, size, copy) = tee.finish().map_err(read)?;
        let diff_id = diff_id.unwrap_or(DiffId(blob));
        if let Some(expected) = input.diff_id.filter(|expected| *expected != diff_id) {
            return Err(Error::wrong_digest(format!("layer {shown}, uncompressed,"), expected.0, diff_id.0));
        }
        let mut layer = IngestedLayer {
            diff_id,
            blob,
            size,
            compression,
            warnings: unpacked.warnings().to_vec(),
            staged: Some((directory.clone(), unpacked, false)),
        };
        if let Some((_, unpacked, done)) = &mut layer.staged
            && !unpacked.needs_lowers()
        {
            self.complete(&directory, unpacked, &Stack::new(Vec::new()), &diff_id)?;
            *done = true;
        }
        if let Some(copy) = copy {
            copy.sync_all().map_err(Error::io("sync", &blob_path))?;
            self.place_blob(&blob_path, &blob)?;
        }
        Ok(layer)
    }

    fn complete(
        &self,
        directory: &std::path::Path,
        unpacked: &mut Unpacked,
        lowers: &Stack,
        diff_id: &DiffId,
    ) -> Result<(), Error> {
        // Before the index, which must not describe what a crash took away.
        let file = File::open(directory).map_err(Error::io("open", directory))?;
        let refused = |source| Error::Unpack { layer: diff_id.to_string(), source };
        let index = directory.join("tree.layerfs-index");
        unpacked.finish(lowers, &*self.indexer, &index).map_err(refused)?;
        rustix::fs::syncfs(&file).map_err(Error::io("sync", directory))
    }

    /// Publishes a layer on top of `below` (the lowest first), which are published already.
    ///
    /// # Errors
    /// When a hard link leads to what is not below; those of the disk.
    pub fn finish_layer(
        &self,
        session: &Session,
        layer: &mut IngestedLayer,
        below: &[DiffId],
    ) -> Result<LayerRecord, Error> {
        let Some((directory, mut unpacked, done)) = layer.staged.take() else {
            return self
                .layer(&layer.diff_id)
                .ok_or_else(|| Error::document("layer", format!("{} is gone", layer.diff_id)));
        };
        let linked = unpacked.links_below();
        if !done {
            self.complete(&directory, &mut unpacked, &self.stack(below)?, &layer.diff_id)?;
        }
        let record = LayerRecord {
            diff_id: layer.diff_id,
            size: unpacked.bytes(),
            entries: unpacked.entries(),
            overrides: unpacked.marks().overrides,
            only_on: ChainId::chain(below).last().copied().filter(|_| linked),
            packed_size: None,
        };
        self.place_layer(session, &directory, &record)?;
        self.record_expansion(&layer.diff_id, &layer.blob)?;
        Ok(record)
    }
}

fn is_sha256(diff_id: DiffId) -> bool {
    diff_id.0.algorithm() == Algorithm::Sha256
}

/// Bytes as they come: hashed, counted, copied.
struct Tee<R> {
    input: R,
    hasher: Hasher,
    expected: Option<(Digest, u64)>,
    count: u64,
    copy: Option<File>,
    error: Option<io::Error>,
}

impl<R: Read> Tee<R> {
    fn new(input: R, expected: Option<(Digest, u64)>, copy: Option<File>) -> Self {
        let algorithm = expected.map_or(Algorithm::Sha256, |(digest, _)| digest.algorithm());
        Self { input, hasher: Hasher::new(algorithm), expected, count: 0, copy, error: None }
    }

    fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.count += len as u64;
        if let Some((digest, expected)) = self.expected.filter(|(_, size)| self.count > *size) {
            return Err(MismatchError::Long { digest, expected }.into());
        }
        self.hasher.update(&buffer[..len]);
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..len])?;
        }
        Ok(len)
    }

    fn finish(self) -> io::Result<(Digest, u64, Option<File>)> {
        let found = self.hasher.finish();
        if let Some((digest, expected)) = self.expected {
            if self.count < expected {
                return Err(MismatchError::Short { digest, expected, found: self.count }.into());
            }
            if found != digest {
                return Err(MismatchError::Digest { expected: digest, found }.into());
            }
        }
        Ok((found, self.count, self.copy))
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.take(buffer).inspect_err(|error| {
            // Kept, since whoever reads through a decoder sees it wrapped or not at all.
            let again = match error.get_ref().and_then(|inner| inner.downcast_ref::<MismatchError>()) {
                Some(mismatch) => mismatch.clone().into(),
                None => io::Error::new(error.kind(), error.to_string()),
            };
            self.error.get_or_insert(again);
        })
    }
}

/// The uncompressed stream: hashed and counted.
struct Hashed<R> {
    input: R,
    hasher: Hasher,
    left: u64,
    limit: u64,
}

impl<R: BufRead> Hashed<R> {
    fn new(input: R, algorithm: Algorithm, limit: u64) -> Self {
        Self { input, hasher: Hasher::new(algorithm), left: limit, limit }
    }
}

impl<R: BufRead> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.left = self.left.checked_sub(len as u64).ok_or_else(|| {
            let words = format!("the layer expands to more than {} bytes; it is refused", self.limit);
            io::Error::new(io::ErrorKind::InvalidData, words)
        })?;
        self.hasher.update(&buffer[..len]);
        Ok(len)
    }
}
