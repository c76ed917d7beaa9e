//! Taking all layers of an image in, several at once, from wherever they come.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::digest::{ChainId, DiffId, Digest};
use crate::error::Error;
use crate::media_type;
use crate::store::{IngestedLayer, LayerInput, Session, StagedBlob, StagedLayer, Store};

/// A layer that is wanted.
#[derive(Debug, Clone)]
pub struct WantedLayer {
    /// What it must be when uncompressed.
    pub diff_id: DiffId,
    /// Digest and size of its blob, where they are known; else the blob is whatever comes.
    pub blob: Option<(Digest, u64)>,
}

/// A layer that is there: blob, size in bytes, media type.
pub type Blob = (Digest, u64, &'static str);

/// Gives layers by their place in the list.
pub trait LayerProvider: Sync {
    /// The bytes of one layer.
    type Reader: Read;

    /// Opens the layer at `at`.
    ///
    /// # Errors
    /// When it cannot be had.
    fn open(&self, at: usize) -> Result<Self::Reader, Error>;

    /// Told instead, when the store has the layer already.
    fn known(&self, _at: usize) {}

    /// Told when the layer was read to its end and unpacked.
    fn done(&self, _at: usize) {}
}

enum Taken {
    New(Box<IngestedLayer>),
    Known(Blob),
    /// The same as an earlier one of the image.
    Again,
}

/// Finished layers are put in their places when so many bytes of blobs and trees wait for it, or one of them as long:
/// rarely, since each time costs a sync, and often enough for a killed pull to keep most of what it had. The unit tests, whose
/// layers are tiny, see each of them published.
const PUBLISH_BYTES: u64 = if cfg!(test) { 1 } else { 128 << 20 };
const PUBLISH_AFTER: Duration = Duration::from_secs(1);

/// Layers between being taken in and being published. They are completed from the lowest up, as each may depend on those
/// below it.
struct Assembly {
    slots: Vec<Option<Taken>>,
    /// The lowest layer that is not complete.
    next: usize,
    blobs: Vec<StagedBlob>,
    trees: Vec<StagedLayer>,
    bytes: u64,
    since: Instant,
    /// Where completed layers are that are not published.
    staged: HashMap<DiffId, PathBuf>,
    done: Vec<Option<Blob>>,
    warnings: Vec<String>,
    error: Option<Error>,
}

impl Assembly {
    fn new(count: usize) -> Self {
        Self {
            slots: (0..count).map(|_| None).collect(),
            next: 0,
            blobs: Vec::new(),
            trees: Vec::new(),
            bytes: 0,
            since: Instant::now(),
            staged: HashMap::new(),
            done: vec![None; count],
            warnings: Vec::new(),
            error: None,
        }
    }

    /// A layer was taken in: completes it and those above that waited for it.
    fn add(
        &mut self,
        store: &Store,
        at: usize,
        mut taken: Taken,
        diff_ids: &[DiffId],
        keys: &[(DiffId, Option<Digest>)],
    ) -> Result<(), Error> {
        if let Taken::New(layer) = &mut taken {
            self.bytes += layer.size;
            self.blobs.extend(layer.take_blob());
        }
        self.slots[at] = Some(taken);
        while let Some(taken) = self.slots.get_mut(self.next).and_then(Option::take) {
            let at = self.next;
            self.next += 1;
            match taken {
                Taken::Known(blob) => self.done[at] = Some(blob),
                Taken::Again => {
                    let first = keys.iter().position(|key| *key == keys[at]).unwrap_or(0);
                    self.done[at] = self.done[first];
                }
                Taken::New(mut layer) => {
                    if let Some(staged) = store.complete_layer(&mut layer, &diff_ids[..at], &self.staged)? {
                        self.bytes += staged.bytes();
                        self.staged.insert(diff_ids[at], staged.directory().to_owned());
                        self.trees.push(staged);
                    }
                    self.warnings.append(&mut layer.warnings);
                    let media_type = layer.compression.layer_media_type().unwrap_or(media_type::OCI_LAYER);
                    self.done[at] = Some((layer.blob, layer.size, media_type));
                }
            }
        }
        Ok(())
    }

    /// What is to be published, when it is time.
    fn due(&mut self, now: bool) -> (Vec<StagedBlob>, Vec<StagedLayer>) {
        if !now && self.bytes < PUBLISH_BYTES && self.since.elapsed() < PUBLISH_AFTER {
            return (Vec::new(), Vec::new());
        }
        self.bytes = 0;
        self.since = Instant::now();
        (std::mem::take(&mut self.blobs), std::mem::take(&mut self.trees))
    }
}

/// Takes `layers` (the lowest first) in, at most `parallel` at once, and publishes them from the lowest up. What the
/// store has is not asked for. Answers with their blobs, and with what could not be kept of them.
///
/// # Errors
/// The first failure; the others are not waited for longer than they need to notice. What was finished until then is
/// published all the same, for the next attempt.
pub fn take_layers<P: LayerProvider>(
    store: &Store,
    session: &Session,
    layers: &[WantedLayer],
    provider: &P,
    parallel: usize,
) -> Result<(Vec<Blob>, Vec<String>), Error> {
    // What an earlier attempt left may have its names but in memory.
    session.note_unsynced();
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
    let chain = ChainId::chain(&diff_ids);
    let assembly = Mutex::new(Assembly::new(layers.len()));
    let publishing = Mutex::new(());
    let next = AtomicUsize::new(0);
    // The same layer twice in one image is taken in once, unless it comes from two blobs.
    let mut seen = HashSet::new();
    let keys: Vec<(DiffId, Option<Digest>)> =
        layers.iter().map(|layer| (layer.diff_id, layer.blob.map(|(blob, _)| blob))).collect();
    let is_first: Vec<bool> = keys.iter().map(|key| seen.insert(*key)).collect();
    let one = |at: usize, layer: &WantedLayer| -> Result<(), Error> {
        let taken = if is_first[at] {
            let below = at.checked_sub(1).map(|at| chain[at]);
            take_layer(store, session, layer, below, provider, at)?
        } else {
            provider.known(at);
            Taken::Again
        };
        assembly.lock().unwrap_or_else(PoisonError::into_inner).add(store, at, taken, &diff_ids, &keys)?;
        // By one thread, while the others go on. Who comes meanwhile leaves it to the next.
        if let Ok(_turn) = publishing.try_lock() {
            let (blobs, trees) = assembly.lock().unwrap_or_else(PoisonError::into_inner).due(false);
            if !blobs.is_empty() || !trees.is_empty() {
                store.sync_staged(session)?;
                // Who completes a layer meanwhile looks for those below it where they are staged.
                let _still = assembly.lock().unwrap_or_else(PoisonError::into_inner);
                store.place_staged(session, &blobs, &trees)?;
            }
        }
        Ok(())
    };
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = layers.get(at) else { return };
            if let Err(error) = one(at, layer) {
                // The others would be for nothing.
                next.store(layers.len(), Ordering::Relaxed);
                // The failure that ended the others, not what came of that.
                assembly.lock().unwrap_or_else(PoisonError::into_inner).error.get_or_insert(error);
            }
        }
    };
    let threads = parallel.clamp(1, layers.len().max(1));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut assembly = assembly.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (blobs, trees) = assembly.due(true);
    let published = store.publish_layers(session, &blobs, &trees);
    if let Some(error) = assembly.error {
        return Err(error);
    }
    published?;
    let blobs: Option<Vec<Blob>> = assembly.done.into_iter().collect();
    let blobs = blobs.ok_or_else(|| Error::document("the image", "a layer was not read"))?;
    Ok((blobs, assembly.warnings))
}

