//! Taking all layers of an image in, several at once, from wherever they come.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::digest::{ChainId, DiffId, Digest};
use crate::error::Error;
use crate::media_type;
use crate::store::{IngestedLayer, LayerInput, Session, Store};

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
}

/// Takes `layers` (the lowest first) in, at most `parallel` at once, and publishes them from the lowest up. What the
/// store has is not asked for. Answers with their blobs, and with what could not be kept of them.
///
/// # Errors
/// The first failure; the others are not waited for longer than they need to notice.
pub fn take_layers<P: LayerProvider>(
    store: &Store,
    session: &Session,
    layers: &[WantedLayer],
    provider: &P,
    parallel: usize,
) -> Result<(Vec<Blob>, Vec<String>), Error> {
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
    let chain = ChainId::chain(&diff_ids);
    let slots: Vec<Mutex<Option<Result<Taken, Error>>>> = layers.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    // The same layer twice in one image is taken in once, unless it comes from two blobs.
    let mut seen = HashSet::new();
    let keys: Vec<(DiffId, Option<Digest>)> =
        layers.iter().map(|layer| (layer.diff_id, layer.blob.map(|(blob, _)| blob))).collect();
    let is_first: Vec<bool> = keys.iter().map(|key| seen.insert(*key)).collect();
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = layers.get(at) else { return };
            if !is_first[at] {
                provider.known(at);
                continue;
            }
            let below = at.checked_sub(1).map(|at| chain[at]);
            let result = take_layer(store, session, layer, below, provider, at);
            if result.is_err() {
                // The others would be for nothing.
                next.store(layers.len(), Ordering::Relaxed);
            }
            if let Ok(mut slot) = slots[at].lock() {
                *slot = Some(result);
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
    let mut results: Vec<Option<Result<Taken, Error>>> =
        slots.into_iter().map(|slot| slot.into_inner().ok().flatten()).collect();
    // The failure that ended the others, not what came of that.
    if let Some(at) = results.iter().position(|result| matches!(result, Some(Err(_))))
        && let Some(Err(error)) = results.swap_remove(at)
    {
        return Err(error);
    }
    let mut blobs: Vec<Blob> = Vec::new();
    let mut warnings = Vec::new();
    for (at, result) in results.into_iter().enumerate() {
        match result {
            Some(Ok(Taken::New(mut layer))) => {
                store.finish_layer(session, &mut layer, &diff_ids[..at])?;
                warnings.append(&mut layer.warnings);
                let media_type = layer.compression.layer_media_type().unwrap_or(media_type::OCI_LAYER);
                blobs.push((layer.blob, layer.size, media_type));
            }
            Some(Ok(Taken::Known(blob))) => blobs.push(blob),
            Some(Err(error)) => return Err(error),
            None => {
                let first = keys.iter().position(|key| *key == keys[at]).unwrap_or(0);
                let again = blobs.get(first).copied();
                blobs.push(again.ok_or_else(|| Error::document("the image", "a layer was not read"))?);
            }
        }
    }
    Ok((blobs, warnings))
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
