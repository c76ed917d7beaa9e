//! Which blob expands to which layer, as far as that was proved by reading the blob to its end.
//!
//! A manifest names blobs and its config names layers; nothing but the order ties one to the other. An image whose
//! layer is unpacked already must not come with a blob of something else: it would be sent on as if it were the layer.
//! What was proved is one empty file for each pair, `layers/ALGORITHM/HEX/blobs/ALGORITHM-HEX`. Losing it costs a
//! second proof.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use super::Store;
use crate::compression::decompress;
use crate::digest::{DiffId, Digest, Hasher, VerifyingReader};
use crate::error::Error;

const BUFFER: usize = 256 * 1024;

impl Store {
    fn expansion_path(&self, diff_id: &DiffId, blob: &Digest) -> PathBuf {
        let name = format!("{}-{}", blob.algorithm().name(), blob.hex());
        self.layer_path(diff_id).join("blobs").join(name)
    }

    /// Notes that `blob` was read and is the layer `diff_id`, which is in its place.
    pub(super) fn record_expansion(&self, diff_id: &DiffId, blob: &Digest) -> Result<(), Error> {
        if *blob == diff_id.0 {
            return Ok(());
        }
        let path = self.expansion_path(diff_id, blob);
        let directory = self.layer_path(diff_id).join("blobs");
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("make", &directory)(error));
            }
            _ => {}
        }
        File::create(&path).map(|_| ()).map_err(Error::io("make", &path))
    }

    /// Sees to it that `blob`, which is in the store, expands to the unpacked layer `diff_id`. It is read when that is
    /// not known yet.
    ///
    /// # Errors
    /// `WrongDigest` when it is another layer's; `Read` when it is damaged.
    pub fn prove_expansion(&self, diff_id: &DiffId, blob: &Digest, size: u64) -> Result<(), Error> {
        if *blob == diff_id.0 || self.expansion_path(diff_id, blob).exists() {
            return Ok(());
        }
        let what = || format!("blob {blob}");
        let mut input = VerifyingReader::new(self.open_blob(blob)?, *blob, Some(size));
        let mut hasher = Hasher::new(diff_id.0.algorithm());
        {
            let reader = BufReader::with_capacity(BUFFER, &mut input);
            let (_, mut plain) = decompress(reader).map_err(Error::read(what()))?;
            let mut left = self.limits.stream();
            loop {
                let len = match plain.fill_buf() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    other => other.map_err(Error::read(what())).map(|bytes| {
                        hasher.update(bytes);
                        bytes.len()
                    })?,
                };
                if len == 0 {
                    break;
                }
                plain.consume(len);
                left = left.checked_sub(len as u64).ok_or_else(|| {
                    Error::document(what(), "it expands to more than a layer may have; it is refused")
                })?;
            }
        }
        // What follows the compressed stream belongs to the blob.
        input.finish().map_err(Error::read(what()))?;
        let found = hasher.finish();
        if found != diff_id.0 {
            return Err(Error::wrong_digest(
                format!("layer {diff_id} of the image has another layer's blob: {blob}, uncompressed,"),
                diff_id.0,
                found,
            ));
        }
        self.record_expansion(diff_id, blob)
    }
}
