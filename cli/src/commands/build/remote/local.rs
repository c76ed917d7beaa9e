//! A directory that builds of other machines fill and read.
//!
//! ```text
//! DIR/steps/HEX.json       a step's record
//! DIR/blobs/sha256/HEX     its layer
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};
use layerfs_image::digest::{ChainId, DiffId, Digest, DigestWriter};
use layerfs_image::store::{LayerInput, Session, StepRecord, Store};

/// Takes the step with this key from `directory`, if its layer goes on `below`.
pub(super) fn fetch(
    directory: &Path,
    key: &Digest,
    below: &[DiffId],
    store: &Store,
    session: &Session,
) -> anyhow::Result<Option<StepRecord>> {
    let text = match fs::read(directory.join("steps").join(format!("{}.json", key.hex()))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let record: StepRecord = serde_json::from_slice(&text).context("read a step's record")?;
    if record.key != *key || record.parent != ChainId::chain(below).last().copied() {
        return Ok(None);
    }
    let blob = directory.join("blobs").join(record.blob.0.algorithm().name()).join(record.blob.0.hex());
    let input = LayerInput {
        reader: File::open(&blob).with_context(|| format!("open {}", blob.display()))?,
        blob: Some(record.blob),
        diff_id: Some(record.layer),
        keep_blob: true,
    };
    let mut layer = store.ingest_layer(session, input)?;
    store.finish_layer(session, &mut layer, below)?;
    store.publish_steps(session, &mut [], std::slice::from_ref(&record))?;
    Ok(Some(record))
}

/// Writes steps into `directory`.
pub(super) fn export(directory: &Path, records: &[StepRecord], store: &Store) -> anyhow::Result<()> {
    let words = || format!("write the cache {}", directory.display());
    fs::create_dir_all(directory.join("steps")).with_context(words)?;
    fs::create_dir_all(directory.join("blobs/sha256")).with_context(words)?;
    for record in records {
        let blob = directory.join("blobs/sha256").join(record.blob.0.hex());
        if fs::metadata(&blob).map(|metadata| metadata.len()).ok() != Some(record.blob.1) {
            let mut new = tempfile::NamedTempFile::new_in(directory).with_context(words)?;
            let mut from = store.open_blob(&record.blob.0)?;
            let mut writer = DigestWriter::new(new.as_file_mut());
            io::copy(&mut from, &mut writer).with_context(words)?;
            if writer.finish().1 != record.blob.0 {
                bail!("blob {} of the store is damaged", record.blob.0);
            }
            new.persist(&blob).with_context(words)?;
        }
        let mut new = tempfile::NamedTempFile::new_in(directory).with_context(words)?;
        new.write_all(&serde_json::to_vec(record)?).with_context(words)?;
        let name = format!("{}.json", record.key.hex());
        new.persist(directory.join("steps").join(name)).with_context(words)?;
    }
    Ok(())
}
