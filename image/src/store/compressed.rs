//! As which blob a layer was sent that the store has without compression.
//!
//! What was compressed for a push is not kept, only what it was called: `layers/ALGORITHM/HEX/compressed/HOW` holds digest and
//! size. A second push asks the registry for that blob and compresses nothing where it is there.
//!
//! Must hold: a record is of this layer's own bytes, compressed by this program; it says nothing of what is in the store.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Barrier, Store};
use crate::digest::{DiffId, Digest};
use crate::error::Error;

/// What a layer is when it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressedBlob {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

impl Store {
    fn compressed_path(&self, diff_id: &DiffId, how: &str) -> PathBuf {
        self.layer_path(diff_id).join("compressed").join(how)
    }

    /// What the layer was when it was last compressed so; `how` is format and level, as `gzip-4`.
    pub fn compressed_before(&self, diff_id: &DiffId, how: &str) -> Option<CompressedBlob> {
        let text = fs::read(self.compressed_path(diff_id, how)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Notes what the layer is when it is compressed so. A layer that is not unpacked has no place for it.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn record_compressed(&self, diff_id: &DiffId, how: &str, blob: CompressedBlob) -> Result<(), Error> {
        let path = self.compressed_path(diff_id, how);
        let directory = self.layer_path(diff_id).join("compressed");
        match fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("make", &directory)(error)),
        }
        let text = serde_json::to_vec(&blob).map_err(Error::json("a compressed layer"))?;
        // What a crash makes of it is no JSON: then the layer is compressed again.
        self.write_file(&path, &text, Barrier::None)
    }
}