fn take_layer<P: LayerProvider>(
    store: &Store,
    session: &Session,
    layer: &WantedLayer,
    below: Option<ChainId>,
    provider: &P,
    at: usize,
) -> Result<Taken, Error> {
    // With a manifest the blob must be the one that it names, else the tar itself.
    let (blob, expected) = layer.blob.map_or((layer.diff_id.0, None), |(blob, size)| (blob, Some(size)));
    let size = store.blob_size(&blob).filter(|size| expected.is_none_or(|expected| expected == *size));
    let record = store.usable_layer(&layer.diff_id, below);
    if record.is_some()
        && let Some(size) = size
    {
        store.prove_expansion(&layer.diff_id, &blob, size)?;
        provider.known(at);
        return Ok(Taken::Known((blob, size, media_type::OCI_LAYER)));
    }
    let ingested = match size {
        // The blob of an earlier attempt, or of an image whose layer had to go.
        Some(size) => {
            provider.known(at);
            let reader = store.open_blob(&blob)?;
            let input = LayerInput {
                reader,
                blob: Some((blob, size)),
                diff_id: Some(layer.diff_id),
                keep_blob: false,
            };
            store.ingest_layer(session, input)?
        }
        None => {
            let input = LayerInput {
                reader: provider.open(at)?,
                blob: layer.blob,
                diff_id: Some(layer.diff_id),
                keep_blob: true,
            };
            let ingested = store.ingest_layer(session, input)?;
            provider.done(at);
            ingested
        }
    };
    Ok(Taken::New(Box::new(ingested)))
}
